"""The world's tables as arrays: what each peer makes its own data set from.

Legend: E examples, U users, I items, L the events that an example looks back on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

HISTORY = 50
USER_COLUMNS = tuple(f"u{at}" for at in range(1, 9))
ITEM_COLUMNS = tuple(f"i{at}" for at in range(1, 9))


def sizes(folder: Path) -> dict[str, int]:
    """The number of values of every categorical column, ids included."""
    world = json.loads((folder / "world.json").read_text())
    return {**world["users"], **world["items"], **world["click_columns"]}


def columns(path: Path, names: list[str] | None = None) -> dict[str, np.ndarray]:
    """A Parquet file, column by column."""
    table = pq.read_table(path, columns=names)
    return {name: table[name].to_numpy() for name in table.column_names}


@dataclass(frozen=True)
class Events:
    """Events to train on, none of them a user's first (no history) or last (kept for testing)."""

    users: np.ndarray  # (E,)
    items: np.ndarray  # (E,)
    log: np.ndarray  # items of all events, user after user, in the order of time
    ends: np.ndarray  # (E,) where an event stands in the log: its history ends before it
    lengths: np.ndarray  # (E,) of its history, HISTORY at most
    user_features: dict[str, np.ndarray]  # of U values
    item_features: dict[str, np.ndarray]  # of I values

    def take(self, at: np.ndarray) -> dict[str, np.ndarray]:
        """The seventeen columns that hold one value an example."""
        users, items = self.users[at], self.items[at]
        return (
            {"user_id": users}
            | {name: self.user_features[name][users] for name in USER_COLUMNS}
            | {"item_id": items}
            | {name: self.item_features[name][items] for name in ITEM_COLUMNS}
        )

    def packed_history(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Histories behind each other and their lengths."""
        lengths = self.lengths[at]
        before = np.cumsum(lengths) - lengths
        firsts = self.ends[at] - lengths
        index = np.arange(lengths.sum()) + np.repeat(firsts - before, lengths)
        return self.log[index], lengths

    def padded_history(self, at: np.ndarray, padding: int) -> np.ndarray:
        """Histories of shape (len(at), HISTORY), filled up at the front."""
        index = self.ends[at][:, None] + np.arange(-HISTORY, 0)
        missing = np.arange(HISTORY) < HISTORY - self.lengths[at][:, None]
        history: np.ndarray = np.where(missing, padding, self.log[np.maximum(index, 0)])
        return history


def read_events(folder: Path, num_rows: int) -> Events:
    """A random choice of the events that can be trained on."""
    events = columns(folder / "interactions.parquet")
    order = np.lexsort((events["timestamp"], events["user_id"]))
    users, log = events["user_id"][order], events["item_id"][order]
    counts = np.bincount(users)
    firsts = np.cumsum(counts) - counts
    position = np.arange(len(users)) - firsts[users]
    usable = np.flatnonzero((position > 0) & (position < counts[users] - 1))
    rng = np.random.default_rng(0)
    chosen = rng.choice(usable, min(num_rows, len(usable)), replace=False)
    return Events(
        users=users[chosen],
        items=log[chosen],
        log=log,
        ends=chosen,
        lengths=np.minimum(position[chosen], HISTORY),
        user_features=columns(folder / "users.parquet", list(USER_COLUMNS)),
        item_features=columns(folder / "items.parquet", list(ITEM_COLUMNS)),
    )


@dataclass(frozen=True)
class Clicks:
    """Rows of the click table: its training part, or the first rows of it."""

    names: tuple[str, ...]
    categorical: dict[str, np.ndarray]  # each (E,)
    dense: dict[str, np.ndarray]  # each (E,)
    labels: np.ndarray  # (E,)


def read_clicks(folder: Path, num_rows: int, large: bool) -> Clicks:
    """The first rows of the click table, which is in no order."""
    file = pq.ParquetFile(folder / ("clicks_large.parquet" if large else "clicks.parquet"))
    groups = range(min(file.num_row_groups, -(-num_rows // file.metadata.row_group(0).num_rows)))
    table = file.read_row_groups(list(groups)).slice(0, num_rows)
    found = {name: table[name].to_numpy() for name in table.column_names if name != "split"}
    names = tuple(name for name in found if name.startswith("c"))
    return Clicks(
        names=names,
        categorical={name: found[name] for name in names},
        dense={name: found[name] for name in found if name.startswith("d")},
        labels=found["label"].astype(np.float32),
    )
