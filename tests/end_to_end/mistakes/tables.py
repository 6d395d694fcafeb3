"""Mistakes in the files of one's own: names, formats, encodings."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.end_to_end.mistakes.mistake import Mistake, Place
from tests.end_to_end.mistakes.shop import Tables

Words = Callable[[Place], Sequence[str]]
SPLIT_OF = {"interactions": 1, "users": 2, "items": 3}


def changed(spoil: Callable[[Tables], object], *further: str) -> Words:
    """Good tables that are spoiled before they are written."""

    def words(place: Place) -> list[str]:
        tables = Tables()
        spoil(tables)
        return ["prepare", *tables.write(), *further, "quiet=true"]

    return words


def good(*further: str) -> Words:
    """Good tables, and words that are wrong."""
    return changed(lambda tables: None, *further)


def instead(table: str, name: str, write: Callable[[Path], object]) -> Words:
    """Another file than the good one of a table."""

    def words(place: Place) -> list[str]:
        given = Tables().write()
        write(Path(name))
        given[SPLIT_OF[table]] = f"data.{table}={name}"
        return ["prepare", *given, "quiet=true"]

    return words


def log_of_three(path: Path, users: Sequence[object] = (1, 2, 3)) -> None:
    pq.write_table(pa.table({"user_id": users, "item_id": [1, 2, 3], "timestamp": [1, 2, 3]}), path)


def cut(path: Path) -> None:
    log_of_three(path)
    path.write_bytes(path.read_bytes()[:-40])


def half_of_a_zipped_log(path: Path) -> None:
    zipped = gzip.compress(Path("interactions.csv").read_bytes())
    path.write_bytes(zipped[: len(zipped) // 2])


def several_formats(folder: Path) -> None:
    folder.mkdir()
    shutil.copy("interactions.csv", folder / "a.csv")
    log_of_three(folder / "b.parquet")


def two_types(folder: Path) -> None:
    folder.mkdir()
    log_of_three(folder / "a.parquet", ["a", "b", "c"])
    log_of_three(folder / "b.parquet")


def vectors(path: Path) -> None:
    pq.write_table(pa.table({"item_id": range(12), "v": [[1.0, 2.0]] * 11 + [[1.0]]}), path)


def text_ids(path: Path) -> None:
    pq.write_table(pa.table({"item_id": [f"i{n}" for n in range(12)]}), path)


def replaced(table: str, old: str, new: str, rows: slice = slice(None)) -> Words:
    """A good table in some of whose rows a text is replaced."""

    def spoil(tables: Tables) -> None:
        lines = getattr(tables, table)
        lines[rows] = [line.replace(old, new) for line in lines[rows]]

    return changed(spoil)


def header(table: str, line: str) -> Words:
    """Other names of columns."""
    return changed(lambda tables: getattr(tables, table).__setitem__(0, line))


def with_column(name: str, good_value: str, bad_value: str, *further: str) -> Words:
    """A further column of the interactions, wrong in the fourth data row."""

    def spoil(tables: Tables) -> None:
        first, *rows = tables.interactions
        values = [good_value] * len(rows)
        values[3] = bad_value
        lines = [f"{row},{value}" for row, value in zip(rows, values, strict=True)]
        tables.interactions = [f"{first},{name}", *lines]

    return changed(spoil, *further)


def row(table: str, place: int, line: str) -> Words:
    """One row is another one."""
    return changed(lambda tables: getattr(tables, table).__setitem__(place, line))


def movielens(write: Callable[[Path], object]) -> Words:
    def words(place: Place) -> list[str]:
        write(Path("ml.zip"))
        return ["prepare", "data=movielens", "data.archive=ml.zip", "quiet=true"]

    return words


MISTAKES = {
    "files": [
        Mistake(
            "a file's name is misspelt",
            instead("interactions", "interaction.csv", lambda path: None),
            "interaction.csv: no such file or folder",
            "did you mean interactions.csv?",
        ),
        Mistake(
            "the folder is not there",
            instead("interactions", "logs/2024", lambda path: None),
            "logs/2024: no such file or folder",
            "there is no folder logs",
        ),
        Mistake(
            "the folder is empty",
            instead("interactions", "logs", lambda path: path.mkdir()),
            "logs: a folder without a table",
            "allowed: .parquet, .csv",
        ),
        Mistake(
            "a spreadsheet",
            instead("interactions", "log.xlsx", lambda path: path.write_bytes(b"PK\3\4")),
            "log.xlsx: not a supported format",
            "allowed: .parquet, .csv",
        ),
        Mistake(
            "CSV that is called Parquet",
            instead(
                "items",
                "items.parquet",
                lambda path: path.write_bytes(Path("items.csv").read_bytes()),
            ),
            "items.parquet: cannot be read as parquet",
            "this is not a parquet file",
        ),
        Mistake(
            "Parquet that is called CSV",
            instead("interactions", "log.csv", log_of_three),
            "log.csv: cannot be read as csv",
            "save it as text in UTF-8",
        ),
        Mistake(
            "Parquet whose end is missing",
            instead("interactions", "log.parquet", cut),
            "log.parquet: cannot be read as parquet",
            "corrupted",
        ),
        Mistake(
            "half of a zipped file",
            instead("interactions", "log.csv.gz", half_of_a_zipped_log),
            "log.csv.gz: cannot be read as csv",
            "Truncated compressed stream",
        ),
        Mistake(
            "a file of no bytes",
            instead("items", "no_items.csv", lambda path: path.write_text("")),
            "no_items.csv: the file is empty",
            "a header and at least one row are needed",
        ),
        Mistake(
            "a header and no rows",
            changed(lambda tables: tables.users.__delitem__(slice(1, None))),
            "users.csv: the table is empty",
            "at least one row is needed",
        ),
        Mistake(
            "text of Windows",
            instead(
                "items",
                "titles.csv",
                lambda path: path.write_bytes("item_id,title\n0,caf\xe9\n".encode("latin-1")),
            ),
            "titles.csv: cannot be read as csv: byte 0xe9 at place 19 is no UTF-8",
            "save it as text in UTF-8",
        ),
        Mistake(
            "text in UTF-16",
            instead("items", "u.csv", lambda path: path.write_bytes("item_id\n".encode("utf-16"))),
            "u.csv: cannot be read as csv: byte 0xff",
            "save it as text in UTF-8",
        ),
        Mistake(
            "cells parted by semicolons",
            replaced("users", ",", ";"),
            "users.csv: column `user_id` is missing; available: user_id;country",
            "the cells seem to be parted by ';'; allowed: commas",
        ),
        Mistake(
            "a row with too many cells",
            row("items", 5, "4,g0,g1"),
            "items.csv: 1 row with more or fewer cells than the header, at data row 5",
            "allowed: 2 cells a row",
        ),
        Mistake(
            "files of several formats in a folder",
            instead("interactions", "logs", several_formats),
            "logs: files of several formats",
            "allowed: one format a table",
        ),
        Mistake(
            "files that disagree about a type",
            instead("interactions", "logs", two_types),
            "logs: its files disagree about a column",
            "string vs int64",
        ),
        Mistake(
            "an archive that is none",
            movielens(lambda path: path.write_bytes(b"hello")),
            "ml.zip",
            "not a readable zip archive or folder",
        ),
        Mistake(
            "another archive",
            movielens(lambda path: path.mkdir()),
            "ml.zip: must hold one of ratings.dat (ml-1m) and ratings.csv (the others)",
            "found neither",
        ),
    ],
}
