"""Values of a store, byte by byte."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest

from twotower.serving.stored_list import StoredList, StoreError, decode_list, encode_lists


def lists(values, kind=None):
    return pa.array(values, pa.list_(kind or pa.int64()))


def scores(values):
    return pa.array(values, pa.list_(pa.float32()))


def by_hand(flags: int, k: int, count: int, written_at: int, body: bytes) -> bytes:
    """A value as the table of the module says."""
    head = bytes([1, flags]) + struct.pack("<HHHI", k, count, 0, written_at)
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def test_integers_with_probabilities_by_hand():
    (value,) = encode_lists(
        lists([[7, -(2**63)]]),
        scores([[0.5, 0.25]]),
        is_probability=True,
        k=3,
        written_at=2**32 - 1,
    )
    body = struct.pack("<qq", 7, -(2**63)) + struct.pack("<ff", 0.5, 0.25)
    assert value == by_hand(2 | 4, 3, 2, 2**32 - 1, body)


def test_text_with_scores_by_hand():
    (value,) = encode_lists(
        lists([["ä", "", "1e5"]], pa.string()),
        scores([[1.5, 1.0, -2.0]]),
        is_probability=False,
        k=10,
        written_at=5,
    )
    body = struct.pack("<fff", 1.5, 1.0, -2.0) + struct.pack("<HHH", 2, 0, 3) + "ä1e5".encode()
    assert value == by_hand(1 | 2, 10, 3, 5, body)


def test_popular_items_have_no_scores():
    (value,) = encode_lists(lists([[1, 2]]), None, is_probability=False, k=2, written_at=5)
    assert value == by_hand(0, 2, 2, 5, struct.pack("<qq", 1, 2))
    assert decode_list(value).scores is None


def test_a_hundred_items_take_1216_bytes():
    (value,) = encode_lists(
        lists([range(100)]), scores([[0.0] * 100]), is_probability=True, k=100, written_at=5
    )
    assert len(value) == 1216


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.large_string()])
@pytest.mark.parametrize("with_scores", [True, False])
def test_lists_of_all_lengths_come_back(kind, with_scores):
    rng = np.random.default_rng(0)
    counts = [0, 3, 1, 0, 70, 2]
    wanted = [[int(n) for n in rng.integers(-(2**40), 2**40, count)] for count in counts]
    if kind != pa.int64():
        wanted = [["é" * (abs(n) % 5) + str(n) for n in one] for one in wanted]
    numbers = [rng.random(count).astype(np.float32).tolist() for count in counts]
    options = {"is_probability": False, "k": 70, "written_at": 9}
    ids, values = lists(wanted, kind), scores(numbers)
    found = list(encode_lists(ids, values if with_scores else None, **options))
    parts = [
        StoredList(
            item_ids=tuple(one),
            scores=tuple(score) if with_scores else None,
            is_probability=False,
            k=70,
            written_at=9,
        )
        for one, score in zip(wanted, numbers, strict=True)
    ]
    assert [decode_list(value) for value in found] == parts
    # A part of a longer array is the same.
    cut = list(encode_lists(ids[2:5], values[2:5] if with_scores else None, **options))
    assert cut == found[2:5]


def test_a_user_without_a_list_has_an_empty_one():
    values = encode_lists(lists([None, [1]]), None, is_probability=False, k=1, written_at=5)
    assert [decode_list(value).item_ids for value in values] == [(), (1,)]


def test_every_changed_byte_is_found():
    (value,) = encode_lists(
        lists([[7, 8]]), scores([[0.5, 0.25]]), is_probability=True, k=3, written_at=77
    )
    for place in range(len(value)):
        changed = bytearray(value)
        changed[place] ^= 16
        with pytest.raises(StoreError, match=r"was changed|format version"):
            decode_list(bytes(changed))
    for length in range(len(value)):
        with pytest.raises(StoreError, match=r"was changed|at least 16 bytes"):
            decode_list(value[:length])


def test_another_format_is_named():
    value = bytes([2]) + bytes(50)
    message = "a value of 51 bytes holds format version 2; this release reads format version 1"
    with pytest.raises(StoreError, match=message):
        decode_list(value)


def test_ids_that_are_too_long_are_refused():
    ids = lists([["x" * 65_536]], pa.string())
    with pytest.raises(StoreError, match="an item id has 65536 bytes; a store keeps at most 65535"):
        next(encode_lists(ids, None, is_probability=False, k=1, written_at=5))
    ids = lists([["x" * 65_535]], pa.string())
    value = next(encode_lists(ids, None, is_probability=False, k=1, written_at=5))
    assert decode_list(value).item_ids == ("x" * 65_535,)
