"""The user's own tables as a source: interactions, users and items in Parquet, CSV or Arrow."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from twotower.data.files import find_files, read_raw
from twotower.data.naming import INTERACTIONS, ITEMS, USERS, OnBadRows, Reading
from twotower.data.pieces import list_pieces
from twotower.data.raw_table import RawPieces, RawTable
from twotower.data.schema import DataError, Label, Tables
from twotower.data.spill import write_block
from twotower.data.validate import build_tables
from twotower.data.workers import Budget, Scratch, Threads


class TableSource:
    """Reads interactions and, where there are any, users and items from files.

    Args:
        interactions: File, pattern or folder of the interactions.
        users: The same for the users, one row a user.
        items: The same for the items, one row an item.
        columns: Canonical name to the name in the files, e.g. ``{"user_id": "visitorid"}``. A users
            or items table may also use the canonical name. A name that stands for itself says
            nothing: the column may be missing where it is optional.
        label: Which column says how an impression ended; None when every row is a positive.
        context: Columns of the interactions that are known at request time.
        on_bad_rows: ``fail``, or ``quarantine`` to go on without rows that have a null id or a bad
            time, label or weight; they are returned as `Tables.rejected`.
        name: Short name of the data set.

    Raises:
        ValueError: When `on_bad_rows` is something else.
    """

    def __init__(
        self,
        *,
        interactions: str,
        users: str | None = None,
        items: str | None = None,
        columns: dict[str, str] | None = None,
        label: Label | None = None,
        context: list[str] | None = None,
        on_bad_rows: OnBadRows = "fail",
        name: str = "tables",
    ) -> None:
        if on_bad_rows not in get_args(OnBadRows):
            allowed = ", ".join(get_args(OnBadRows))
            raise ValueError(f"data.on_bad_rows: got {on_bad_rows!r}; allowed: {allowed}")
        locations = {INTERACTIONS: interactions, USERS: users, ITEMS: items}
        self._locations = {kind: at for kind, at in locations.items() if at is not None}
        self._reading = Reading(
            columns={name: own for name, own in (columns or {}).items() if own != name},
            label=label,
            context=tuple(context or ()),
            on_bad_rows=on_bad_rows,
        )
        self._name = name

    @property
    def name(self) -> str:
        """Short name, used for folders."""
        return self._name

    def fingerprint(self) -> str:
        """Digest of the contents of all files and of the options; where files lie does not count.

        A file that is not there counts as such: `read` reports it with all other problems.
        """
        digest = blake2b(json.dumps(asdict(self._reading), sort_keys=True).encode())
        for kind, location in self._locations.items():
            try:
                files = find_files(location)
            except DataError as error:
                digest.update(json.dumps([kind, error.problems]).encode())
                continue
            contents = Threads().map(_content, files.paths)
            for path, content in zip(files.paths, contents, strict=True):
                name = path.relative_to(files.base).as_posix()
                digest.update(json.dumps([kind, name]).encode())
                digest.update(content)
        return digest.hexdigest()

    def read(self) -> Tables:
        """Read, map and check the tables; all rows are in memory.

        Raises:
            DataError: Lists everything that is wrong with any of the tables.
        """
        with TemporaryDirectory() as folder:
            scratch = Scratch(folder=Path(folder), workers=Threads(), budget=Budget())
            return build_tables(self._raw(scratch), self._reading)

    def stream(self, scratch: Scratch) -> Tables:
        """See `StreamedSource`."""
        sink = partial(write_block, scratch.folder)
        return build_tables(self._raw(scratch), self._reading, workers=scratch.workers, sink=sink)

    def _raw(self, scratch: Scratch) -> dict[str, RawTable | RawPieces | DataError]:
        raw: dict[str, RawTable | RawPieces | DataError] = {}
        for kind, location in self._locations.items():
            try:
                is_log = kind == INTERACTIONS
                raw[kind] = list_pieces(location, scratch) if is_log else read_raw(location)
            except DataError as error:
                raw[kind] = error
        return raw


def _content(path: Path) -> bytes:
    with path.open("rb") as stream:
        return file_digest(stream, "blake2b").digest()


def declared_label(
    *,
    column: str | None = None,
    minimum: float = 0.0,
    maximum: float = 1.0,
    positive_from: float = 1.0,
    tasks: dict[str, float] | None = None,
) -> Label | None:
    """The label as YAML declares it; without a column there is none and every row is a positive.

    Args:
        column: Name of the column in the user's table.
        minimum: Smallest allowed value.
        maximum: Largest allowed value.
        positive_from: Smallest value of a positive.
        tasks: Columns with further outcomes, and the smallest value that is a success of each.

    Raises:
        ValueError: When a range or a further outcome is given without a column, or cannot be.
    """
    if column is not None:
        return Label(
            column=column,
            minimum=minimum,
            maximum=maximum,
            positive_from=positive_from,
            tasks=tasks or {},
        )
    if tasks:
        raise ValueError(
            f"label: further outcomes are given, {', '.join(tasks)}, and none that is ranked by; "
            "name it with data.label.column=<name>"
        )
    if (minimum, maximum, positive_from) != (Label.minimum, Label.maximum, Label.positive_from):
        raise ValueError(
            "label: a range is given and no column; name it with data.label.column=<name>"
        )
    return None
