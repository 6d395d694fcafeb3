"""What a column of the training part could be as a feature, told from its type and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.training_part import Column
from twotower.features.spec import Kind
from twotower.features.transforms import is_text
from twotower.features.vocabulary import as_array

MAX_INTEGER_CATEGORIES = 100
MAX_TEXT_SHARE = 0.5
MIN_TEXT_VALUES = 50
MIN_TAGGED_SHARE = 0.1
SEPARATOR = "|"
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
UNREADABLE = (
    *(pa.types.is_nested, pa.types.is_interval),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary),
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the values of a column tell.

    Args:
        type: Type of the values, not of how they are stored.
        num_known: Values that are not null.
        num_distinct: Different values of integers and text; of integers not all are counted when
            there are too many for categories.
        num_tagged: Texts with a separator in them.
    """

    type: pa.DataType
    num_known: int
    num_distinct: int
    num_tagged: int

    @staticmethod
    def of(column: Column) -> Facts:
        """Look at all values, some at a time."""
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        is_counted = pa.types.is_integer(kind) or is_text(kind)
        num_known = num_tagged = 0
        distinct = pa.array([], kind)
        for chunk in column.iterchunks():
            known = as_array(chunk).drop_null()
            num_known += len(known)
            if is_text(kind):
                tagged = pc.match_substring(known.cast(pa.string()), SEPARATOR)
                num_tagged += pc.sum(tagged).as_py() or 0
            too_many = pa.types.is_integer(kind) and len(distinct) > MAX_INTEGER_CATEGORIES
            if is_counted and not too_many:
                distinct = pc.unique(pa.concat_arrays([distinct, pc.unique(known)]))
        return Facts(
            type=kind, num_known=num_known, num_distinct=len(distinct), num_tagged=num_tagged
        )


def obstacle_of(facts: Facts) -> str | None:
    """Why a column can be no feature, or None."""
    if not facts.num_known:
        return "the training part has no value of it"
    inner = facts.type.value_type if _is_any(facts.type, LISTS) else facts.type
    if _is_any(inner, UNREADABLE):
        return "columns of this type are not read"
    is_free = is_text(facts.type) and kind_of(facts) == "categorical"
    if is_free and facts.num_distinct > max(MIN_TEXT_VALUES, MAX_TEXT_SHARE * facts.num_known):
        return "nearly every value is different. Declare it in a feature spec to use it"
    return None


def kind_of(facts: Facts) -> Kind:
    """The kind of feature that the values make."""
    is_a, kind = pa.types, facts.type
    if _is_any(kind, LISTS):
        return "vector" if is_a.is_floating(kind.value_type) else "tags"
    if _is_any(kind, (is_a.is_floating, is_a.is_decimal, is_a.is_temporal)):
        return "numeric"
    if is_a.is_integer(kind):
        return "categorical" if facts.num_distinct <= MAX_INTEGER_CATEGORIES else "numeric"
    if is_text(kind) and facts.num_tagged >= MIN_TAGGED_SHARE * facts.num_known:
        return "tags"
    return "categorical"


def _is_any(kind: pa.DataType, checks: Iterable[Callable[[pa.DataType], bool]]) -> bool:
    return any(check(kind) for check in checks)


def is_binary(column: Column) -> bool:
    """Whether a column holds both of 0 and 1, or of false and true, and nothing else but nulls."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not _is_any(kind, (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)):
        return False
    seen: set[object] = set()
    for chunk in column.iterchunks():
        seen |= set(pc.unique(as_array(chunk).drop_null())[:3].to_pylist())
        if not seen <= {0, 1}:
            return False
    return len(seen) == 2
