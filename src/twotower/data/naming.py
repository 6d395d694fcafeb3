"""Which column of a user's table is which, and which are missing.

Canonical names are mapped by ``data.columns`` and, for the label, by ``data.label.column``; a table
that has the canonical name already needs no mapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from twotower.data.raw_table import RawPieces, RawTable
from twotower.data.schema import (
    ITEM_ID,
    LABEL,
    POSITION,
    RESERVED_COLUMNS,
    SPLIT,
    TIMESTAMP,
    TITLE,
    USER_ID,
    WEIGHT,
    Label,
)

OnBadRows = Literal["fail", "quarantine"]

INTERACTIONS, USERS, ITEMS = "interactions", "users", "items"
OWN_COLUMNS: dict[str, tuple[str, ...]] = {
    INTERACTIONS: (*RESERVED_COLUMNS, POSITION),
    USERS: (USER_ID,),
    ITEMS: (ITEM_ID, TITLE),
}
MAPPABLE = (USER_ID, ITEM_ID, TIMESTAMP, WEIGHT, SPLIT, POSITION, TITLE)
UNKNOWN_AT_REQUEST = (LABEL, WEIGHT, SPLIT)
OTHER_MARKS = (";", "\t", "|")  # between the cells of what is no CSV


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How tables are to be read.

    Args:
        columns: Canonical name to the user's name of a column.
        label: Which column says how an impression ended; None when every row is a positive.
        context: Columns of the interactions that are known at request time.
        on_bad_rows: Whether rows that cannot be used are an error or set aside.
    """

    columns: Mapping[str, str]
    label: Label | None
    context: tuple[str, ...]
    on_bad_rows: OnBadRows

    @property
    def tasks(self) -> Mapping[str, float]:
        """Columns with further outcomes, and the smallest value that is a success of each."""
        return {} if self.label is None else self.label.tasks


def find_columns(kind: str, names: Sequence[str], reading: Reading) -> dict[str, str]:
    """Canonical name to the name in the file, for the canonical columns that are there.

    Args:
        kind: interactions, users or items.
        names: Columns of the file.
        reading: The mapping and the label.
    """
    sources = {}
    for canonical in OWN_COLUMNS[kind]:
        mapped = reading.columns.get(canonical, canonical)
        if canonical == LABEL:
            mapped = reading.label.column if reading.label else ""
        elif mapped not in names:
            mapped = canonical
        if mapped in names:
            sources[canonical] = mapped
    return sources


def required_columns(kind: str, asked: frozenset[str], reading: Reading) -> set[str]:
    """Canonical columns a table must have; a log with a label may lack what no other table needs.

    Args:
        kind: interactions, users or items.
        asked: Kinds of all tables of the data set.
        reading: Whether there is a label.
    """
    if kind != INTERACTIONS:
        return {USERS: {USER_ID}, ITEMS: {ITEM_ID}}[kind]
    joined = {name for kind, name in ((USERS, USER_ID), (ITEMS, ITEM_ID)) if kind in asked}
    return joined | ({LABEL} if reading.label else {USER_ID, ITEM_ID, TIMESTAMP})


def missing_columns(
    kind: str, raw: RawTable | RawPieces, required: set[str], reading: Reading
) -> Iterator[str]:
    """What is missing in a table, and a label that nobody declared.

    Args:
        kind: interactions, users or items.
        raw: The table.
        required: Canonical columns it must have; a `split` stands in for a `timestamp`.
        reading: The mapping and the label.
    """
    label, names = reading.label, raw.data.column_names
    there = find_columns(kind, names, reading)
    for canonical in RESERVED_COLUMNS:
        if canonical not in required or canonical in there:
            continue
        if canonical == TIMESTAMP and SPLIT in there:
            continue
        option, name = f"columns.{canonical}", reading.columns.get(canonical, canonical)
        if canonical == LABEL and label:
            option, name = "label.column", label.column
        hint = f"if it is one of these, say data.{option}=<name>"
        if len(names) == 1 and (found := [mark for mark in OTHER_MARKS if mark in names[0]]):
            hint = f"the cells seem to be parted by {found[0]!r}; allowed: commas"
        yield f"{raw.location}: column `{name}` is missing; available: {', '.join(names)}; {hint}"
    if kind == INTERACTIONS and label is None and LABEL in names:
        yield (
            f"{raw.location}: there is a column `{LABEL}`, but no label is declared, and every row "
            f"would count as a positive; say data.label.column={LABEL} (and data.label.minimum, "
            "maximum, positive_from) or leave the column out"
        )


def broken_mappings(
    present: Mapping[str, RawTable | RawPieces], reading: Reading
) -> dict[str, str]:
    """Entries of the mapping that lead nowhere: canonical name to what is wrong."""
    problems = {}
    for canonical, source in reading.columns.items():
        option = f"data.columns.{canonical}={source}"
        tables = [t for kind, t in present.items() if canonical in OWN_COLUMNS[kind]]
        if canonical not in MAPPABLE:
            hint = "; the label is named by data.label.column" if canonical == LABEL else ""
            allowed = ", ".join(MAPPABLE)
            problems[canonical] = f"{option}: cannot be mapped{hint}; allowed: {allowed}"
        elif not any(source in table.data.column_names for table in tables):
            there = [f"{t.location} has {', '.join(t.data.column_names)}" for t in tables]
            problems[canonical] = (
                f"{option}: no column `{source}`; {'; '.join(there) or 'no table that needs it'}"
            )
    return problems


def context_problems(location: str, names: Sequence[str], reading: Reading) -> Iterator[str]:
    """Context columns that are missing or cannot be known at request time.

    Args:
        location: Where the interactions are, for messages.
        names: Columns of the interactions in canonical form.
        reading: The context columns and the label.
    """
    label = reading.label.column if reading.label else LABEL
    for name in reading.context:
        if name in (*UNKNOWN_AT_REQUEST, label, *reading.tasks):
            yield f"data.context: `{name}` is not known at request time and cannot be a feature"
        elif name not in names:
            available = [c for c in names if c not in UNKNOWN_AT_REQUEST]
            yield (
                f"{location}: the context column `{name}` is missing; allowed in data.context: "
                f"{', '.join(available)}"
            )


def task_problems(raw: RawTable | RawPieces, reading: Reading) -> Iterator[str]:
    """Columns with further outcomes that the interactions do not have."""
    names = raw.data.column_names
    for name in reading.tasks:
        if name not in names:
            yield (
                f"{raw.location}: the column `{name}` of data.label.tasks is missing; available: "
                f"{', '.join(names)}"
            )
