"""A spilled log to the files of a prepared data set: parts, features, order, columns."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from twotower.data.arrange import DIVIDED, Buckets, Division, Keys, Sorting
from twotower.data.column_file import ColumnFile, save_array
from twotower.data.entities import Catalogue, align, catalogue_first, recommendable
from twotower.data.leakage import FittedOn, RowRecord, check_leaks
from twotower.data.prepared import FEATURES_FOLDER, write_arrow
from twotower.data.schema import (
    ITEM_ID,
    LABEL,
    SPLIT_NAMES,
    TIMESTAMP,
    TRAIN,
    USER_ID,
    WEIGHT,
)
from twotower.data.spill import IDS, Log, LogBlock
from twotower.data.split import Splitter
from twotower.data.training_part import Encoder, EncoderFactory, TrainingPart, TrainingRows
from twotower.data.workers import Scratch, Threads

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What the manifest says of a folder."""

    counts: Mapping[str, int | None]
    label: Mapping[str, Any] | None
    training: FittedOn
    checksums: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What one look at the parts of all rows tells.

    Args:
        training: Record of the training rows.
        train_users: (U,) bool, users of the training rows, or None.
        train_items: (N,) bool, items of the training rows, or None.
        keys: What buckets are ranges of.
        rows_of_key: (K,) rows of every key.
        counts: (3,) rows of every part.
    """

    training: FittedOn
    train_users: npt.NDArray[np.bool_] | None
    train_items: npt.NDArray[np.bool_] | None
    keys: Keys
    rows_of_key: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def build(
    folder: Path,
    interactions: Log,
    splitter: Splitter,
    encoders: EncoderFactory,
    catalogue: Catalogue,
    scratch: Scratch,
) -> Built:
    """Write a prepared data set but for its manifest.

    Args:
        folder: Where to; it is empty.
        interactions: The log with all tables.
        splitter: Which rows train, validate and test.
        encoders: Fits the features.
        catalogue: Which items may be recommended.
        scratch: Where intermediate files lie and who does the work.

    Raises:
        DataError: When the log cannot be split, or a feature cannot be fitted.
    """
    tables, ids = interactions.tables, dict(interactions.ids)
    parts = split_log(interactions, splitter)
    users = align(USER_ID, ids.get(USER_ID), tables.users)
    num_catalogue = item_rows = None
    in_training = parts.train_items
    if in_training is not None:
        allowed = recommendable(catalogue, interactions, in_training)
        order, item_rows = catalogue_first(allowed)
        ids[ITEM_ID], in_training = ids[ITEM_ID].take(pa.array(order)), in_training[order]
        num_catalogue = int(allowed.sum())
    items = align(ITEM_ID, ids.get(ITEM_ID), tables.items)
    part = TrainingPart(
        interactions=TrainingRows(log=interactions),
        users=_seen(users, parts.train_users),
        items=_seen(items, in_training),
        context=tables.context,
        fitted_on=parts.training,
    )
    encoder = encoders.fit(part)
    check_leaks({"the feature pipeline": encoder.fitted_on}, part.fitted_on)
    division = Division(
        keys=parts.keys,
        buckets=Buckets.of(parts.rows_of_key, scratch.budget.rows_per_bucket),
        item_rows=item_rows,
        names=_carried(interactions, encoder),
    )
    counts = sum(scratch.workers.map(division.divide, range(len(interactions.lengths))))
    for done in scratch.folder.iterdir():
        if not done.name.startswith(DIVIDED):
            done.unlink()
    starts = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(counts, axis=0)])
    sorting = Sorting(division=division, encoder=encoder, ids=ids, starts=starts)
    num_rows, num_positives = starts[-1].tolist()
    checksums = _write_buckets(folder, sorting, scratch)
    if users is not None:
        _write_entities(folder / "users", users, encoder.encode("user", users))
    if items is not None:
        _write_entities(folder / "items", items, encoder.encode("item", items))
    encoder.save(folder / FEATURES_FOLDER)
    if tables.rejected is not None:
        pq.write_table(tables.rejected, folder / "rejected.parquet")
    return Built(
        counts={
            "interactions": num_rows,
            "negatives": num_rows - num_positives,
            "events": num_positives if sorting.has_events else None,
            "rejected": 0 if tables.rejected is None else tables.rejected.num_rows,
            **dict(zip(SPLIT_NAMES, parts.counts.tolist(), strict=True)),
            "catalogue": num_catalogue,
        },
        label=None if tables.label is None else asdict(tables.label),
        training=part.fitted_on,
        checksums=checksums,
    )


def split_log(log: Log, splitter: Splitter) -> Parts:
    """Give every row its part, and take down what follows from the parts."""
    keys, record = Keys.of(log), RowRecord()
    counts = np.zeros(len(SPLIT_NAMES), np.int64)
    seen = {name: np.zeros(len(ids), bool) for name, ids in log.ids.items()}
    rows_of_key = np.zeros(keys.num_keys, np.int64)
    blocks = [LogBlock(log=log, block=block) for block in range(len(log.lengths))]
    for block, codes in enumerate(splitter.assign(blocks)):
        log.write_parts(block, codes)
        train = np.flatnonzero(codes == TRAIN)
        times = blocks[block].timestamps
        record.add(train + log.starts[block], None if times is None else times[train])
        for name, found in seen.items():
            found[log.entity_rows(block, name)[train]] = True
        rows_of_key += np.bincount(keys.of_block(block), minlength=len(rows_of_key))
        counts += np.bincount(codes, minlength=len(counts))
    return Parts(
        training=record.fitted_on(),
        train_users=seen.get(USER_ID),
        train_items=seen.get(ITEM_ID),
        keys=keys,
        rows_of_key=rows_of_key,
        counts=counts,
    )


def _carried(log: Log, encoder: Encoder) -> tuple[str, ...]:
    """Columns of the log that are needed once the rows are sorted."""
    wanted = {TIMESTAMP, LABEL, WEIGHT, *log.tables.tasks, *encoder.source_columns("context")}
    names = log.tables.interactions.column_names
    return tuple(name for name in names if name in wanted and name not in IDS)


def _seen(table: pa.Table | None, seen: npt.NDArray[np.bool_] | None) -> pa.Table | None:
    if table is None or seen is None:
        return None
    return table.take(pa.array(np.flatnonzero(seen)))


def _write_buckets(folder: Path, sorting: Sorting, scratch: Scratch) -> dict[str, str]:
    """Write the columns of all buckets, one after another.

    Returns:
        Checksum of every file by its path.
    """
    num_rows, num_positives = sorting.starts[-1].tolist()
    lengths = {"events/offsets": len(sorting.ids.get(USER_ID, ())) + 1}
    files: dict[str, ColumnFile] = {}

    def append(named: tuple[str, Array]) -> None:
        files[named[0]].append(named[1])

    for name in ("interactions", "tasks", "context"):
        (folder / name).mkdir()
    with ExitStack() as stack:
        for columns in scratch.workers.map(sorting.sort, range(len(sorting.division.buckets))):
            for path in columns.keys() - files.keys():
                (folder / path).parent.mkdir(exist_ok=True)  # of events, where there are any
                of_kind = num_positives if path.startswith("events/") else num_rows
                length = lengths.get(path, of_kind)
                files[path] = ColumnFile(folder / f"{path}.npy", length)
                stack.callback(files[path].close)
            for _ in Threads().map(append, columns.items()):
                pass
        return {f"{path}.npy": file.finish() for path, file in files.items()}


def _write_columns(folder: Path, columns: Mapping[str, Array]) -> None:
    folder.mkdir(exist_ok=True)
    for name, values in columns.items():
        save_array(folder / f"{name}.npy", values)


def _write_entities(folder: Path, table: pa.Table, columns: Mapping[str, Array]) -> None:
    _write_columns(folder, columns)
    write_arrow(folder / "table.arrow", table)
