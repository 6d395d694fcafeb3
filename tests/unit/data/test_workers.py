"""Threads map in order and do not run ahead."""

import time

import pytest

from twotower.data.workers import Budget, Threads, WithBar


def test_results_come_in_the_order_of_the_inputs():
    def slow(number):
        time.sleep(0.02 if number % 2 == 0 else 0.0)
        return number * number

    assert list(Threads(num_threads=3).map(slow, range(9))) == [n * n for n in range(9)]


def test_few_results_wait_to_be_taken():
    begun = []
    results = Threads(num_threads=2).map(begun.append, range(100))
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 4
    results.close()
    assert len(begun) <= 4


def test_a_bar_changes_nothing():
    with_bar = WithBar(workers=Threads(num_threads=2))
    assert list(with_bar.map(abs, [-3, 2, -1])) == [3, 2, 1]
    assert list(with_bar.map(abs, iter([-3, 2]))) == [3, 2]


def test_an_error_ends_the_work():
    begun = []

    def work(number):
        begun.append(number)
        if number == 3:
            raise KeyError("three")
        return number

    results = Threads(num_threads=1).map(work, range(100))
    with pytest.raises(KeyError, match="three"):
        list(results)
    assert len(begun) < 8


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="`num_threads` must be at least 0, got -1"):
        Threads(num_threads=-1)
    with pytest.raises(ValueError, match="at least 1, got rows_per_block=0, rows_per_bucket=5"):
        Budget(rows_per_block=0, rows_per_bucket=5)
