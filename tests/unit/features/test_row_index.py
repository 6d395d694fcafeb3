"""Rows of values against a dictionary."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.features import row_index as module
from twotower.features.row_index import RowIndex, hash_text

texts = st.lists(st.text(max_size=40), unique=True, max_size=30)


@settings(max_examples=200, deadline=None)
@given(known=texts, asked=texts, large=st.booleans(), skipped=st.integers(0, 3))
def test_texts(known: list[str], asked: list[str], large: bool, skipped: int) -> None:
    values = pa.array(known, pa.large_string() if large else pa.string()).slice(skipped)
    rows = {text: row for row, text in enumerate(known[skipped:])}
    wanted = [*known, *asked]
    assert RowIndex(values).rows(wanted).tolist() == [rows.get(text, -1) for text in wanted]


@settings(max_examples=200, deadline=None)
@given(
    known=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=30),
    asked=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=10),
    in_order=st.booleans(),
)
def test_integers(known: list[int], asked: list[int], in_order: bool) -> None:
    known = sorted(known) if in_order else known
    rows = {number: row for row, number in enumerate(known)}
    wanted = [*known, *asked]
    index = RowIndex(pa.array(known, pa.int64()))
    assert index.rows(wanted).tolist() == [rows.get(number, -1) for number in wanted]


@settings(max_examples=200, deadline=None)
@given(known=st.lists(st.text(max_size=60), max_size=20), block=st.integers(1, 5))
def test_many_texts_are_hashed_as_one_is(known: list[str], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = [int(h) for part in module._hashes(pa.array(known, pa.string())) for h in part]
    assert found == [hash_text(text) for text in known]


def test_hash_by_hand() -> None:
    """Length 1, one word 0x61: (1 ^ 0x61) = 0x60 mixed by the two constants."""
    hashed = 0x60 * 0xFF51AFD7ED558CCD % 2**64
    hashed ^= hashed >> 32
    hashed = hashed * 0xC4CEB9FE1A85EC53 % 2**64
    assert hash_text("a") == hashed ^ (hashed >> 29)
    assert hash_text("") == 0
    # A byte of zero at the end and the eighth byte count.
    assert len({hash_text(t) for t in ("a", "a\0", "a\0\0", "abcdefgh", "abcdefghi")}) == 5


def test_texts_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hash_text", lambda text: 7)
    monkeypatch.setattr(module, "_hashes", lambda texts: [np.full(len(texts), 7, np.uint64)])
    index = RowIndex(pa.array(["red", "green", "blue"]))
    assert index.rows(["blue", "pink", "red", "green"]).tolist() == [2, -1, 0, 1]


def test_nothing_known_and_nothing_asked() -> None:
    for kind in (pa.string(), pa.int64()):
        assert RowIndex(pa.array([], kind)).rows([]).tolist() == []
    assert RowIndex(pa.array([], pa.string())).row("a") == -1
    assert RowIndex(pa.array([], pa.int64())).row(3) == -1
    assert RowIndex(pa.array(["a"])).row("\ud800") == -1  # no UTF-8


def test_it_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index = RowIndex(pa.array([str(n) for n in range(1000)]))
    built = []
    once = RowIndex._sorted
    monkeypatch.setattr(RowIndex, "_sorted", lambda self: (built.append(1), once(self))[1])
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(index.row("999"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(built)) == ([999] * 8, 1)


@settings(max_examples=200, deadline=None)
@given(known=texts, asked=st.lists(st.text(max_size=40), max_size=30), skipped=st.integers(0, 3))
def test_a_column_is_found_as_its_values_are(
    known: list[str], asked: list[str], skipped: int
) -> None:
    index = RowIndex(pa.array(known, pa.string()).slice(skipped))
    wanted = [*asked, *known]
    found = index.find(pa.array(wanted, pa.string()).slice(1))
    assert found.tolist() == index.rows(wanted[1:]).tolist()
    numbers = RowIndex(pa.array([5, 3, 2**62], pa.int64()))
    assert numbers.find(pa.array([3, 4, 2**62], pa.int64())).tolist() == [1, -1, 2]


def test_two_texts_of_one_hash_are_told_apart_in_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hashes", lambda values: [np.full(len(values), 7, np.uint64)])
    monkeypatch.setattr(module, "hash_text", lambda _: 7)
    index = RowIndex(pa.array(["a", "b", "c"]))
    assert index.find(pa.array(["c", "x", "a", "b"])).tolist() == [2, -1, 0, 1]
