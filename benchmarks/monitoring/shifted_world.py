"""A world whose tastes turn: its log before and after as files, and what lists are worth in it.

Shape letters: Q users who ask.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twotower.data.schema import ITEM_ID, MICROSECONDS, TIMESTAMP
from twotower.data.synthetic import SyntheticSource
from twotower.data.world import START, Drift
from twotower.export.bundle import open_bundle
from twotower.serving.batch_scores import user_queries
from twotower.serving.recommender import Recommender

SHIFT_AT, TASTE_SHIFT = 0.5, 0.5
HELD_OUT = 0.1  # of a window: its test part, which is not broken
LIST = 10


def world_of(seed: int, users: int, items: int, slates: float) -> SyntheticSource:
    """A world whose tastes turn in the middle of its period."""
    return SyntheticSource(
        num_users=users,
        num_items=items,
        num_days=60,
        slates_per_user=slates,
        slate_size=10,
        seed=seed,
        drift=Drift(start_share=SHIFT_AT, taste_shift=TASTE_SHIFT),
    )


def write_world(work: Path, source: SyntheticSource, seed: int) -> None:
    """Windows before and after the shift, and the second one broken."""
    tables = source.read()
    log = tables.interactions
    times = log.column(TIMESTAMP).to_numpy()
    place = log.column_names.index(TIMESTAMP)
    log = log.set_column(place, TIMESTAMP, log.column(TIMESTAMP).cast(pa.timestamp("us")))
    shift = START + int(SHIFT_AT * (source.world.end - START))
    before, after = (np.flatnonzero(chosen) for chosen in (times < shift, times >= shift))
    pq.write_table(tables.users, work / "users.parquet")
    for name, rows, end in (("before", before, shift), ("after", after, source.world.end)):
        launched = np.flatnonzero(source.world.launch_times < end)
        pq.write_table(tables.items.take(pa.array(launched)), work / f"items-{name}.parquet")
        pq.write_table(log.take(pa.array(rows)), work / f"{name}.parquet")
    broken = log.take(pa.array(after))
    trained = times[after] < np.quantile(times[after], 1 - HELD_OUT)
    order = np.arange(len(after))
    order[trained] = np.random.default_rng(seed).permutation(order[trained])
    shuffled = broken.column(ITEM_ID).take(pa.array(order))
    broken = broken.set_column(broken.column_names.index(ITEM_ID), ITEM_ID, shuffled)
    pq.write_table(broken, work / "broken.parquet")


def clicks(bundle: Path, source: SyntheticSource) -> float:
    """The chance, by the truth, that an item of a user's list is clicked when it is looked at."""
    opened = open_bundle(bundle)
    recommender = Recommender(opened, num_threads=1)
    world, users = source.world, np.arange(len(opened.users.ids))
    of_items = pc.index_in(opened.items.ids, value_set=pa.array(world.item_ids)).to_numpy()
    of_users = pc.index_in(opened.users.ids, value_set=pa.array(world.user_ids)).to_numpy()
    found = []
    for start in range(0, len(users), 500):
        rows = users[start : start + 500]
        queries, seen = user_queries(recommender, rows, world.end // MICROSECONDS)
        lists = recommender.rank(queries, LIST, seen).rows  # (Q, LIST)
        asking = np.repeat(of_users[rows], LIST)
        shown = of_items[lists.ravel()]
        found.append(world.click_probability(asking, shown, np.ones(len(shown), np.int64)))
    return float(np.concatenate(found).mean())
