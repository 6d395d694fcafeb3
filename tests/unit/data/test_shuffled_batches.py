"""Epochs of batches, and loaders that continue."""

import threading

import pytest
import torch

from twotower.data.shuffled_batches import ShuffledBatches


def loader_of(count=10, batch_size=4, seed=3, ahead=False):
    return ShuffledBatches(
        torch.arange(100, 100 + count),
        batch_size=batch_size,
        seed=seed,
        assemble=lambda chosen: {"rows": chosen},
        ahead=ahead,
    )


def rows(batches):
    return [batch["rows"].tolist() for batch in batches]


def test_an_epoch_holds_every_example_once():
    loader = loader_of()
    batches = rows(loader)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert len(loader) == 3
    assert sorted(row for batch in batches for row in batch) == list(range(100, 110))


def test_a_last_batch_may_be_full():
    loader = loader_of(count=8)
    assert [len(batch) for batch in rows(loader)] == [4, 4]
    assert len(loader) == 2
    assert loader.state_dict() == {"epoch": 1, "position": 0}


def test_seed_and_epoch_decide_the_order():
    first, second = loader_of(count=50), loader_of(count=50)
    epochs = [rows(first), rows(first)]
    assert epochs[0] != epochs[1]
    assert [rows(second), rows(second)] == epochs
    assert rows(loader_of(count=50, seed=4)) != epochs[0]


def drawing_loader():
    """Six examples always, and three of a pool of twenty."""
    return ShuffledBatches(
        torch.arange(6),
        pool=torch.arange(100, 120),
        num_drawn=3,
        batch_size=4,
        seed=3,
        assemble=lambda chosen: {"rows": chosen},
    )


def test_every_epoch_draws_some_of_the_pool_anew():
    """In 40 epochs each of the pool six times on average."""
    loader = drawing_loader()
    assert len(loader) == 3
    epochs = [[row for batch in rows(loader) for row in batch] for _ in range(40)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 9
        assert {*range(6)} < {*epoch}
    drawn = [row for epoch in epochs for row in epoch if row >= 100]
    assert {*drawn} == {*range(100, 120)}
    assert max(drawn.count(row) for row in set(drawn)) < 16  # 6 and four standard deviations


@pytest.mark.parametrize("taken", [1, 2, 4])
def test_a_saved_loader_continues_with_what_its_epoch_drew(taken):
    def endless(loader):
        while True:
            yield from loader

    first, second = drawing_loader(), drawing_loader()
    batches = endless(first)
    for _ in range(taken):
        next(batches)
    second.load_state_dict(first.state_dict())
    for _, theirs in zip(range(7), endless(second), strict=False):
        assert next(batches)["rows"].tolist() == theirs["rows"].tolist()


def test_no_more_is_drawn_than_there_is():
    with pytest.raises(ValueError, match=r"`num_drawn` must lie in 0..2, the pool's size, got 3"):
        ShuffledBatches(
            torch.arange(6),
            pool=torch.arange(2),
            num_drawn=3,
            batch_size=4,
            seed=3,
            assemble=dict,
        )


def test_the_next_epoch_begins_though_nobody_asked_for_a_batch_too_many():
    whole, counted = loader_of(), loader_of()
    expected = [rows(whole), rows(whole)]
    for epoch in expected:
        batches = iter(counted)
        assert rows(next(batches) for _ in range(3)) == epoch


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4, 5])
def test_a_saved_loader_continues_with_the_next_batch(taken):
    def endless(loader):
        while True:
            yield from loader

    first = loader_of()
    batches = endless(first)
    for _ in range(taken):
        next(batches)
    state = first.state_dict()
    rest = rows(next(batches) for _ in range(6))
    second = loader_of()
    second.load_state_dict(state)
    continued = endless(second)
    assert rows(next(continued) for _ in range(6)) == rest


@pytest.mark.parametrize("batch_size", [0, -2])
def test_batches_of_nothing_are_refused(batch_size):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got"):
        loader_of(batch_size=batch_size)


@pytest.mark.parametrize("count", [1, 4, 10, 50])
def test_what_is_assembled_ahead_is_the_same(count):
    loader, ahead = loader_of(count), loader_of(count, ahead=True)
    for _ in range(3):
        assert rows(ahead) == rows(loader)


def test_a_loader_that_assembles_ahead_stands_where_it_was_read_to():
    """And not where the thread is."""
    loader, ahead = loader_of(50), loader_of(50, ahead=True)
    batches = iter(ahead)
    found = [next(batches) for _ in range(5)]
    assert ahead.state_dict() == {"epoch": 0, "position": 20}
    resumed = loader_of(50, ahead=True)
    resumed.load_state_dict(ahead.state_dict())
    assert rows([*found, *resumed]) == rows(loader)


def test_one_batch_is_assembled_while_another_is_out():
    under_way, started = threading.Event(), []

    def assemble(chosen):
        started.append(len(chosen))
        if len(started) == 2:
            under_way.set()
        return {"rows": chosen}

    loader = ShuffledBatches(torch.arange(12), batch_size=4, seed=3, assemble=assemble, ahead=True)
    batches = iter(loader)
    next(batches)
    assert under_way.wait(10)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_what_goes_wrong_in_the_thread_is_raised():
    def assemble(chosen):
        raise RuntimeError("no such row")

    loader = ShuffledBatches(torch.arange(12), batch_size=4, seed=3, assemble=assemble, ahead=True)
    with pytest.raises(RuntimeError, match="no such row"):
        next(iter(loader))
