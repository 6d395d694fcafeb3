"""What a bundle takes from the prepared data set: the catalogue, all users, and their events.

A request looks a few hundred items up, all over the catalogue. So what is encoded of an item stands
in one place, in the rows of ``columns.rows``, a NumPy file with a field a feature; only what is
long, such as the vector of a picture, is a file by itself.

Shapes: C items of the catalogue, U users, E events, N rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.column_file import save_array
from twotower.data.prepared import Entities, Events, Prepared, write_arrow
from twotower.data.schema import TRAIN
from twotower.export import manifest as names
from twotower.features.frequency import ItemFrequency
from twotower.features.pipeline import FeaturePipeline

Array = npt.NDArray[Any]

LONG_VALUE = 64  # bytes of a row, above which a column is a file by itself
ROWS_OF_A_BLOCK = 1 << 18
NAMES_OF_ANY_LETTERS = (3, 0)  # version of NumPy's format


def catalogue_only(prepared: Prepared) -> Prepared:
    """The data set with the events of the catalogue alone.

    Args:
        prepared: The data set; one without events comes back as it is.
    """
    if prepared.events is None or prepared.items is None:
        return prepared
    return events_of(prepared, np.arange(len(prepared.items)) < prepared.num_catalogue)


def events_of(prepared: Prepared, items: npt.NDArray[np.bool_]) -> Prepared:
    """The data set with the events of some items alone.

    Args:
        prepared: The data set; it has users and items.
        items: (N,) bool, the items that stay.
    """
    events, _, _ = prepared.require_events()
    log = prepared.interactions
    kept = items[np.asarray(events.item_rows)]  # (E,)
    before = np.concatenate([[0], np.cumsum(kept)])  # (E + 1,)
    return replace(
        prepared,
        events=Events(
            offsets=before[events.offsets],
            item_rows=np.asarray(events.item_rows)[kept],
            interactions=np.asarray(events.interactions)[kept],
            split=np.asarray(events.split)[kept],
        ),
        interactions=replace(log, history_end=before[log.history_end]),
    )


def write_data(folder: Path, data: Prepared, pipeline: FeaturePipeline) -> None:
    """Write features, catalogue, users, events and popular items.

    Args:
        folder: Where the files go.
        data: The data set with the events of the catalogue alone.
        pipeline: The features with their fitted state.
    """
    pipeline.save(folder / names.FEATURES)
    if data.items is not None:
        _write_entities(folder / names.ITEMS, data.items, data.num_catalogue)
    if data.users is not None:
        _write_entities(folder / names.USERS, data.users, len(data.users))
    if data.events is None:
        return
    (folder / names.EVENTS).mkdir()
    columns = {"offsets": data.events.offsets, "item_rows": data.events.item_rows}
    columns |= {} if data.event_times is None else {"times": data.event_times}
    for name, values in columns.items():
        save_array(folder / names.EVENTS / f"{name}.npy", values)
    training = np.flatnonzero(data.interactions.split == TRAIN)
    frequency = ItemFrequency.count(data, training)
    popular = np.argsort(-frequency.counts, kind="stable").astype(np.int64)  # (C,)
    save_array(folder / names.POPULAR, popular)


def counts(data: Prepared) -> dict[str, int | None]:
    """Numbers of items of the catalogue, users and events; None where there are none.

    Args:
        data: The data set with the events of the catalogue alone.
    """
    return {
        "items": None if data.items is None else data.num_catalogue,
        "users": None if data.users is None else len(data.users),
        "events": None if data.events is None else len(data.events.item_rows),
    }


def _write_entities(folder: Path, entities: Entities, num_rows: int) -> None:
    folder.mkdir()
    write_arrow(folder / names.TABLE, entities.table.slice(0, num_rows))
    together = {}
    for name, column in entities.columns.items():
        if column[:1].nbytes > LONG_VALUE:
            save_array(folder / f"{name}.npy", column[:num_rows])
        else:
            together[name] = column
    if together:
        _write_rows(folder / names.COLUMNS, together, num_rows)


def _write_rows(path: Path, columns: Mapping[str, Array], num_rows: int) -> None:
    """Write columns (N, ...) row by row, as fields of one array."""
    kind = np.dtype([(name, column.dtype, column.shape[1:]) for name, column in columns.items()])
    file = np.lib.format.open_memmap(
        path, mode="w+", dtype=kind, shape=(num_rows,), version=NAMES_OF_ANY_LETTERS
    )
    with path.open("r+b") as blocks:  # Where the disk is full, writing to a map ends the process.
        os.posix_fallocate(blocks.fileno(), 0, path.stat().st_size)
    for start in range(0, num_rows, ROWS_OF_A_BLOCK):
        rows = slice(start, min(start + ROWS_OF_A_BLOCK, num_rows))
        for name, column in columns.items():
            file[name][rows] = column[rows]
    file.flush()
