"""What the filters of a request let through: rules on columns to a set of item rows.

A rule looks at one column of the item table. Of a column of lists, and of text that a ``tags``
feature splits, ``in`` wants one value among those given, ``not_in`` none, ``at_least`` and
``at_most`` one that fits. An item without a value (null, no number, an empty list) does not pass.

Letters: ``N`` items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twotower.features.pipeline import FeaturePipeline
from twotower.features.transforms import as_lists, is_text
from twotower.features.vocabulary import as_array
from twotower.index.allowed import AllowedRows, BoolArray
from twotower.serving.requests import Filter, Operator, RequestError
from twotower.serving.values import to_column

# What a rule is found again by; the types of the values too, for 1 and true are equal in Python.
Key: TypeAlias = tuple[tuple[str, Operator, tuple[tuple[type, Any], ...]], ...]

KEPT_BYTES = 2**27
MOST_KEPT, LEAST_KEPT = 256, 8
PLAIN = (str, int, float, bool)


class ItemFilters:
    """Compiles filters, once for those that come again.

    Args:
        table: Rows of the item table (N).
        separators: What splits the text of a column into tags.
    """

    def __init__(self, table: pa.Table, separators: Mapping[str, str]) -> None:
        self.table = table
        self.separators = separators
        # A compiled filter takes an eighth of a byte an item, and a byte where few items pass.
        num_kept = min(max(KEPT_BYTES // max(table.num_rows, 1), LEAST_KEPT), MOST_KEPT)
        self._compiled = lru_cache(num_kept)(self._compile)

    def allowed(self, filters: Sequence[Filter]) -> AllowedRows | None:
        """The rows that all filters let through; None without filters.

        Args:
            filters: Any number.

        Raises:
            RequestError: When a filter names no column, or what a column cannot be compared with.
        """
        return self._compiled(key_of(filters)) if filters else None

    def mask(self, filters: Sequence[Filter], table: pa.Table) -> BoolArray:
        """Which rows of a table of the same columns (N) all filters let through.

        Raises:
            RequestError: As `allowed`.
        """
        passes = np.ones(table.num_rows, bool)
        for place, rule in enumerate(filters):
            where = f"filters[{place}]"
            if rule.column not in table.column_names:
                columns = ", ".join(f"`{name}`" for name in table.column_names)
                raise RequestError(
                    f"{where}.column", f"unknown column `{rule.column}`; allowed: {columns}"
                )
            separator = self.separators.get(rule.column, "")
            passes &= _passes(rule, table.column(rule.column), separator, f"{where}.values")
        return passes

    def _compile(self, key: Key) -> AllowedRows:
        return AllowedRows(self.mask(filters_of(key), self.table))


def tag_separators(pipeline: FeaturePipeline) -> dict[str, str]:
    """What splits the text of item columns into tags, by column."""
    features = pipeline.spec.features
    return {f.source_column: f.separator for f in features if f.side == "item" and f.kind == "tags"}


def key_of(filters: Sequence[Filter]) -> Key:
    """Filters as a value that can be looked up.

    Raises:
        RequestError: When an operator is unknown, or the values are no list of plain values.
    """
    parts = []
    for place, rule in enumerate(filters):
        where = f"filters[{place}]"
        if rule.operator not in get_args(Operator):
            raise RequestError(
                f"{where}.operator",
                f"got {rule.operator!r}; allowed: {', '.join(get_args(Operator))}",
            )
        values = rule.values
        if isinstance(values, str | bytes) or not isinstance(values, Sequence):
            raise RequestError(f"{where}.values", f"must be a list, got {values!r}")
        wrong = [value for value in values if not isinstance(value, PLAIN)]
        if wrong:
            raise RequestError(
                f"{where}.values", f"must be text, numbers, true or false, got {wrong[0]!r}"
            )
        if rule.operator in ("at_least", "at_most") and len(values) != 1:
            raise RequestError(
                f"{where}.values", f"`{rule.operator}` takes one number, got {len(values)} values"
            )
        parts.append((rule.column, rule.operator, tuple((type(v), v) for v in values)))
    return tuple(parts)


def filters_of(key: Key) -> list[Filter]:
    """The filters that have a key."""
    return [
        Filter(column=column, operator=operator, values=[value for _, value in values])
        for column, operator, values in key
    ]


def _passes(rule: Filter, column: pa.ChunkedArray, separator: str, where: str) -> BoolArray:
    """(N,) whether the rows of a column pass."""
    if separator and is_text(column.type):
        column = pa.chunked_array([as_lists(column, separator)])
    nested = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not nested and not pa.types.is_fixed_size_list(column.type):
        return _fits(rule, column, where)
    lists = as_lists(column)
    parts = pa.chunked_array([pc.list_flatten(lists)])
    owners = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    fits = np.zeros(len(lists), bool)
    fits[owners[_fits(rule, parts, where)]] = True
    if rule.operator == "not_in":  # every value must be outside
        fits[owners[_present(parts) & ~_fits(rule, parts, where)]] = False
    return fits


def _fits(rule: Filter, column: pa.ChunkedArray, where: str) -> BoolArray:
    """(n,) whether single values fit; null and NaN do not."""
    kind = column.type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_null(kind):
        return np.zeros(len(column), bool)
    bounds = rule.operator in ("at_least", "at_most")
    if bounds and (is_text(kind) or pa.types.is_boolean(kind)):
        raise RequestError(
            where.replace("values", "operator"),
            f"`{rule.operator}` compares numbers and times, `{rule.column}` is of type {kind}; "
            "allowed: in, not_in",
        )
    try:
        # A bound may lie between the whole numbers of a column.
        number = pa.types.is_integer(kind) and bounds
        values = to_column(list(rule.values), pa.float64() if number else kind)
    except ValueError as error:
        raise RequestError(where, f"of column `{rule.column}`: {error}") from error
    array = as_array(column)
    if rule.operator == "at_least":
        found = pc.greater_equal(array, values[0])
    elif rule.operator == "at_most":
        found = pc.less_equal(array, values[0])
    else:
        found = pc.is_in(array, value_set=values)
    fits = np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), bool)
    return _present(column) & ~fits if rule.operator == "not_in" else fits


def _present(column: pa.ChunkedArray) -> BoolArray:
    return np.asarray(pc.is_valid(_without_nan(column)).to_numpy(), bool)


def _without_nan(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
