"""External ids to rows of a bundle."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.features.row_index import UNKNOWN, RowIndex

ItemId: TypeAlias = int | str

MAX_INT64 = 2**63 - 1
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")

# By identity of the ids; what is kept with them goes when they go.
_indexes: dict[int, RowIndex] = {}
_lock = threading.Lock()


def find_rows(ids: pa.Array, wanted: Sequence[ItemId]) -> npt.NDArray[np.int64]:
    """Rows of external ids, -1 where unknown; an id given as text finds a number and vice versa.

    Args:
        ids: (N,) distinct ids, integers or text. They are gone through when they are seen for the
            first time; what finds them then lives as long as this array.
        wanted: External ids.
    """
    index = _index_of(ids)
    if not index.is_integer:
        return index.rows([str(item) for item in wanted])
    numbers = [_whole(str(item)) for item in wanted]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers):
        return index.rows(known)
    rows = np.full(len(numbers), UNKNOWN, np.int64)
    rows[[number is not None for number in numbers]] = index.rows(known)
    return rows


def prepare_to_find(ids: pa.Array) -> None:
    """Begin to go through ids in a thread; who asks before it is done waits for it."""
    threading.Thread(target=_index_of(ids).build, name="ids", daemon=True).start()


def _index_of(ids: pa.Array) -> RowIndex:
    with _lock:
        if id(ids) not in _indexes:
            _indexes[id(ids)] = RowIndex(ids.slice(0))  # which is not `ids`, so that it can go
            weakref.finalize(ids, _indexes.pop, id(ids), None)
        return _indexes[id(ids)]


def as_id(kind: pa.DataType, given: object) -> ItemId | None:
    """An id in the form of a column of ids of some type; None for what is none of them.

    Args:
        kind: The type, integers or text.
        given: An id as `find_rows` takes it, or anything else.
    """
    if isinstance(given, bool) or not isinstance(given, int | str):
        return None
    text = str(given)
    return _whole(text) if pa.types.is_integer(kind) else text or None


def _whole(text: str) -> int | None:
    """The 64-bit integer that is spelled out, or None."""
    number = int(text) if WHOLE_NUMBER.fullmatch(text) else MAX_INT64 + 1
    return number if -MAX_INT64 <= number <= MAX_INT64 else None
