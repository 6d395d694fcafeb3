"""What filters let through, against a loop over rows of plain values."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.serving.item_filters import ItemFilters, tag_separators
from twotower.serving.requests import Filter, RequestError

NAN = float("nan")
ROWS: dict[str, list] = {
    "country": ["NL", "SE", None, "NL", ""],
    "price": [10.0, NAN, 30.5, None, -1.0],
    "stock": [0, 3, None, 7, 3],
    "in_stock": [False, True, None, True, True],
    "tags": [["a", "b"], [], None, ["b", None], [None]],
    "sizes": [[36, 38], [40], [], None, [38, 44]],
    "genres": ["x|y", "y", None, "", "z|x"],
    "released": [datetime(2020, 1, 1), None, datetime(2024, 6, 1), datetime(2023, 1, 1), None],
    "nothing": [None] * 5,
}
TABLE = pa.table(
    ROWS
    | {"country": pa.array(ROWS["country"]).dictionary_encode(), "nothing": pa.nulls(5)}
    | {"stock": pa.array(ROWS["stock"], pa.int32())}
)
FILTERS = ItemFilters(TABLE, {"genres": "|"})


def rule(column: str, operator: Any, *values: Any) -> Filter:
    return Filter(column=column, operator=operator, values=list(values))


def rows_of(*filters: Filter) -> list[int]:
    allowed = FILTERS.allowed(filters)
    assert allowed is not None
    assert allowed.rows.tolist() == np.flatnonzero(FILTERS.mask(filters, TABLE)).tolist()
    return allowed.rows.tolist()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([rule("country", "in", "NL")], [0, 3]),
        ([rule("country", "in", "NL", "SE", "XX")], [0, 1, 3]),
        ([rule("country", "not_in", "NL")], [1, 4]),
        ([rule("country", "in")], []),
        ([rule("country", "not_in")], [0, 1, 3, 4]),
        ([rule("price", "at_least", 10)], [0, 2]),
        ([rule("price", "at_most", 10)], [0, 4]),
        ([rule("price", "not_in", 10)], [2, 4]),
        ([rule("stock", "at_least", 3)], [1, 3, 4]),
        ([rule("stock", "at_least", 2.5)], [1, 3, 4]),
        ([rule("stock", "at_most", 2.5)], [0]),
        ([rule("stock", "in", 3, 0.0)], [0, 1, 4]),
        ([rule("in_stock", "in", True)], [1, 3, 4]),
        ([rule("in_stock", "not_in", True)], [0]),
        ([rule("tags", "in", "a")], [0]),
        ([rule("tags", "in", "b", "c")], [0, 3]),
        ([rule("tags", "not_in", "a")], [3]),  # one of row 0's is; 1, 2 and 4 have none
        ([rule("tags", "not_in", "z")], [0, 3]),
        ([rule("sizes", "at_least", 40)], [1, 4]),
        ([rule("sizes", "at_most", 38)], [0, 4]),
        ([rule("genres", "in", "x")], [0, 4]),  # a `tags` feature splits this text
        ([rule("genres", "not_in", "x")], [1, 3]),
        ([rule("released", "at_least", "2023-01-01")], [2, 3]),
        ([rule("released", "at_most", 1_600_000_000)], [0]),
        ([rule("nothing", "in", "x")], []),
        ([rule("nothing", "at_least", 1)], []),
        ([rule("country", "in", "NL"), rule("stock", "at_least", 1)], [3]),
        ([rule("in_stock", "in", True), rule("country", "not_in", "SE")], [3, 4]),
    ],
)
def test_rows_that_pass(filters: list[Filter], expected: list[int]) -> None:
    assert rows_of(*filters) == expected


def test_an_empty_text_of_tags_is_a_tag() -> None:
    """Splitting "" gives one empty text; asking for it finds it."""
    assert rows_of(rule("genres", "in", "")) == [3]


def passes(row: Any, operator: str, values: list) -> bool:
    """One value, or any of a list; an item without a value does not pass."""
    present = [v for v in (row if isinstance(row, list) else [row]) if v is not None]
    present = [v for v in present if not (isinstance(v, float) and math.isnan(v))]
    if not present:
        return False
    if operator == "in":
        return any(v in values for v in present)
    if operator == "not_in":
        return not any(v in values for v in present)
    if operator == "at_least":
        return any(v >= values[0] for v in present)
    return any(v <= values[0] for v in present)


NUMBER = st.one_of(st.none(), st.just(NAN), st.integers(-3, 3).map(float), st.just(0.5))
COLUMNS = {
    "number": (NUMBER, pa.float64()),
    "whole": (st.one_of(st.none(), st.integers(-3, 3)), pa.int64()),
    "numbers": (st.one_of(st.none(), st.lists(NUMBER, max_size=3)), pa.list_(pa.float64())),
    "words": (
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.sampled_from("abc")), max_size=3)),
        pa.list_(pa.string()),
    ),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_equal_to_a_loop(data: st.DataObject) -> None:
    num_rows = data.draw(st.integers(0, 12))
    rows = {
        name: data.draw(st.lists(of, min_size=num_rows, max_size=num_rows))
        for name, (of, _) in COLUMNS.items()
    }
    table = pa.table({name: pa.array(rows[name], kind) for name, (_, kind) in COLUMNS.items()})
    cut = data.draw(st.integers(0, num_rows))  # in two chunks, as a file may be
    table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    filters = []
    for column in data.draw(st.lists(st.sampled_from([*COLUMNS]), min_size=1, max_size=3)):
        operators = ["in", "not_in", "at_least", "at_most"]
        operator = data.draw(st.sampled_from(operators[: 2 if column == "words" else 4]))
        values = st.sampled_from("abcd") if column == "words" else st.integers(-3, 3)
        size = 1 if operator in ("at_least", "at_most") else data.draw(st.integers(0, 3))
        chosen = data.draw(st.lists(values, min_size=size, max_size=size))
        filters.append(rule(column, operator, *chosen))
    expected = [
        all(passes(rows[f.column][row], f.operator, [*f.values]) for f in filters)
        for row in range(num_rows)
    ]
    allowed = ItemFilters(table, {}).allowed(filters)
    assert allowed is not None
    assert allowed.mask.tolist() == expected


def test_no_filters_are_no_set() -> None:
    assert FILTERS.allowed([]) is None


def test_a_filter_that_comes_again_is_the_same_object() -> None:
    first = FILTERS.allowed([rule("stock", "in", 3)])
    assert FILTERS.allowed([rule("stock", "in", 3)]) is first
    assert FILTERS.allowed([rule("stock", "in", 4)]) is not first
    with pytest.raises(RequestError, match="must be a whole number, got True"):
        FILTERS.allowed([rule("stock", "in", True)])  # 1 == True
    one = FILTERS.allowed([rule("stock", "in", 1)])
    assert one is not None
    assert one.count == 0


def test_what_is_kept_is_bounded() -> None:
    filters = ItemFilters(TABLE, {})
    first = filters.allowed([rule("stock", "in", 0)])
    for value in range(1, 1_000):
        filters.allowed([rule("stock", "in", value)])
    again = filters.allowed([rule("stock", "in", 0)])
    assert again is not first
    assert again is not None
    assert again.rows.tolist() == [0]


@pytest.mark.parametrize(
    ("given_rule", "place", "problem"),
    [
        (
            rule("colour", "in", "x"),
            "filters[1].column",
            "unknown column `colour`; allowed: `country`, `price`, `stock`, `in_stock`, `tags`, ",
        ),
        (
            rule("country", "like", "x"),
            "filters[1].operator",
            "got 'like'; allowed: in, not_in, at_least, at_most",
        ),
        (
            rule("country", "at_least", "x"),
            "filters[1].operator",
            "`at_least` compares numbers and times, `country` is of type string; allowed: in, not",
        ),
        (
            rule("in_stock", "at_most", True),
            "filters[1].operator",
            "`at_most` compares numbers and times, `in_stock` is of type bool; allowed: in, not_in",
        ),
        (
            Filter(column="country", operator="in", values="NL"),
            "filters[1].values",
            "must be a list, got 'NL'",
        ),
        (
            rule("country", "in", None),
            "filters[1].values",
            "must be text, numbers, true or false, got None",
        ),
        (
            rule("country", "in", ["NL"]),
            "filters[1].values",
            "must be text, numbers, true or false, got ['NL']",
        ),
        (
            rule("stock", "at_least", 1, 2),
            "filters[1].values",
            "`at_least` takes one number, got 2 values",
        ),
        (
            rule("stock", "at_least"),
            "filters[1].values",
            "`at_least` takes one number, got 0 values",
        ),
        (
            rule("country", "in", 5),
            "filters[1].values",
            "of column `country`: must be text, got 5",
        ),
        (
            rule("stock", "in", "5"),
            "filters[1].values",
            "of column `stock`: must be a whole number, got '5'",
        ),
        (
            rule("stock", "in", 2**40),
            "filters[1].values",
            "of column `stock`: must fit a column of type int32: ",
        ),
        (
            rule("price", "at_least", NAN),
            "filters[1].values",
            "of column `price`: must be a finite number, got nan",
        ),
        (rule("tags", "in", 5), "filters[1].values", "of column `tags`: must be text, got 5"),
        (
            rule("released", "at_least", "soon"),
            "filters[1].values",
            "of column `released`: must be ISO 8601 text or seconds since 1970, got 'soon'",
        ),
    ],
)
def test_what_cannot_be_compared(given_rule: Filter, place: str, problem: str) -> None:
    with pytest.raises(RequestError, match=f"^{re.escape(f'{place}: {problem}')}") as caught:
        FILTERS.allowed([rule("stock", "in", 1), given_rule])
    assert caught.value.place == place


def test_text_that_is_split_is_that_of_tags(bundle) -> None:
    separators = tag_separators(bundle.pipeline)
    tags = {f.source_column for f in bundle.pipeline.spec.features if f.kind == "tags"}
    items = {f.source_column for f in bundle.pipeline.spec.features if f.side == "item"}
    assert separators == dict.fromkeys(tags & items, "|")
    assert separators
