"""The prepared data set: a folder of memory-mapped columns with a manifest.

Events (the positives) are stored per user, oldest first, as CSR: the events of user row ``u`` are
``item_rows[offsets[u] : offsets[u + 1]]``. Every interaction knows its `history_end`, so that what
its user had done before it is the slice ``item_rows[offsets[u] : history_end]``: nothing is copied,
and nothing later can leak in. Within a user events are ordered by part first (train, validation,
test), then by time, then by table order; under a temporal or leave-one-out split this is plain time
order, under a given or random split it keeps held-out events out of training histories.

Shape letters: R interactions, E events, U users, N items.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.leakage import FittedOn
from twotower.data.schema import MICROSECONDS, TRAIN, VALIDATION, DataError
from twotower.data.workers import Threads

PREPARED_VERSION = 2
MANIFEST = "manifest.json"
FEATURES_FOLDER = "features"

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """All rows of the log, sorted by (user, part, time, table order).

    Args:
        rows: (R,) int64 position in the user's table.
        split: (R,) int8 part.
        labels: (R,) float32; 1 for every row of a log without labels.
        positive: (R,) bool.
        weights: (R,) float32.
        history_end: (R,) int64 end, in the events, of what the user had done before.
        user_rows: (R,) int32, or None where the table has no users.
        item_rows: (R,) int32, or None.
        timestamps: (R,) int64 microseconds, or None.
        context: Encoded context features, (R, ...) each.
        tasks: (R,) bool by further task, True for a success.
    """

    rows: Array
    split: Array
    labels: Array
    positive: Array
    weights: Array
    history_end: Array
    user_rows: Array | None
    item_rows: Array | None
    timestamps: Array | None
    context: Mapping[str, Array]
    tasks: Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Events:
    """The positives in CSR order.

    Args:
        offsets: (U + 1,) int64.
        item_rows: (E,) int32.
        interactions: (E,) int64 row of the event in `Interactions`.
        split: (E,) int8 part.
    """

    offsets: Array
    item_rows: Array
    interactions: Array
    split: Array

    def part_end(self, part: int) -> npt.NDArray[np.int64]:
        """(U,) absolute end of the events of parts up to and including `part`."""
        inside = np.concatenate([[0], np.cumsum(self.split <= part)])
        counts = inside[self.offsets[1:]] - inside[self.offsets[:-1]]
        return np.asarray(self.offsets[:-1] + counts, np.int64)


@dataclass(frozen=True, kw_only=True)
class Entities:
    """All users or all items.

    Args:
        ids: (N,) external ids, int64 or string, as they came.
        table: (N) rows of the user's table; null where the table lacks the entity.
        columns: Encoded features, (N, ...) each.
    """

    ids: pa.Array
    table: pa.Table
    columns: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An opened prepared data set.

    Args:
        folder: Where it lies.
        manifest: Counts, cut, label, fingerprint and checksums.
        interactions: The log.
        events: The positives, or None where the log has no users or no items.
        users: All users, or None.
        items: All items, or None; those that may be recommended come first.
    """

    folder: Path
    manifest: Mapping[str, Any]
    interactions: Interactions
    events: Events | None
    users: Entities | None
    items: Entities | None

    @property
    def training(self) -> FittedOn:
        """Which rows the training part is made of."""
        return FittedOn(**self.manifest["training"])

    @property
    def num_catalogue(self) -> int:
        """How many items may be recommended, C: the item rows 0 to C - 1."""
        return int(self.manifest["counts"]["catalogue"] or 0)

    @property
    def has_impressions(self) -> bool:
        """Whether the log holds rows that did not succeed."""
        return bool(self.manifest["counts"]["negatives"])

    @cached_property
    def event_times(self) -> Array | None:
        """(E,) int64 times of the events in whole seconds since 1970 UTC, or None without times."""
        if self.events is None or self.interactions.timestamps is None:
            return None
        return np.asarray(self.interactions.timestamps[self.events.interactions] // MICROSECONDS)

    def require_events(self) -> tuple[Events, Entities, Entities]:
        """The events with their users and items.

        Raises:
            DataError: When the log has no users or no items: only the ranker can be trained on it.
        """
        if self.events is None or self.users is None or self.items is None:
            raise DataError(
                ["retrieval needs `user_id` and `item_id` in the interactions; a flat "
"click table can only train the ranker: stages=[ranking]"]
            )  # fmt: skip
        return self.events, self.users, self.items

    def train_events(self) -> Array:
        """(E',) positions of the training events in `events`."""
        events, _, _ = self.require_events()
        return np.flatnonzero(events.split == TRAIN)


def open_prepared(folder: Path, *, verify: bool = True) -> Prepared:
    """Open a prepared data set; columns are memory-mapped.

    Args:
        folder: The folder that `prepare` wrote.
        verify: Compare every file with its checksum first.

    Raises:
        DataError: When the folder is no prepared data set of this version, or a file was changed.
    """
    manifest = read_manifest(folder)
    if verify:
        verify_files(folder, manifest["files"])
    log: dict[str, Any] = dict.fromkeys(("user_rows", "item_rows", "timestamps"))
    log |= _arrays(folder / "interactions")
    has_events = manifest["counts"]["events"] is not None
    return Prepared(
        folder=folder,
        manifest=manifest,
        interactions=Interactions(
            **log,
            context=_arrays(folder / "context"),
            tasks=_arrays(folder / "tasks"),
        ),
        events=Events(**_arrays(folder / "events")) if has_events else None,
        users=_entities(folder / "users"),
        items=_entities(folder / "items"),
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared data set.

    Raises:
        DataError: When there is none, it is of another version, or it was changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        hint = f"(no {MANIFEST}); run `twotower prepare`"
        raise DataError([f"{folder}: no prepared data set here {hint}"])
    try:
        manifest: dict[str, Any] = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):  # no JSON, no text or no mapping
        manifest = {"version": PREPARED_VERSION}
    if manifest.get("version") != PREPARED_VERSION:
        found = f"version {manifest.get('version')!r}, this release reads {PREPARED_VERSION}"
        raise DataError([f"{path}: {found}; delete the folder"])
    if manifest.pop("checksum", None) != _digest(manifest):
        raise DataError([_changed(path)])
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a prepared data set, with its own checksum in it."""
    document = {"version": PREPARED_VERSION, **manifest}
    document["checksum"] = _digest(document)
    (folder / MANIFEST).write_text(json.dumps(document, indent=1))


def _digest(document: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(document, sort_keys=True).encode(), digest_size=16).hexdigest()


def _changed(path: Path) -> str:
    return f"{path}: changed since it was written; delete the folder to prepare the data again"


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Compare files with their checksums.

    Raises:
        DataError: Names every file that is missing or was changed.
    """

    def problem_of(name: str) -> str | None:
        path = folder / name
        if not path.is_file():
            return f"{path}: missing; delete the folder to prepare the data again"
        return None if checksum(path) == files[name] else _changed(path)

    problems = [problem for problem in Threads().map(problem_of, files) if problem is not None]
    if problems:
        raise DataError(problems)


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, which processors have instructions for."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def history_before(prepared: Prepared, part: int) -> npt.NDArray[np.int64]:
    """(U,) where the history of every user ends when `part` is evaluated."""
    events, _, _ = prepared.require_events()
    return events.part_end(TRAIN if part == VALIDATION else VALIDATION)


def _map(path: Path) -> Array:
    small = path.stat().st_size <= mmap.PAGESIZE  # an empty array cannot be mapped
    array: Array = np.load(path, mmap_mode=None if small else "r", allow_pickle=False)
    return array


def _arrays(folder: Path) -> dict[str, Array]:
    return {path.stem: _map(path) for path in sorted(folder.glob("*.npy"))}


def _entities(folder: Path) -> Entities | None:
    if not folder.is_dir():
        return None
    table = read_arrow(folder / "table.arrow")
    ids = table.column(0).combine_chunks()
    return Entities(ids=ids, table=table, columns=_arrays(folder))


def read_arrow(path: Path) -> pa.Table:
    """A memory-mapped Arrow file as a table."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table as an Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
