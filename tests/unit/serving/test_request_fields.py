"""JSON in a field of a request: what is read, and what is refused in words."""

from __future__ import annotations

import json

import pytest

from twotower.serving.request_fields import read_columns, read_filters
from twotower.serving.requests import Filter, RequestError


def test_nothing_is_no_column_and_no_filter() -> None:
    assert read_columns("context", "") == {}
    assert read_columns("context", "{}") == {}
    assert read_filters("filters", "") == []
    assert read_filters("filters", "[]") == []


def test_values_of_every_kind_are_kept_as_they_are() -> None:
    given = {
        "text": "Zürich",
        "whole": 2**63 - 1,
        "negative": -(2**63),
        "number": 1.5,
        "truth": True,
        "nothing": None,
        "tags": ["a", "", None],
        "vector": [1, 2.5],
        "empty": [],
    }
    found = read_columns("context", json.dumps(given))
    assert found == given
    assert [type(value) for value in found.values()] == [type(value) for value in given.values()]


def test_filters() -> None:
    given = [
        {"column": "country", "operator": "in", "values": ["SE", 3, 1.5, True]},
        {"values": [2], "operator": "at_least", "column": "price"},
    ]
    assert read_filters("filters", json.dumps(given)) == [
        Filter(column="country", operator="in", values=["SE", 3, 1.5, True]),
        Filter(column="price", operator="at_least", values=[2]),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"^context: no JSON that is allowed: Expecting property name"),
        ("[" * 100_000, r"^context: no JSON that is allowed: nested too deeply$"),
        ('{"a": NaN}', r"^context: no JSON that is allowed: NaN is no number of JSON$"),
        ('{"a": -Infinity}', r"^context: no JSON that is allowed: -Infinity is no number"),
        ('{"a": 1e999}', r"^context.a: must be text of at most 512 .*, got inf$"),
        ('{"a": ' + "9" * 5000 + "}", r"^context: no JSON that is allowed: Exceeds the limit"),
        ("[]", r"^context: must be a JSON object, got \[\]$"),
        ("3", r"^context: must be a JSON object, got 3$"),
        ('{"": 1}', r"^context: a column has a name of 1 to 512 characters$"),
        (json.dumps({"x" * 513: 1}), r"^context: a column has a name of 1 to 512 characters$"),
        (json.dumps({str(n): 1 for n in range(257)}), r"^context: at most 256 columns, got 257$"),
        ('{"a": {"b": 1}}', r"^context.a: must be .*, got \{'b': 1\}$"),
        ('{"a": [[1]]}', r"^context.a: must be .*, got \[\[1\]\]$"),
        ('{"a": [1, "x"]}', r"^context.a: must be .*, got \[1, 'x'\]$"),
        ('{"a": [1, null]}', r"^context.a: must be .*, got \[1, None\]$"),
        ('{"a": [true, false]}', r"^context.a: must be .*, got \[True, False\]$"),
        ('{"a": 9223372036854775808}', r"^context.a: must be .* a 64-bit integer.*854775808$"),
        (json.dumps({"a": "x" * 513}), r"^context.a: must be text of at most 512 characters"),
        (json.dumps({"a": [1] * 4097}), r"^context.a: must be .* at most 4096 numbers or of texts"),
        ('{"a": "\\ud800"}', r"^context.a: must be text"),
        ('{"\\ud800": 1}', r"^context: a column has a name of"),
    ],
)
def test_columns_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        read_columns("context", text)
    assert len(str(error.value)) < 500
    str(error.value).encode()


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({}, r"^filters: must be a list of at most 32, got \{\}$"),
        ([{}] * 33, r"^filters: must be a list of at most 32, got 33$"),
        ([3], r"^filters\[0\]: must be an object with column, operator, values, got 3$"),
        (
            [{"column": "a", "operator": "in"}],
            r"^filters\[0\]: must be an object with .*, got \['column', 'operator'\]$",
        ),
        (
            [{"column": "a", "operator": "in", "values": [1], "x": 1}],
            r"^filters\[0\]: must be an object with .*, got .*'x'\]$",
        ),
        (
            [{"column": "", "operator": "in", "values": [1]}],
            r"^filters\[0\].column: must be the name of a column of the item table, got ''$",
        ),
        (
            [{"column": 3, "operator": "in", "values": [1]}],
            r"^filters\[0\].column: must be the name of a column of the item table, got 3$",
        ),
        (
            [{"column": "a", "operator": "==", "values": [1]}],
            r"^filters\[0\].operator: must be in, not_in, at_least, at_most, got '=='$",
        ),
        (
            [{"column": "a", "operator": ["in"], "values": [1]}],
            r"^filters\[0\].operator: must be in, not_in, at_least, at_most, got \['in'\]$",
        ),
        (
            [{"column": "a", "operator": "in", "values": "SE"}],
            r"^filters\[0\].values: must be a list of 1 to 4096 values, got 'SE'$",
        ),
        (
            [{"column": "a", "operator": "in", "values": []}],
            r"^filters\[0\].values: must be a list of 1 to 4096 values, got \[\]$",
        ),
        (
            [{"column": "a", "operator": "in", "values": [1, None]}],
            r"^filters\[0\].values: must be texts, finite numbers, true or false, got None$",
        ),
        (
            [
                {"column": "a", "operator": "in", "values": [1]},
                {"column": "a", "operator": "in", "values": [[1]]},
            ],
            r"^filters\[1\].values: must be texts, .*, got \[1\]$",
        ),
    ],
)
def test_filters_that_are_refused(filters: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_filters("filters", json.dumps(filters))


def test_what_is_nested_as_deeply_as_can_be_parsed_is_refused_in_words() -> None:
    """Showing a value may need more of the stack than parsing it."""
    for depth in range(1, 1100, 7):
        with pytest.raises(RequestError, match=r"^context"):
            read_columns("context", '{"a": ' + "[" * depth + "[" + "]" * depth + "]}")
