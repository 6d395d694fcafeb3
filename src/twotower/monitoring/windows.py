"""A window of logs, read and checked: what monitoring is given is what it thinks it is.

A window is a file, a pattern or a folder of interactions. It is read as training data is (names,
types, all problems at once) and must also lie in the past, not hold the same rows twice, and have
labels where training had them. Whatever is wrong is one `DataError`, never a window without drift.

Rows that repeat an earlier row in every column are counted by a hash of the row; on a long window
only among the rows whose hash falls into a fixed share of all hashes, which keeps equal rows
together and the memory bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.naming import INTERACTIONS, OnBadRows, Reading
from twotower.data.pieces import list_pieces
from twotower.data.schema import ITEM_ID, LABEL, MICROSECONDS, TIMESTAMP, USER_ID, DataError, Label
from twotower.data.validate import build_tables
from twotower.data.workers import Budget, Scratch, Threads, WithBar
from twotower.monitoring.row_hash import row_hashes

MAX_HASHES = 1 << 22  # that are kept to count repeated rows; 32 MiB

Hashes = npt.NDArray[np.uint64]
Visit = Callable[[int, pa.Table], None]  # is given the number of a piece and its rows


@dataclass(frozen=True, kw_only=True)
class Window:
    """The interactions of a stretch of time.

    Args:
        interactions: Rows in canonical form (`twotower.data.schema`); a label that has not come yet
            is null.
        start: Time of the earliest row, epoch seconds UTC; 0 when the log has no times.
        end: The second after the latest row.
    """

    interactions: pa.Table
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class WindowForm:
    """What a window must look like.

    Args:
        columns: Canonical name to the name in the files, as in ``data.columns``.
        label: Which column says how an impression ended, or None.
        required: Columns that must be there beside the label: ids, time, context of the features.
        id_types: Type of the ids the bundle knows, by canonical name; a window with others would
            seem to hold nothing but new ones.
        on_bad_rows: ``fail``, or ``quarantine`` to go on without rows that cannot be used.
        max_repeated: Largest share of rows that repeat an earlier row in every column.
        max_ahead_seconds: How far beyond the present a time may lie, for clocks that differ.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    label: Label | None = None
    required: Sequence[str] = (USER_ID, ITEM_ID, TIMESTAMP)
    id_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    on_bad_rows: OnBadRows = "fail"
    max_repeated: float = 0.01
    max_ahead_seconds: int = 3600

    def __post_init__(self) -> None:
        if not 0 <= self.max_repeated < 1:
            raise ValueError(f"max_repeated: a share from 0 and below 1, got {self.max_repeated}")


@dataclass(frozen=True, kw_only=True)
class Span:
    """What is known of a window once all its rows were seen.

    Args:
        start: See `Window`.
        end: See `Window`.
        num_rows: Rows that can be used.
        num_rejected: Rows that were set aside.
    """

    start: int
    end: int
    num_rows: int
    num_rejected: int


def read_window(
    location: str, form: WindowForm, *, now: float | None = None, progress: bool = False
) -> Window:
    """Read and check a window; all rows are in memory.

    Args:
        location: File, pattern or folder; Parquet, CSV or Arrow.
        form: What it must look like.
        now: The present, epoch seconds; by the clock when None.
        progress: Whether long reading shows a bar.

    Raises:
        DataError: Lists everything that is wrong.
    """
    tables: dict[int, pa.Table] = {}

    def visit(number: int, rows: pa.Table) -> None:
        tables[number] = rows

    span = scan_window(location, form, visit, now=now, progress=progress)
    rows = pa.concat_tables([tables[number] for number in sorted(tables)])
    return Window(interactions=rows, start=span.start, end=span.end)


def scan_window(
    location: str,
    form: WindowForm,
    visit: Visit,
    *,
    now: float | None = None,
    rows_per_block: int = Budget.rows_per_block,
    progress: bool = False,
) -> Span:
    """Hand on the rows of a window piece by piece, and check them; memory is bounded.

    Args:
        location: File, pattern or folder; Parquet, CSV or Arrow.
        form: What it must look like.
        visit: Is given every piece with its number, from several threads; what it made of them is
            worth nothing when this function raises.
        now: The present, epoch seconds; by the clock when None.
        rows_per_block: Rows that are read together.
        progress: Whether long reading shows a bar.

    Raises:
        DataError: Lists everything that is wrong.
    """
    seen = _Seen()

    def sink(number: int, rows: pa.Table) -> None:
        seen.add(rows)
        visit(number, rows)

    reading = Reading(
        columns={name: own for name, own in form.columns.items() if own != name},
        label=form.label,
        context=(),
        on_bad_rows=form.on_bad_rows,
    )
    with TemporaryDirectory() as folder:
        budget = Budget(rows_per_block=rows_per_block)
        workers = WithBar(workers=Threads(), text="reading") if progress else Threads()
        scratch = Scratch(folder=Path(folder), workers=workers, budget=budget)
        raw = list_pieces(location, scratch)
        tables = build_tables(
            {INTERACTIONS: raw}, reading, workers=workers, sink=sink, label_may_lack=True
        )
    present = time.time() if now is None else now
    problems = [
        *_missing_columns(tables.interactions.schema, form),
        *_other_ids(tables.interactions.schema, form),
        *seen.problems(form, present),
    ]
    if problems:
        raise DataError([f"{location}: {problem}" for problem in problems])
    return Span(
        start=seen.start // MICROSECONDS,
        end=seen.end // MICROSECONDS + 1 if seen.end else 0,
        num_rows=seen.num_rows,
        num_rejected=0 if tables.rejected is None else tables.rejected.num_rows,
    )


def _missing_columns(schema: pa.Schema, form: WindowForm) -> list[str]:
    missing = [name for name in form.required if name not in schema.names]
    if not missing:
        return []
    own = ", ".join(f"`{form.columns.get(name, name)}`" for name in missing)
    return [
        f"column {own} is missing, which the bundle was trained with; available: "
        f"{', '.join(schema.names)}; if it has another name, say columns.<name>=<its name>"
    ]


def _other_ids(schema: pa.Schema, form: WindowForm) -> list[str]:
    return [
        f"column `{name}` holds ids of type {schema.field(name).type}; allowed: {kind}, as in the "
        "bundle"
        for name, kind in form.id_types.items()
        if name in schema.names and schema.field(name).type != kind
    ]


class _Seen:
    """What the rows of a window tell about it; pieces come from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.num_rows = 0
        self.num_labels: int | None = None  # None: no such column
        self.start, self.end = 0, 0
        self._hashes: Hashes = np.empty(0, np.uint64)  # sorted
        self._shift = 0  # only hashes that end in so many zero bits are kept

    def add(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        hashes = row_hashes(rows)
        with self._lock:
            first = self.num_rows == 0
            self.num_rows += rows.num_rows
            if LABEL in rows.column_names:
                column = rows.column(LABEL)
                self.num_labels = (self.num_labels or 0) + len(column) - column.null_count
            if TIMESTAMP in rows.column_names:
                times = pc.min_max(rows.column(TIMESTAMP)).as_py()
                self.start = times["min"] if first else min(self.start, times["min"])
                self.end = max(self.end, times["max"])
            self._keep(hashes)

    def _keep(self, hashes: Hashes) -> None:
        while True:
            mask = np.uint64((1 << self._shift) - 1)
            kept = hashes[(hashes & mask) == 0]
            both = np.concatenate([self._hashes[(self._hashes & mask) == 0], kept])
            if len(both) <= MAX_HASHES:
                break
            self._shift += 1
        self._hashes = np.sort(both)

    def _repeated(self) -> float:
        """Share of the rows whose hash an earlier row has already."""
        again = int((self._hashes[1:] == self._hashes[:-1]).sum())
        return again / max(1, len(self._hashes))

    def problems(self, form: WindowForm, now: float) -> list[str]:
        """What is wrong with the window as a whole."""
        found = []
        if form.label is not None and self.num_labels == 0:
            found.append(
                f"column `{form.label.column}`: all {self.num_rows} labels are null; allowed: "
                "labels, of which some may not have come yet"
            )
        if self.end > (now + form.max_ahead_seconds) * MICROSECONDS:
            found.append(
                f"the latest time is {_clock(self.end / MICROSECONDS)}, and now it is "
                f"{_clock(now)}; allowed: at most {form.max_ahead_seconds} seconds ahead "
                "(max_ahead_seconds)"
            )
        share = self._repeated()
        if self.end and share > form.max_repeated:  # without a time, equal rows prove nothing
            found.append(
                f"{share:.1%} of the rows repeat an earlier row in every column; allowed: "
                f"{form.max_repeated:.1%} (max_repeated); are the same files there twice?"
            )
        return found


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
