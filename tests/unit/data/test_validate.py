"""Raw tables to canonical tables: what is kept, what is refused, what is set aside."""

import logging

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.naming import Reading
from twotower.data.raw_table import RawTable
from twotower.data.schema import DataError, Label
from twotower.data.validate import build_tables

CLICK = Label(column="click")


def raw(data, location="log.csv", text=()):
    table = pa.table(data)
    return RawTable(
        location=location,
        data=table,
        text=frozenset(text),
        parts=((location, table.num_rows),),
    )


def reading(columns=None, label=None, context=(), on_bad_rows="fail"):
    return Reading(columns=columns or {}, label=label, context=context, on_bad_rows=on_bad_rows)


def build(interactions, users=None, items=None, **options):
    tables = {"interactions": interactions, "users": users, "items": items}
    return build_tables({k: t for k, t in tables.items() if t is not None}, reading(**options))


def problems(*tables, **options):
    with pytest.raises(DataError) as caught:
        build(*tables, **options)
    return caught.value.problems


def log(**columns):
    return {"user_id": [1, 2, 3], "item_id": ["a", "b", "a"], "timestamp": [10, 20, 30], **columns}


def test_canonical_columns_come_first_and_all_others_stay_as_they_are():
    mood = pa.array(["x", None, "y"], pa.large_string())
    tables = build(
        raw({"mood": mood, "weight": [1, 2, 0], "part": ["train", "val", "test"], **log()}),
        columns={"split": "part"},
        context=("mood",),
    )
    table = tables.interactions
    assert table.column_names == ["user_id", "item_id", "timestamp", "weight", "split", "mood"]
    kinds = [pa.int64(), pa.string(), pa.int64(), pa.float32(), pa.int8(), pa.large_string()]
    assert table.schema.types == kinds
    assert table.column("timestamp").to_pylist() == [10_000_000, 20_000_000, 30_000_000]
    assert table.column("split").to_pylist() == [0, 1, 2]
    assert (tables.users, tables.items, tables.label, tables.rejected) == (None, None, None, None)
    assert tables.context == ("mood",)


def test_the_label_is_read_from_its_column_and_not_kept_as_a_feature():
    tables = build(raw(log(click=[0, 1, 0])), label=CLICK)
    assert "click" not in tables.interactions.column_names
    assert tables.interactions.column("label").to_pylist() == [0.0, 1.0, 0.0]
    assert tables.label == CLICK


def test_untyped_columns_get_their_type_from_the_values():
    data = {"user_id": ["1", "2"], "item_id": ["x", "2"], "timestamp": ["2020-01-01", "7"]}
    table = build(raw({**data, "age": ["3", ""], "zip": ["01", "2"]}, text=[*data, "age", "zip"]))
    kinds = [pa.int64(), pa.string(), pa.int64(), pa.int64(), pa.string()]
    assert table.interactions.schema.types == kinds


def test_titles_stay_text():
    items = raw({"sku": ["1"], "name": ["1984"]}, "items.csv", text=["sku", "name"])
    data = {"sku": [1], "user_id": [1], "timestamp": [1]}
    tables = build(raw(data), None, items, columns={"item_id": "sku", "title": "name"})
    assert tables.items.to_pydict() == {"item_id": [1], "title": ["1984"]}


def test_a_click_table_may_lack_user_item_and_time():
    tables = build(raw({"click": [0, 1], "hour": [3, 4]}), label=CLICK, context=("hour",))
    assert tables.interactions.column_names == ["label", "hour"]


def test_a_split_makes_the_time_optional():
    data = {"user_id": [1], "item_id": [2], "split": ["test"]}
    assert build(raw(data)).interactions.column_names == ["user_id", "item_id", "split"]


def test_users_and_items_make_their_ids_required_in_a_click_table():
    users = raw({"user_id": [1]}, "users.csv")
    items = raw({"item_id": [1]}, "items.csv")
    found = problems(raw({"click": [1]}), users, items, label=CLICK)
    assert [p.split("`")[1] for p in found] == ["user_id", "item_id"]


def test_users_may_use_the_mapped_or_the_canonical_name():
    for name in ("visitor", "user_id"):
        users = raw({name: [1, 2, 3]}, "users.csv")
        data = log(visitor=[1, 2, 3])
        data.pop("user_id")
        tables = build(raw(data), users, columns={"user_id": "visitor"})
        assert tables.users.column_names == ["user_id"]


def test_a_column_that_the_mapping_displaces_is_left_out_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        table = build(raw(log(ts=[1, 2, 3])), columns={"timestamp": "ts"}).interactions
    assert table.column_names == ["user_id", "item_id", "timestamp"]
    assert table.column("timestamp").to_pylist() == [1_000_000, 2_000_000, 3_000_000]
    assert "column `timestamp` is left out, because `ts` is read as `timestamp`" in caplog.text


def test_columns_may_swap_names_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        table = build(raw(log()), columns={"user_id": "item_id", "item_id": "user_id"})
    assert table.interactions.column("item_id").to_pylist() == [1, 2, 3]
    assert caplog.text == ""


def test_all_problems_of_all_tables_are_reported_at_once():
    unreadable = DataError(["items.csv: damaged"])
    found = problems(
        raw(log(user_id=[1, None, 3], timestamp=[1.5, 2.5, 3.5], weight=[1.0, -1.0, 2.0])),
        raw({"user_id": [7, 7], "age": [1, 2]}, "users.csv"),
        unreadable,
        context=("hour",),
    )
    assert found == (
        "items.csv: damaged",
        "log.csv: column `user_id`: 1 row without an id, at data row 2 (from 1, header not "
        "counted): received null; allowed: 64-bit integers or text",
        "log.csv: column `timestamp` has type double; allowed: integer seconds since 1970, "
        "timestamps, dates or ISO 8601 text",
        "log.csv: column `weight`: 1 row outside the range, at data row 2 (from 1, header not "
        "counted): received -1; allowed: finite numbers of at least 0",
        "users.csv: column `user_id`: 1 row with an id that an earlier row has already, at data "
        "row 2 (from 1, header not counted): received 7; allowed: one row an id",
        "log.csv: the context column `hour` is missing; allowed in data.context: user_id, item_id, "
        "timestamp",
    )


def test_a_label_outside_its_range_or_without_a_value():
    stars = Label(column="stars", minimum=1.0, maximum=5.0, positive_from=4.0)
    found = problems(raw(log(stars=[0.5, float("nan"), 5.0])), label=stars)
    assert found == (
        "log.csv: column `stars` (`label`): 1 row without a value, at data row 2 (from 1, header "
        "not counted): received nan; allowed: numbers from 1 to 5 (data.label.minimum, "
        "data.label.maximum)",
        "log.csv: column `stars` (`label`): 1 row outside the range, at data row 1 (from 1, header "
        "not counted): received 0.5; allowed: numbers from 1 to 5 (data.label.minimum, "
        "data.label.maximum)",
    )


@pytest.mark.parametrize("weight", [float("inf"), float("nan"), None, 1e39, -0.1])
def test_weights_are_finite_and_not_negative(weight):
    [problem] = problems(raw(log(weight=[1.0, weight, 0.0])))
    assert "column `weight`: 1 row " in problem
    assert "allowed: finite numbers of at least 0" in problem


def test_an_unknown_split_lists_what_is_allowed():
    [problem] = problems(raw(log(split=["train", "dev", "test"])))
    assert "1 row with an unknown split, at data row 2" in problem
    assert "received 'dev'; allowed: train, validation, valid, val, test" in problem


def test_a_broken_mapping_is_reported_once():
    [problem] = problems(raw(log()), columns={"user_id": "visitor"})
    assert problem == (
        "data.columns.user_id=visitor: no column `visitor`; log.csv has user_id, item_id, timestamp"
    )


def test_an_empty_table_is_refused():
    empty = {name: pa.array([], pa.int64()) for name in log()}
    assert problems(raw(empty)) == ("log.csv: the table is empty; at least one row is needed",)


def test_a_name_used_twice_is_refused():
    table = pa.Table.from_arrays([pa.array([1])] * 3, names=["user_id", "user_id", "x"])
    twice = RawTable(location="log.csv", data=table, text=frozenset(), parts=(("log.csv", 1),))
    assert problems(twice, context=("x",)) == ("log.csv: more than one column is called `user_id`",)


def test_repeated_ids_are_counted_without_nulls():
    ids = [4, None, 4, 5, None, 5, 4]
    found = problems(raw(log()), raw({"user_id": ids}, "users.csv"))
    assert "2 rows without an id, at data row 2, 5 " in found[0]
    assert "3 rows with an id that an earlier row has already, at data row 3, 6, 7 " in found[1]
    assert "received 4, 5;" in found[1]


def test_ids_of_different_types_are_refused_and_the_odd_value_is_shown():
    users = [str(number) for number in range(1000)]
    users[700] = "guest"
    found = problems(
        raw(log()),
        raw({"user_id": users}, "users.csv", text=["user_id"]),
        raw({"item_id": [1, 2]}, "items.csv"),
    )
    assert found == (
        "column `user_id` has different types: int64 in log.csv and string in users.csv; allowed: "
        "the same type in both",
        "users.csv: column `user_id`: 1 row with an id that is text, at data row 701 (from 1, "
        "header not counted): received 'guest'; allowed: integers throughout",
        "column `item_id` has different types: string in log.csv and int64 in items.csv; allowed: "
        "the same type in both",
        "log.csv: column `item_id`: 3 rows with an id that is text, at data row 1, 2, 3 (from 1, "
        "header not counted): received 'a', 'b'; allowed: integers throughout",
    )


def test_digits_stored_as_text_differ_from_integers():
    users = raw({"user_id": ["1", "2", "3"]}, "users.parquet")
    [problem] = problems(raw(log()), users)
    assert "int64 in log.csv and string in users.parquet" in problem


def test_quarantine_sets_bad_rows_aside():
    tables = build(
        raw(
            log(
                user_id=[1, None, 3],
                timestamp=["5", "noon", "soon"],
                click=["1", "1", "7"],
                tag=["a", "b", "c"],
            ),
            text=["timestamp", "click"],
        ),
        raw({"user_id": [None, 3], "age": [5, 6]}, "users.csv"),
        label=CLICK,
        on_bad_rows="quarantine",
    )
    assert tables.interactions.to_pydict() == {
        "user_id": [1],
        "item_id": ["a"],
        "timestamp": [5_000_000],
        "label": [1.0],
        "tag": ["a"],
    }
    assert tables.users.to_pydict() == {"user_id": [3], "age": [6]}
    assert tables.rejected.to_pydict() == {
        "file": ["log.csv", "log.csv", "users.csv"],
        "row": [2, 3, 1],
        "reason": [
            "`user_id` without an id; `timestamp` with a time that cannot be read",
            "`timestamp` with a time that cannot be read; `click` outside the range",
            "`user_id` without an id",
        ],
        "user_id": [None, "3", None],
        "item_id": ["b", "a", None],
        "timestamp": ["noon", "soon", None],
        "click": ["1", "7", None],
        "tag": ["b", "c", None],
        "age": [None, None, "5"],
    }


def test_quarantine_of_nothing_rejects_nothing():
    assert build(raw(log()), on_bad_rows="quarantine").rejected is None


def test_quarantine_does_not_excuse_wrong_types_missing_columns_or_unknown_splits():
    data = log(user_id=[1.0, 2.0, 3.0], split=["dev", "dev", "test"])
    data.pop("item_id")
    found = problems(raw(data), on_bad_rows="quarantine")
    assert [p.split("`")[1] for p in found] == ["item_id", "user_id", "split"]


def test_quarantine_that_leaves_no_row_is_refused_with_the_reasons():
    late = [1_600_000_000_000 + row for row in range(3)]
    found = problems(raw(log(timestamp=late)), on_bad_rows="quarantine")
    assert found[0] == "log.csv: no row is left when the bad rows are set aside"
    assert "3 rows beyond the year 2100, which looks like milliseconds" in found[1]


def test_the_order_of_chunks_makes_no_difference():
    rng = np.random.default_rng(0)
    whole = pa.table(
        {
            "user_id": [None if r < 0.2 else int(r * 9) for r in rng.random(50)],
            "item_id": [str(r) for r in rng.integers(0, 9, 50)],
            "timestamp": rng.integers(-3, 9, 50),
        }
    )
    cut = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 0), whole.slice(7)])
    one, other = (
        build(raw(table), on_bad_rows="quarantine") for table in (whole.combine_chunks(), cut)
    )
    assert one.interactions.equals(other.interactions)
    assert one.rejected.equals(other.rejected)
    bad = [
        row + 1
        for row, (user, time) in enumerate(
            zip(whole["user_id"].to_pylist(), whole["timestamp"].to_pylist(), strict=True)
        )
        if user is None or time < 0
    ]
    assert one.rejected.column("row").to_pylist() == bad
