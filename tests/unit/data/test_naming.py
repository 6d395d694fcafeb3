"""Which column of a user's table is which."""

import pyarrow as pa
import pytest

from twotower.data.naming import (
    Reading,
    broken_mappings,
    context_problems,
    find_columns,
    missing_columns,
    required_columns,
)
from twotower.data.raw_table import RawTable
from twotower.data.schema import Label


def reading(columns=None, label=None, context=()):
    return Reading(columns=columns or {}, label=label, context=context, on_bad_rows="fail")


def raw(names, location="log.csv"):
    data = pa.table({name: ["1"] for name in names})
    return RawTable(location=location, data=data, text=frozenset(), parts=((location, 1),))


def test_columns_are_found_by_mapping_then_by_their_own_name():
    rules = reading({"user_id": "visitor", "timestamp": "ts"}, Label(column="click"))
    names = ["visitor", "item_id", "timestamp", "click", "split"]
    assert find_columns("interactions", names, rules) == {
        "user_id": "visitor",
        "item_id": "item_id",
        "timestamp": "timestamp",
        "label": "click",
        "split": "split",
    }
    assert find_columns("users", ["user_id", "item_id"], rules) == {"user_id": "user_id"}
    assert find_columns("items", ["item_id", "title"], rules) == {
        "item_id": "item_id",
        "title": "title",
    }


def test_a_label_is_only_what_is_declared():
    assert find_columns("interactions", ["label"], reading()) == {}
    assert find_columns("interactions", ["label"], reading(label=Label(column="click"))) == {}


ALL = {"user_id", "item_id", "timestamp"}


@pytest.mark.parametrize(
    ("label", "asked", "expected"),
    [
        (None, [], ALL),
        (None, ["users", "items"], ALL),
        (Label(), [], {"label"}),
        (Label(), ["users"], {"label", "user_id"}),
        (Label(), ["items"], {"label", "item_id"}),
    ],
)
def test_what_is_required_of_the_interactions(label, asked, expected):
    kinds = frozenset(["interactions", *asked])
    assert required_columns("interactions", kinds, reading(label=label)) == expected


def test_what_is_required_of_users_and_items():
    kinds = frozenset(["interactions", "users", "items"])
    assert required_columns("users", kinds, reading()) == {"user_id"}
    assert required_columns("items", kinds, reading()) == {"item_id"}


def missing(names, required, rules):
    return list(missing_columns("interactions", raw(names), required, rules))


def test_missing_columns_come_with_what_is_there_and_the_option():
    assert missing(["visitor", "item_id", "ts"], ALL, reading()) == [
        "log.csv: column `user_id` is missing; available: visitor, item_id, ts; if it is one of "
        "these, say data.columns.user_id=<name>",
        "log.csv: column `timestamp` is missing; available: visitor, item_id, ts; if it is one of "
        "these, say data.columns.timestamp=<name>",
    ]
    [problem] = missing(["a"], {"label"}, reading(label=Label(column="click")))
    assert "column `click` is missing" in problem
    assert "data.label.column=<name>" in problem


def test_a_split_stands_in_for_a_timestamp():
    assert missing(["user_id", "item_id", "split"], ALL, reading()) == []
    assert missing(["user_id", "item_id", "part"], ALL, reading({"split": "part"})) == []


def test_a_label_that_nobody_declared_is_a_problem():
    [problem] = missing([*ALL, "label"], ALL, reading())
    assert "no label is declared, and every row would count as a positive" in problem


def test_mappings_that_lead_nowhere():
    tables = {
        "interactions": raw(["visitor", "ts"]),
        "users": raw(["user_id", "city"], "users.csv"),
    }
    rules = reading(
        {"user_id": "visitor", "timestamp": "time", "label": "click", "genre": "g", "title": "t"}
    )
    problems = broken_mappings(tables, rules)
    assert list(problems) == ["timestamp", "label", "genre", "title"]
    assert problems["timestamp"] == (
        "data.columns.timestamp=time: no column `time`; log.csv has visitor, ts"
    )
    assert "the label is named by data.label.column" in problems["label"]
    assert problems["genre"] == (
        "data.columns.genre=g: cannot be mapped; allowed: user_id, item_id, timestamp, weight, "
        "split, position, title"
    )
    assert "no table that needs it" in problems["title"]


def test_context_columns_must_be_there_and_be_known_at_request_time():
    rules = reading(
        label=Label(column="click"),
        context=("position", "timestamp", "click", "label", "weight", "split", "hour"),
    )
    problems = list(context_problems("log.csv", ["timestamp", "label", "position"], rules))
    assert [p.split("`")[1] for p in problems] == ["click", "label", "weight", "split", "hour"]
    assert all("not known at request time" in problem for problem in problems[:4])
    assert "`hour` is missing; allowed in data.context: timestamp, position" in problems[4]
