"""Raw tables to a log in its final order: ids to rows, parts, events per user, ends of histories.

Shape letters: R interactions, E events, U users, N items, C items that may be recommended.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.raw_table import NUM_EXAMPLES
from twotower.data.schema import (
    ITEM_ID,
    LABEL,
    SPLIT,
    TIMESTAMP,
    TRAIN,
    USER_ID,
    WEIGHT,
    Tables,
)
from twotower.data.split import SplitInput, Splitter

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Catalogue = Literal["all", "interacted"]


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """The interactions in their final order, with ids replaced by rows."""

    table: pa.Table
    columns: dict[str, Array]
    events: dict[str, Array] | None


def entity_rows(tables: Tables) -> tuple[dict[str, pa.Array], dict[str, Array]]:
    """Ids of all users and items (side table first, then as they appear), and each row's entity."""
    ids, rows = {}, {}
    for column, side in ((USER_ID, tables.users), (ITEM_ID, tables.items)):
        if not tables.has(column):
            continue
        seen = tables.interactions.column(column)
        listed = side.column(column).chunks if side is not None else []
        unique = pc.unique(pa.chunked_array([*listed, *seen.chunks], type=seen.type))
        ids[column] = unique
        found = pc.index_in(seen.combine_chunks(), value_set=unique)
        rows[column] = found.to_numpy(zero_copy_only=False).astype(np.int32)
    return ids, rows


def label_and_split(
    tables: Tables, splitter: Splitter, rows: Mapping[str, Array]
) -> dict[str, Array]:
    """Labels, weights, times and parts of the interactions, in table order."""
    table = tables.interactions
    labels = _column(table, LABEL, np.float32, default=1.0)
    columns: dict[str, Array] = {
        "labels": labels,
        "positive": np.ones(table.num_rows, bool)
        if tables.label is None
        else labels >= tables.label.positive_from,
        "weights": _column(table, WEIGHT, np.float32, default=1.0),
    }
    if tables.has(TIMESTAMP):
        columns["timestamps"] = _column(table, TIMESTAMP, np.int64)
    columns["split"] = splitter.assign(
        SplitInput(
            num_rows=table.num_rows,
            positive=columns["positive"],
            user_rows=rows.get(USER_ID),
            timestamps=columns.get("timestamps"),
            given=_column(table, SPLIT, np.int8) if tables.has(SPLIT) else None,
        )
    )
    return columns


def outcomes(tables: Tables, table: pa.Table) -> dict[str, Array]:
    """(R,) bool by task: which rows of the interactions, in whatever order, were a success."""
    return {
        name: _column(table, name, np.float32) >= np.float32(smallest)
        for name, smallest in tables.tasks.items()
    }


def recommendable(
    which: Catalogue, tables: Tables, item_rows: Array, split: Array, num_items: int
) -> Array:
    """(N,) bool: items that may be recommended.

    With ``interacted`` these are all items of the log; with ``all``, those of the items table and
    of the training rows: an item known only from held-out rows is not known to the model either.
    """
    allowed = np.zeros(num_items, bool)
    if which == "interacted":
        allowed[item_rows] = True
        return allowed
    allowed[item_rows[split == TRAIN]] = True
    if tables.items is not None:
        allowed[: tables.items.num_rows] = True
    return allowed


def catalogue_first(ids: pa.Array, rows: Array, allowed: Array) -> tuple[pa.Array, Array]:
    """Renumber items so that those that may be recommended are rows 0 to C - 1."""
    order = np.argsort(~allowed, kind="stable")
    renumbered = np.empty_like(order)
    renumbered[order] = np.arange(len(order))
    return ids.take(pa.array(order)), renumbered[rows].astype(np.int32)


def arrange(
    tables: Tables, labelled: Mapping[str, Array], rows: Mapping[str, Array], num_users: int | None
) -> Arranged:
    """Sort by (user, part, time, table order) and lay out the events."""
    unsorted = dict(labelled)
    unsorted |= {"user_rows": rows[USER_ID]} if USER_ID in rows else {}
    unsorted |= {"item_rows": rows[ITEM_ID]} if ITEM_ID in rows else {}
    keys = [unsorted[name] for name in ("timestamps", "split", "user_rows") if name in unsorted]
    order = np.lexsort([np.arange(tables.interactions.num_rows), *keys])
    columns = {name: values[order] for name, values in unsorted.items()}
    columns["rows"] = order.astype(np.int64)
    has_events = num_users is not None and "item_rows" in columns
    events = _events(columns, num_users or 0) if has_events else None
    columns["history_end"] = _history_end(columns, events)
    return Arranged(table=tables.interactions.take(pa.array(order)), columns=columns, events=events)


def _events(columns: Mapping[str, Array], num_users: int) -> dict[str, Array]:
    interactions = np.flatnonzero(columns["positive"])
    counts = np.bincount(columns["user_rows"][interactions], minlength=num_users)
    return {
        "offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "item_rows": columns["item_rows"][interactions],
        "interactions": interactions.astype(np.int64),
        "split": columns["split"][interactions],
    }


def _history_end(columns: Mapping[str, Array], events: Mapping[str, Array] | None) -> Array:
    """Absolute end of the history of every interaction.

    In a log of positives alone an event sees all that stand before it, in table order where times
    tie. In a log of impressions every row sees what happened strictly before its instant: the
    outcome of its own slate is not known when it is shown.
    """
    positive = columns["positive"]
    if events is None:
        return np.zeros(len(positive), np.int64)
    before = np.cumsum(positive) - positive
    if positive.all() or "timestamps" not in columns:
        return before.astype(np.int64)
    users, split, times = columns["user_rows"], columns["split"], columns["timestamps"]
    changes = (np.diff(users) != 0) | (np.diff(split) != 0) | (np.diff(times) != 0)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    instant = np.concatenate([[0], np.cumsum(changes)])
    return np.asarray(before[starts][instant], np.int64)


def align(key: str, ids: pa.Array | None, side: pa.Table | None) -> pa.Table | None:
    """One row an entity: the side table's row, or nulls and one warning where it has none."""
    if ids is None:
        return None
    if side is None:
        return pa.table({key: ids})
    rows = pc.index_in(ids, value_set=side.column(key).combine_chunks())
    missing = ids.filter(pc.is_null(rows))
    if len(missing):
        first = ", ".join(map(str, missing[:NUM_EXAMPLES].to_pylist()))
        log.warning(
            "%d of the %d values of `%s` are in the interactions alone, not in the table that "
            "describes them; they are kept and their features count as missing. First: %s",
            *(len(missing), len(ids), key, first),
        )
    aligned = side.take(rows)
    others = [name for name in side.column_names if name != key]
    return pa.table({key: ids} | {name: aligned.column(name).combine_chunks() for name in others})


def _column(table: pa.Table, name: str, dtype: type, default: float | None = None) -> Array:
    if name not in table.column_names:
        return np.full(table.num_rows, default, dtype)
    return np.asarray(table.column(name).to_numpy(), dtype)
