"""The bytes in which a store keeps the list of one user.

===========  =======  ======================================================================
bytes        type     what
===========  =======  ======================================================================
0            uint8    format version
1            uint8    flags: 1 ids are text, 2 scores follow, 4 these are probabilities
2            uint16   length of the list that was wanted, ``k``
4            uint16   its length, ``n``
6            uint16   zero
8            uint32   time from which its age counts, seconds since 1970
12           uint32   CRC-32 of all other bytes
16                    ids (n,) int64, unless they are text
then                  scores (n,) float32, if there are any
then                  lengths (n,) uint16 of the ids and the ids in UTF-8, if they are text
===========  =======  ======================================================================

Numbers are little-endian. Ids are those of the tables, so that a reader needs no bundle, and the
one score is what the list is ordered by; 100 items of integer ids with scores are 1,216 bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.serving.ids import ItemId

VALUE_FORMAT = 1
MAX_COUNT = 2**16 - 1

_HEADER = struct.Struct("<BBHHHI")
_CRC = struct.Struct("<I")
_TEXT, _SCORED, _PROBABILITY = 1, 2, 4
_START = _HEADER.size + _CRC.size


class StoreError(ValueError):
    """A store, or a value in it, that cannot be read or written."""


@dataclass(frozen=True, kw_only=True)
class StoredList:
    """The list of one user.

    Args:
        item_ids: (n,) external ids, best first.
        scores: (n,) what they are ordered by; None for popular items.
        is_probability: Whether the scores are probabilities of the ranker.
        k: Length that was wanted.
        written_at: Time from which its age counts, seconds since 1970.
    """

    item_ids: tuple[ItemId, ...]
    scores: tuple[float, ...] | None
    is_probability: bool
    k: int
    written_at: int


def encode_lists(
    item_ids: pa.ListArray,
    scores: pa.ListArray | None,
    *,
    is_probability: bool,
    k: int,
    written_at: int,
) -> Iterator[bytes]:
    """The values of some users, one after the other.

    Args:
        item_ids: (U,) lists of int64 or text, best first; a null becomes an empty list.
        scores: (U,) lists of as many float32, or None.
        is_probability: Whether the scores are probabilities of the ranker.
        k: Length that was wanted, at most 65,535.
        written_at: Seconds since 1970.

    Raises:
        StoreError: When a text id has more than 65,535 bytes.
    """
    ends = item_ids.offsets.to_numpy()  # (U + 1,)
    flags = 0 if scores is None else _SCORED | (_PROBABILITY if is_probability else 0)
    numbers = lengths = ordered_by = letters = memoryview(b"")
    places: npt.NDArray[np.int64] | None = None
    if pa.types.is_integer(item_ids.type.value_type):
        numbers = _bytes(item_ids.values.to_numpy(), "<i8")
    else:
        flags |= _TEXT
        words = item_ids.values.cast(pa.large_binary())
        places = _text_places(words)
        lengths = _bytes(np.diff(places), "<u2")
        letters = memoryview(words.buffers()[2] or b"")
    if scores is not None:
        ordered_by = _bytes(scores.values.to_numpy(), "<f4")
    for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        parts = [numbers[8 * start : 8 * stop], ordered_by[4 * start : 4 * stop]]
        if places is not None:
            parts += [lengths[2 * start : 2 * stop], letters[places[start] : places[stop]]]
        head = _HEADER.pack(VALUE_FORMAT, flags, k, stop - start, 0, written_at)
        body = b"".join(parts)
        yield b"".join((head, _CRC.pack(_checksum(head, body)), body))


def decode_list(value: bytes) -> StoredList:
    """The list that a value holds.

    Raises:
        StoreError: When the value is of another format, or was changed or cut.
    """
    if len(value) < _START or value[0] != VALUE_FORMAT:
        found = f"format version {value[0]}" if value else "nothing"
        raise StoreError(
            f"a value of {len(value)} bytes holds {found}; this release reads format version "
            f"{VALUE_FORMAT} of at least {_START} bytes; run `twotower batch` again"
        )
    head, body = value[: _HEADER.size], value[_START:]
    if _CRC.unpack_from(value, _HEADER.size) != (_checksum(head, body),):
        raise StoreError(
            f"a value of {len(value)} bytes was changed since it was written; run `twotower batch` "
            "again"
        )
    _, flags, k, count, _, written_at = _HEADER.unpack(head)
    at = 0 if flags & _TEXT else 8 * count
    scores = None
    if flags & _SCORED:
        scores = tuple(np.frombuffer(body, "<f4", count, at).tolist())
        at += 4 * count
    if flags & _TEXT:
        item_ids: tuple[ItemId, ...] = _texts(body, count, at)
    else:
        item_ids = tuple(np.frombuffer(body, "<i8", count).tolist())
    return StoredList(
        item_ids=item_ids,
        scores=scores,
        is_probability=bool(flags & _PROBABILITY),
        k=k,
        written_at=written_at,
    )


def _bytes(values: npt.NDArray[Any], kind: str) -> memoryview:
    return memoryview(np.ascontiguousarray(values, kind).view(np.uint8).data)


def _text_places(words: pa.LargeBinaryArray) -> npt.NDArray[np.int64]:
    """(E + 1,) where each text begins and ends among the letters of all."""
    count, offset = len(words), words.offset
    places = np.frombuffer(words.buffers()[1], np.int64)[offset : offset + count + 1]
    longest = int(np.diff(places).max(initial=0))
    if longest > MAX_COUNT:
        raise StoreError(f"an item id has {longest} bytes; a store keeps at most {MAX_COUNT}")
    return places


def _texts(body: bytes, count: int, at: int) -> tuple[str, ...]:
    lengths = np.frombuffer(body, "<u2", count, at)
    ends = (at + 2 * count + np.cumsum(lengths, dtype=np.int64)).tolist()
    starts = [at + 2 * count, *ends]
    return tuple(body[a:b].decode() for a, b in zip(starts, ends, strict=False))


def _checksum(head: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(head))
