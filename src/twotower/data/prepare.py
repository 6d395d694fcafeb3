"""Raw tables to a prepared data set: ids to rows, split, order, encode, checksum, publish.

A prepared folder carries the fingerprint of its inputs and options in its name; `prepare` opens the
folder that is there and whole, and otherwise builds one beside it and renames it into place. One
process at a time builds below a folder; what a killed one left is removed by the next.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from twotower.data.arrange import (
    Arranged,
    Catalogue,
    align,
    arrange,
    catalogue_first,
    entity_rows,
    label_and_split,
    outcomes,
    recommendable,
)
from twotower.data.leakage import FittedOn, check_leaks
from twotower.data.prepared import (
    FEATURES_FOLDER,
    PREPARED_VERSION,
    Prepared,
    checksum,
    open_prepared,
    write_arrow,
    write_manifest,
)
from twotower.data.schema import (
    ITEM_ID,
    SPLIT_NAMES,
    TRAIN,
    USER_ID,
    DataError,
    Source,
    Tables,
)
from twotower.data.split import Splitter

log = logging.getLogger(__name__)

STAGING = ".preparing"

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class TrainingPart:
    """What may be fitted on: rows of the training part, and users and items that occur in it.

    Args:
        interactions: Training rows.
        users: Users with a training row, or None.
        items: Items with a training row, or None.
        context: Columns of the interactions that may be features.
        fitted_on: Record of the training rows; whatever is fitted carries it on.
    """

    interactions: pa.Table
    users: pa.Table | None
    items: pa.Table | None
    context: tuple[str, ...]
    fitted_on: FittedOn


class Encoder(Protocol):
    """Turns raw columns into encoded feature columns; fitted on a `TrainingPart`."""

    @property
    def fitted_on(self) -> FittedOn:
        """On which interactions it was fitted."""

    def encode(self, side: Literal["user", "item", "context"], table: pa.Table) -> dict[str, Array]:
        """Encoded columns of one table, one row a row of the table."""

    def save(self, folder: Path) -> None:
        """Write the fitted state into a folder."""


class EncoderFactory(Protocol):
    """Makes an encoder out of a training part."""

    def fingerprint(self) -> str:
        """Digest of the options of the encoder."""

    def fit(self, part: TrainingPart) -> Encoder:
        """Infer or take the feature spec and fit it."""


def prepare(
    *,
    source: Source,
    splitter: Splitter,
    encoders: EncoderFactory,
    root: Path,
    catalogue: Catalogue = "all",
) -> Prepared:
    """Open the prepared data set of a source, building it when it is missing, stale or damaged.

    Args:
        source: Where the tables come from.
        splitter: Which rows train, validate and test.
        encoders: Fits the features.
        root: Folder of prepared data sets.
        catalogue: ``all`` items of the items table and of the training rows may be recommended, or
            those ``interacted`` with anywhere in the log, held-out rows included, as published
            tables have it.

    Returns:
        The opened data set.

    Raises:
        ValueError: When there is no such catalogue.
        DataError: When a table cannot be used; the root then holds what it held before.
    """
    if catalogue not in get_args(Catalogue):
        raise ValueError(f"catalogue: got {catalogue!r}; allowed: {', '.join(get_args(Catalogue))}")
    fingerprint = _fingerprint(source, splitter, encoders, catalogue)
    folder = root / f"{source.name}-{fingerprint[:12]}"
    is_new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    staging = root / STAGING
    with _alone(root):
        try:
            ready = _up_to_date(folder, fingerprint)
            if ready is not None:
                return ready
            tables = source.read()
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
            staging.mkdir(parents=True)
            _build(staging, tables, splitter, encoders, catalogue, fingerprint)
            if folder.exists():
                shutil.rmtree(folder)
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if is_new and not any(root.iterdir()):
                root.rmdir()
    log.info("Prepared data written: %s", folder)
    return open_prepared(folder, verify=False)


def _up_to_date(folder: Path, fingerprint: str) -> Prepared | None:
    if not folder.exists():
        return None
    try:
        prepared = open_prepared(folder)
        if prepared.manifest["fingerprint"] != fingerprint:
            raise DataError([f"{folder}: belongs to other data or options"])
    except DataError as error:
        log.warning("Preparing again, %s", error)
        return None
    log.info("Prepared data is up to date: %s", folder)
    return prepared


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other process builds below a folder; the lock ends with the process."""
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _fingerprint(
    source: Source, splitter: Splitter, encoders: EncoderFactory, catalogue: str
) -> str:
    options = (repr(splitter), encoders.fingerprint(), catalogue)
    parts = [PREPARED_VERSION, source.fingerprint(), *options]
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _build(
    folder: Path,
    tables: Tables,
    splitter: Splitter,
    encoders: EncoderFactory,
    catalogue: Catalogue,
    fingerprint: str,
) -> None:
    ids, rows = entity_rows(tables)
    labelled = label_and_split(tables, splitter, rows)
    num_catalogue = None
    if ITEM_ID in rows:
        allowed = recommendable(
            catalogue, tables, rows[ITEM_ID], labelled["split"], len(ids[ITEM_ID])
        )
        ids[ITEM_ID], rows[ITEM_ID] = catalogue_first(ids[ITEM_ID], rows[ITEM_ID], allowed)
        num_catalogue = int(allowed.sum())
    ordered = arrange(tables, labelled, rows, len(ids[USER_ID]) if USER_ID in ids else None)
    users = align(USER_ID, ids.get(USER_ID), tables.users)
    items = align(ITEM_ID, ids.get(ITEM_ID), tables.items)
    part = _training_part(tables, ordered, users, items)
    encoder = encoders.fit(part)
    check_leaks({"the feature pipeline": encoder.fitted_on}, part.fitted_on)

    _write_columns(folder / "interactions", ordered.columns)
    _write_columns(folder / "tasks", outcomes(tables, ordered.table))
    _write_columns(folder / "context", encoder.encode("context", ordered.table))
    if ordered.events is not None:
        _write_columns(folder / "events", ordered.events)
    if users is not None:
        _write_entities(folder / "users", users, encoder.encode("user", users))
    if items is not None:
        _write_entities(folder / "items", items, encoder.encode("item", items))
    encoder.save(folder / FEATURES_FOLDER)
    if tables.rejected is not None:
        pq.write_table(tables.rejected, folder / "rejected.parquet")
    counts = _counts(tables, ordered) | {"catalogue": num_catalogue}
    label = None if tables.label is None else asdict(tables.label)
    _write_manifest(folder, counts, label, part.fitted_on, fingerprint)


def _training_part(
    tables: Tables, ordered: Arranged, users: pa.Table | None, items: pa.Table | None
) -> TrainingPart:
    """The training rows in table order: sums over them depend on no held-out row, bit for bit."""
    train = ordered.columns["split"] == TRAIN
    times = ordered.columns.get("timestamps")

    def seen(table: pa.Table | None, rows: str) -> pa.Table | None:
        return (
            None if table is None else table.take(pa.array(np.unique(ordered.columns[rows][train])))
        )

    return TrainingPart(
        interactions=tables.foreseeable.take(pa.array(np.sort(ordered.columns["rows"][train]))),
        users=seen(users, "user_rows"),
        items=seen(items, "item_rows"),
        context=tables.context,
        fitted_on=FittedOn.rows(
            ordered.columns["rows"][train], times[train] if times is not None else None
        ),
    )


def _write_columns(folder: Path, columns: Mapping[str, Array]) -> None:
    folder.mkdir(exist_ok=True)
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)


def _write_entities(folder: Path, table: pa.Table, columns: Mapping[str, Array]) -> None:
    _write_columns(folder, columns)
    write_arrow(folder / "table.arrow", table)


def _counts(tables: Tables, ordered: Arranged) -> dict[str, int | None]:
    split = np.bincount(ordered.columns["split"], minlength=3)
    return {
        "interactions": len(ordered.columns["split"]),
        "negatives": int((~ordered.columns["positive"]).sum()),
        "events": None if ordered.events is None else len(ordered.events["item_rows"]),
        "rejected": 0 if tables.rejected is None else tables.rejected.num_rows,
        **{name: int(count) for name, count in zip(SPLIT_NAMES, split, strict=True)},
    }


def _write_manifest(
    folder: Path,
    counts: Mapping[str, int | None],
    label: Mapping[str, Any] | None,
    training: FittedOn,
    fingerprint: str,
) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "fingerprint": fingerprint,
        "training": asdict(training),
        "label": label,
        "counts": counts,
        "files": {str(path.relative_to(folder)): checksum(path) for path in files},
    }
    write_manifest(folder, manifest)
