"""Mistakes in the columns of one's own files: names and types."""

from __future__ import annotations

from tests.end_to_end.mistakes.mistake import Mistake
from tests.end_to_end.mistakes.tables import (
    changed,
    good,
    header,
    instead,
    replaced,
    row,
    text_ids,
    vectors,
    with_column,
)

MISTAKES = {
    "columns": [
        Mistake(
            "a column is missing",
            header("interactions", "user_id,movie,timestamp"),
            "interactions.csv: column `item_id` is missing; available: user_id, movie, timestamp",
            "say data.columns.item_id=<name>",
        ),
        Mistake(
            "two columns of one name",
            header("interactions", "user_id,item_id,item_id"),
            "interactions.csv has several columns called item_id",
            "allowed: a name once",
        ),
        Mistake(
            "a mapping that leads nowhere",
            good("data.columns.user_id=visitor"),
            "data.columns.user_id=visitor: no column `visitor`",
            "interactions.csv has user_id, item_id, timestamp",
        ),
        Mistake(
            "a mapping of what cannot be mapped",
            good("+data.columns.itemid=item_id"),
            "data.columns.itemid=item_id: cannot be mapped",
            "allowed: user_id, item_id, timestamp, weight, split, position, title",
        ),
        Mistake(
            "a label that is not there",
            good("data.label.column=clicked"),
            "interactions.csv: column `clicked` is missing",
            "say data.label.column=<name>",
        ),
        Mistake(
            "a label that nobody declared",
            with_column("label", "1", "0"),
            "there is a column `label`, but no label is declared",
            "say data.label.column=label",
        ),
        Mistake(
            "a context column that is not there",
            good("data.context=[device]"),
            "the context column `device` is missing",
            "allowed in data.context: user_id, item_id, timestamp",
        ),
        Mistake(
            "a given split without its column",
            good("split=given"),
            "split=given needs a `split` column",
            "map it with data.columns.split=<name>",
        ),
    ],
    "types": [
        Mistake(
            "ids with a decimal point",
            replaced("interactions", ",", ".0,", slice(1, None)),
            "interactions.csv: column `user_id` holds numbers with a decimal point",
            "allowed: 64-bit integers or text",
        ),
        Mistake(
            "ids of two types",
            instead("items", "items.parquet", text_ids),
            "column `item_id` has different types: int64 in interactions.csv and string in",
            "allowed: the same type in both",
        ),
        Mistake(
            "an id is missing",
            row("interactions", 2, ",5,1700000000"),
            "interactions.csv: column `user_id`: 1 row without an id, at data row 2",
            "allowed: 64-bit integers or text",
        ),
        Mistake(
            "an item twice",
            changed(lambda tables: tables.items.append("5,g1")),
            "items.csv: column `item_id`: 1 row with an id that an earlier row has already",
            "allowed: one row an id",
        ),
        Mistake(
            "a time in words",
            row("interactions", 4, "3,4,yesterday"),
            "1 row with a time that cannot be read, at data row 4",
            "allowed: integer seconds since 1970, timestamps, dates or ISO 8601 text",
        ),
        Mistake(
            "times in milliseconds",
            changed(
                lambda tables: tables.interactions.__setitem__(
                    slice(1, None), [f"{line}000" for line in tables.interactions[1:]]
                )
            ),
            "81 rows beyond the year 2100, which looks like milliseconds",
            "allowed: integer seconds since 1970",
        ),
        Mistake(
            "a label in words",
            with_column("click", "1", "yes", "data.label.column=click"),
            "column `click` (`label`): 1 row that is no number, at data row 4",
            "allowed: numbers from 0 to 1 (data.label.minimum, data.label.maximum)",
        ),
        Mistake(
            "a rating where a click is expected",
            with_column("stars", "1", "5", "data.label.column=stars"),
            "1 row outside the range, at data row 4",
            "(data.label.minimum, data.label.maximum)",
        ),
        Mistake(
            "a weight below 0",
            with_column("weight", "1", "-1"),
            "column `weight`: 1 row outside the range, at data row 4",
            "allowed: finite numbers of at least 0",
        ),
        Mistake(
            "a part of the split that does not exist",
            with_column("split", "train", "dev", "split=given"),
            "1 row with an unknown split, at data row 4",
            "allowed: train, validation, valid, val, test",
        ),
        Mistake(
            "vectors of several lengths",
            instead("items", "items.parquet", vectors),
            "feature `v` of kind vector",
            "vectors must have 2 numbers, as in the training part; row 12 has 1",
        ),
        Mistake(
            "a log of two rows",
            changed(lambda tables: tables.interactions.__delitem__(slice(3, None))),
            "split=temporal: the train part is empty (2 rows in all",
            "every part needs at least one row",
        ),
    ],
}
