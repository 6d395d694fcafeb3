"""Values to rows of an embedding table; row 0 is "missing or not seen often enough"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.training_part import Column
from twotower.features.row_index import RowIndex

# A column goes through all known values, unless these are so many times more than its own.
MANY_TIMES = 64


class Vocabulary:
    """The known values of a feature, in the order of their rows.

    Args:
        values: (V,) distinct values, int64 or string; value ``i`` has row ``i + 1``. Null is a row
            that nobody has, because its value was given up.

    Example:
        >>> colours = Vocabulary.fit(pa.array(["red", "blue", "red", None]), min_count=1)
        >>> colours.rows(pa.array(["blue", "green", None, "red"])).tolist()
        [2, 0, 0, 1]
    """

    def __init__(self, values: pa.Array) -> None:
        self.values = values

    @staticmethod
    def fit(values: pa.Array | Column, *, min_count: int) -> Vocabulary:
        """The values that occur at least `min_count` times, most frequent first, ties by value."""
        table = count_values(values)
        kept = table.filter(pc.greater_equal(table["count"], min_count))
        ordered = kept.sort_by([("count", "descending"), ("value", "ascending")])
        return Vocabulary(ordered.column("value").combine_chunks())

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table, row 0 included."""
        return len(self.values) + 1

    def rows(self, values: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int32]:
        """Row ``(R,)`` of every value, 0 where it is null or unknown.

        Raises:
            ValueError: When the values are of a type that cannot be compared with the known ones.
        """
        keys = as_key(values).cast(self.values.type)
        if len(keys) < len(self.values) // MANY_TIMES:
            return self._rows_of_few(keys)
        found: Any = pc.index_in(keys, value_set=self.values, skip_nulls=True)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False) + 1, np.int32)

    def row(self, value: int | str) -> int:
        """Row of one value of the type of the known ones, 0 where it is unknown."""
        index, rows = self._index
        return int(rows[index.row(value)])

    def _rows_of_few(self, keys: pa.Array) -> npt.NDArray[np.int32]:
        index, rows = self._index
        found = np.zeros(len(keys), np.int32)
        found[keys.is_valid().to_numpy(zero_copy_only=False)] = rows[index.find(keys.drop_null())]
        return found

    @cached_property
    def _index(self) -> tuple[RowIndex, npt.NDArray[np.int32]]:
        """What finds a value, and the row of every place that it finds, the last of nowhere."""
        rows = np.flatnonzero(self.values.is_valid().to_numpy(zero_copy_only=False)) + 1
        return RowIndex(self.values.drop_null()), np.append(rows, 0).astype(np.int32)

    def grown(self, new: Vocabulary, *, evict: bool = False) -> Vocabulary:
        """These values in their rows, and the new ones in rows of their own.

        Args:
            new: Values of a later window; those that are known already add nothing.
            evict: Whether values that the window lacks give up their rows, which new ones take
                before any are added. A row that nobody takes stays empty: no other row moves.

        Raises:
            ValueError: When the new values are of another type.

        Example:
            >>> known, later = Vocabulary(pa.array(["a", "b"])), Vocabulary(pa.array(["c", "b"]))
            >>> known.grown(later).values.to_pylist()
            ['a', 'b', 'c']
            >>> known.grown(later, evict=True).values.to_pylist()
            ['c', 'b']
        """
        if new.values.type != self.values.type:
            raise ValueError(
                f"the run that is gone on from knows values of type {self.values.type}, got "
                f"{new.values.type}"
            )
        fresh = new.values.filter(pc.invert(pc.is_in(new.values, value_set=self.values)))
        kept = np.asarray(pc.is_valid(self.values).to_numpy(zero_copy_only=False))
        if evict:
            found = pc.is_in(self.values, value_set=new.values)
            kept &= found.to_numpy(zero_copy_only=False)
        free = np.flatnonzero(~kept)[: len(fresh)]
        added = np.arange(len(self.values), len(self.values) + len(fresh))
        places = np.concatenate([np.arange(len(self.values)), added[len(free) :]])
        places[free] = added[: len(free)]
        empty = np.zeros(len(places), bool)
        empty[: len(kept)] = ~kept
        empty[free] = False
        values = pa.concat_arrays([self.values, fresh])
        return Vocabulary(values.take(pa.array(places, mask=empty)))

    def carried(self, later: Vocabulary) -> npt.NDArray[np.bool_]:
        """(V' + 1,) which rows of a grown vocabulary have the value that they have here.

        Args:
            later: Grown from this one.
        """
        same = np.zeros(later.num_rows, bool)
        same[0] = True
        both = min(len(self.values), len(later.values))
        equal = pc.equal(self.values.slice(0, both), later.values.slice(0, both))
        same[1 : both + 1] = pc.fill_null(equal, False).to_numpy(zero_copy_only=False)
        return same

    def digest(self) -> str:
        """Digest of the values, their type and order."""
        digest = blake2b(str(self.values.type).encode(), digest_size=16)
        values = self.values
        if values.null_count:
            digest.update(pc.is_null(values).to_numpy(zero_copy_only=False).tobytes())
            values = pc.fill_null(values, 0 if pa.types.is_integer(values.type) else "")
        if pa.types.is_integer(values.type):
            digest.update(values.to_numpy().tobytes())
            return digest.hexdigest()
        whole = pa.ListArray.from_arrays(np.array([0, len(values)], np.int32), values)
        digest.update(pc.binary_length(values).to_numpy().tobytes())
        digest.update(pc.binary_join(whole, "")[0].as_buffer())
        return digest.hexdigest()


def count_values(values: pa.Array | Column) -> pa.Table:
    """How often every value occurs, as columns ``value`` and ``count``; nulls do not count.

    Counts of chunks are added up whenever they are four times what was added up before.
    """
    schema = pa.schema({"value": as_key(pa.array([], values.type)).type, "count": pa.int64()})
    total, waiting = schema.empty_table(), []
    for chunk in chunks_of(values):
        waiting.append(_count_chunk(chunk))
        if sum(map(len, waiting)) > 4 * len(total):
            total, waiting = _add_up([total, *waiting]), []
    total = _add_up([total, *waiting])
    return total.filter(pc.is_valid(total["value"]))


def _count_chunk(chunk: pa.Array) -> pa.Table:
    if pa.types.is_dictionary(chunk.type):
        counts = np.bincount(chunk.indices.drop_null().to_numpy(zero_copy_only=False))
        present = np.flatnonzero(counts)
        keys, counts = as_key(chunk.dictionary.take(pa.array(present))), counts[present]
    else:
        counted = as_key(chunk).value_counts()
        keys, counts = counted.field("values"), counted.field("counts")
    return pa.table({"value": keys, "count": pa.array(counts, pa.int64())})


def _add_up(tables: Sequence[pa.Table]) -> pa.Table:
    grouped = pa.concat_tables(tables).group_by("value").aggregate([("count", "sum")])
    return grouped.select(["value", "count_sum"]).rename_columns(["value", "count"])


def chunks_of(values: pa.Array | Column) -> Iterator[pa.Array]:
    """The values, some at a time."""
    if isinstance(values, pa.Array):
        return iter([values])
    return values.iterchunks()


def as_key(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Values as int64 where they are integers, else as text; no number (NaN) counts as null.

    Raises:
        ValueError: When the values are lists or the like, or integers above 2^63 - 1.
    """
    array = as_array(values)
    kind = array.type
    if pa.types.is_nested(kind) or pa.types.is_interval(kind):
        raise ValueError(f"needs one value a row, got a column of type {kind}")
    if pa.types.is_floating(kind):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
    return array.cast(pa.int64() if pa.types.is_integer(kind) else pa.string())


def as_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece and without dictionary encoding."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
