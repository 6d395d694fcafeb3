"""The log of the built-in world as files, cut at times: what arrives window by window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twotower.data.schema import TIMESTAMP
from twotower.data.synthetic import SyntheticSource
from twotower.data.world import START

# What `train` and `retrain` are told of the files.
DATA = ("data=tables", "data.label.column=label", "data.context=[position,device]")


def write_windows(folder: Path, source: SyntheticSource, shares: Sequence[float]) -> list[str]:
    """Write ``window-<n>.parquet``, ``users.parquet`` and ``items-<n>.parquet``.

    Items come into the table of a window with their launch.

    Args:
        folder: Where to.
        source: The world.
        shares: Of the period, where windows end; the last one is 1.

    Returns:
        Names of the windows.
    """
    tables = source.read()
    times = tables.interactions.column(TIMESTAMP).to_numpy()
    period = source.world.end - START
    pq.write_table(tables.users, folder / "users.parquet")
    names, start = [], START
    for number, share in enumerate(shares):
        end = START + int(share * period)
        rows = np.flatnonzero((times >= start) & (times < end))
        log = tables.interactions.take(pa.array(rows))
        place = log.column_names.index(TIMESTAMP)
        instants = log.column(TIMESTAMP).cast(pa.timestamp("us"))
        name = f"window-{number}.parquet"
        pq.write_table(log.set_column(place, TIMESTAMP, instants), folder / name)
        launched = np.flatnonzero(source.world.launch_times < end)
        pq.write_table(tables.items.take(pa.array(launched)), folder / f"items-{number}.parquet")
        names.append(name)
        start = end
    return names
