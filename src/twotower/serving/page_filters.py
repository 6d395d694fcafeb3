"""Which columns of the item table can be filtered by at a click, with what there is to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.schema import ITEM_ID, TITLE
from twotower.features.transforms import as_lists, is_text

Value = bool | int | str

MAX_CHOICES = 24
MAX_DIFFERENT = 200
MAX_LENGTH = 60
LOOK_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A value of a column.

    Args:
        value: It itself.
        count: Items that have it.
    """

    value: Value
    count: int


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A column of few values.

    Args:
        column: Its name.
        choices: The most frequent values, at most `MAX_CHOICES`.
        num_different: How many values there are.
    """

    column: str
    choices: Sequence[Choice]
    num_different: int


@dataclass(frozen=True, kw_only=True)
class Range:
    """A column of numbers.

    Args:
        column: Its name.
        low: Its smallest number.
        high: Its greatest one.
    """

    column: str
    low: float
    high: float


def filter_columns(
    table: pa.Table, separators: Mapping[str, str] | None = None
) -> list[Choices | Range]:
    """What the columns of a table offer to choose from.

    A column of texts, truth values or lists is offered by value where it has from 2 to
    `MAX_DIFFERENT` short ones, a column of whole numbers where it has at most `MAX_CHOICES`; a
    column of other numbers from the smallest to the greatest. What else there is, is left out.

    Args:
        table: A row an item.
        separators: What splits the text of a column into tags, by column.
    """
    offered = []
    for name in table.column_names:
        if name not in (ITEM_ID, TITLE):
            column = table.column(name)
            separator = (separators or {}).get(name)
            if separator and is_text(column.type):
                column = pa.chunked_array([as_lists(column, separator)])
            found = _choices(name, column) or _range(name, column)
            offered += [] if found is None else [found]
    return offered


def _choices(name: str, column: pa.ChunkedArray) -> Choices | None:
    # A column of a million different texts is told from its beginning.
    if not _is_discrete(column.type) or _counted(column.slice(0, LOOK_ROWS)) is None:
        return None
    counted = _counted(column)
    if counted is None:
        return None
    values, counts = counted
    if len(values) < 2 or (pa.types.is_integer(column.type) and len(values) > MAX_CHOICES):
        return None
    order = np.lexsort([np.arange(len(counts)), -counts])[:MAX_CHOICES]
    chosen = [Choice(value=values[place], count=int(counts[place])) for place in order]
    return Choices(column=name, choices=chosen, num_different=len(values))


def _counted(column: pa.ChunkedArray) -> tuple[list[Value], np.ndarray] | None:
    """Values and in how many rows each stands; None where they are too many or too long."""
    values = column.combine_chunks() if column.num_chunks > 1 else column
    if _is_list(column.type):
        rows = pc.list_parent_indices(values)
        values = pc.list_flatten(values)
        values = pa.table({"row": rows, "value": values}).group_by(["row", "value"]).aggregate([])
        values = values.column("value")
    counted = pc.value_counts(values.drop_null())
    if len(counted) > MAX_DIFFERENT:
        return None
    known = counted.field("values")
    if pa.types.is_dictionary(known.type):
        known = known.dictionary_decode()
    found = known.to_pylist()
    if any(isinstance(value, str) and len(value) > MAX_LENGTH for value in found):
        return None
    return found, counted.field("counts").to_numpy(zero_copy_only=False)


def _range(name: str, column: pa.ChunkedArray) -> Range | None:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    finite = column.filter(pc.is_finite(column))
    ends = pc.min_max(finite)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    return None if low is None or low == high else Range(column=name, low=low, high=high)


def _is_discrete(kind: pa.DataType) -> bool:
    if _is_list(kind) or pa.types.is_dictionary(kind):
        return _is_discrete(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
