"""Makes the two data sets that every speed comparison trains on, once, from a fixed seed.

    python benchmarks/speed/world.py FOLDER                              2M interactions, 2M clicks
    python benchmarks/speed/world.py FOLDER --interactions 5000000
    python benchmarks/speed/world.py FOLDER --large                      and the last two clicks

    interactions.parquet   user_id, item_id, timestamp, in the order of time
    users.parquet          user_id and u1 .. u8, all categorical
    items.parquet          item_id and i1 .. i8, all categorical
    clicks.parquet         c1 .. c26 (2.24M values together), d1 .. d13, label, split
    clicks_large.parquet   the same rows and one more column, c27, of 10M values
    clicks_small.parquet   the same with that column modulo 1,000: as wide, with a short table
    world.json             how many values each column can take, ids included

Every categorical value is an int64 in [0, number of values), so a peer can use it as a row of a
table. Popularity follows a power law (exponent 1.05); an interaction is three times in five with an
item of the user's own taste (one of a hundred). The label of a click depends a little on most
columns. Nothing but numpy and pyarrow is needed: each peer has an environment of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEED = 0
NUM_USERS, NUM_ITEMS, NUM_TASTES = 100_000, 50_000, 100
EXPONENT = 1.05
OWN_TASTE = 0.6
ACTIVITY_SPREAD = 1.2  # standard deviation of the logarithm of a user's number of events
FIRST_SECOND, NUM_SECONDS = 1_700_000_000, 90 * 86_400
# The values of the features of a user and of an item; the fifth carries the taste.
USER_FEATURES = (2, 7, 24, 50, NUM_TASTES, 300, 1_000, 5_000)
ITEM_FEATURES = (5, 12, 30, 80, NUM_TASTES, 400, 2_000, 10_000)
FEATURE_FOLLOWS_TASTE = 0.7
# Spread as the columns of Criteo are: a few hold most of the 2.24M values, many hold a handful.
CLICK_COLUMNS = (
    *(620_000, 480_000, 360_000, 260_000, 180_000, 130_000, 80_000, 50_000, 32_000),
    *(18_000, 12_000, 7_000, 5_000, 2_500, 1_500, 900, 500, 250, 150, 95, 50, 25, 12, 10, 5, 3),
)
LARGE_COLUMN, SMALL_COLUMN = 10_000_000, 1_000
# By what `--further` says of the last column.
CLICK_FILES = {
    "none": "clicks.parquet",
    "large": "clicks_large.parquet",
    "small": "clicks_small.parquet",
}
NUM_DENSE = 13
CHUNK = 250_000
TRAINING_PART, VALIDATION_PART = 0.8, 0.1


def power_law(rng: np.random.Generator, size: int, num_values: int) -> np.ndarray:
    """Draws from [0, num_values) with density (value + 1) ** -1.05, by inverting its sum."""
    power = 1.0 - EXPONENT
    end = (num_values + 1.0) ** power
    drawn = (1.0 + rng.random(size) * (end - 1.0)) ** (1.0 / power)
    return np.minimum(drawn.astype(np.int64) - 1, num_values - 1)


def features(
    rng: np.random.Generator, tastes: np.ndarray, sizes: tuple[int, ...], prefix: str
) -> dict[str, np.ndarray]:
    """Eight categorical columns of which the fifth mostly follows the taste."""
    columns = {f"{prefix}{at}": power_law(rng, len(tastes), n) for at, n in enumerate(sizes, 1)}
    follows = rng.random(len(tastes)) < FEATURE_FOLLOWS_TASTE
    columns[f"{prefix}5"] = np.where(follows, tastes, columns[f"{prefix}5"])
    return columns


def draw_items(rng: np.random.Generator, wanted: np.ndarray, item_tastes: np.ndarray) -> np.ndarray:
    """An item for each wanted taste (-1: any), by popularity within it."""
    popularity = np.arange(1, NUM_ITEMS + 1) ** -EXPONENT
    rng.shuffle(popularity)
    by_taste = np.argsort(item_tastes, kind="stable")
    ends = np.concatenate([[0.0], np.cumsum(popularity[by_taste])])
    firsts = np.searchsorted(item_tastes[by_taste], np.arange(NUM_TASTES + 1))
    low = np.where(wanted < 0, 0.0, ends[firsts[wanted]])
    high = np.where(wanted < 0, ends[-1], ends[firsts[wanted + 1]])
    at = np.searchsorted(ends, low + rng.random(len(wanted)) * (high - low), side="right") - 1
    return by_taste[np.minimum(at, NUM_ITEMS - 1)]


def write_interactions(folder: Path, num_interactions: int) -> None:
    """Users, items and their interactions."""
    rng = np.random.default_rng([SEED, 1])
    user_tastes = rng.integers(NUM_TASTES, size=NUM_USERS)
    item_tastes = rng.integers(NUM_TASTES, size=NUM_ITEMS)
    users = features(rng, user_tastes, USER_FEATURES, "u")
    items = features(rng, item_tastes, ITEM_FEATURES, "i")
    pq.write_table(pa.table({"user_id": np.arange(NUM_USERS), **users}), folder / "users.parquet")
    pq.write_table(pa.table({"item_id": np.arange(NUM_ITEMS), **items}), folder / "items.parquet")

    # Everybody has three events at least, so that there is one to test and one to look back on.
    activity = np.cumsum(rng.lognormal(sigma=ACTIVITY_SPREAD, size=NUM_USERS))
    drawn = rng.random(num_interactions - 3 * NUM_USERS) * activity[-1]
    user_ids = np.concatenate(
        [np.repeat(np.arange(NUM_USERS), 3), np.searchsorted(activity, drawn, side="right")]
    )
    wanted = np.where(rng.random(num_interactions) < OWN_TASTE, user_tastes[user_ids], -1)
    item_ids = draw_items(rng, wanted, item_tastes)
    seconds = FIRST_SECOND + rng.integers(NUM_SECONDS, size=num_interactions)
    order = np.argsort(seconds, kind="stable")
    table = pa.table(
        {"user_id": user_ids[order], "item_id": item_ids[order], "timestamp": seconds[order]}
    )
    pq.write_table(table, folder / "interactions.parquet", row_group_size=CHUNK)


def click_chunks(num_clicks: int, sizes: tuple[int, ...]) -> Iterator[pa.Table]:
    """Rows of the click table, chunk by chunk; a further column leaves the others as they were."""
    effects = [
        np.random.default_rng([SEED, 2, at]).normal(0.0, 0.25, size).astype(np.float32)
        for at, size in enumerate(sizes)
    ]
    slopes = np.random.default_rng([SEED, 3]).normal(0.0, 0.15, NUM_DENSE).astype(np.float32)
    ends = (TRAINING_PART * num_clicks, (TRAINING_PART + VALIDATION_PART) * num_clicks)
    for first in range(0, num_clicks, CHUNK):
        size = min(CHUNK, num_clicks - first)
        rng = np.random.default_rng([SEED, 4, first])
        dense = rng.normal(size=(size, NUM_DENSE)).astype(np.float32)
        noise = rng.random(size)
        values = [power_law(rng, size, n) for n in sizes]
        logits = -1.2 + dense @ slopes
        for effect, value in zip(effects[: len(CLICK_COLUMNS)], values, strict=False):
            logits += effect[value]
        parts = np.searchsorted(ends, np.arange(first, first + size), side="right")
        split = pa.DictionaryArray.from_arrays(
            pa.array(parts.astype(np.int32)), pa.array(["train", "validation", "test"])
        )
        yield pa.table(
            {f"c{at}": value for at, value in enumerate(values, 1)}
            | {f"d{at}": np.ascontiguousarray(dense[:, at - 1]) for at in range(1, NUM_DENSE + 1)}
            | {"label": (noise < 1.0 / (1.0 + np.exp(-logits))).astype(np.int64), "split": split}
        )


def write_clicks(path: Path, num_clicks: int, sizes: tuple[int, ...]) -> None:
    """The click table, never wholly in memory."""
    chunks = click_chunks(num_clicks, sizes)
    first = next(chunks)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for chunk in chunks:
            writer.write_table(chunk)


def write_small(folder: Path) -> None:
    """The click table with the further column, of which only the last three digits are kept."""
    file = pq.ParquetFile(folder / CLICK_FILES["large"])
    place = len(CLICK_COLUMNS)
    with pq.ParquetWriter(folder / CLICK_FILES["small"], file.schema_arrow) as writer:
        for batch in file.iter_batches(CHUNK):
            few = pa.array(batch.column(place).to_numpy() % SMALL_COLUMN)
            writer.write_batch(batch.set_column(place, batch.schema.names[place], few))


def click_sizes(world: Mapping[str, Any], further: str) -> dict[str, int]:
    """How many values each categorical column of a click table can take.

    Args:
        world: What `world.json` says.
        further: A key of `CLICK_FILES`.
    """
    *columns, last = world["click_columns"].items()
    lasts = {"none": {}, "large": {last[0]: last[1]}, "small": {last[0]: SMALL_COLUMN}}
    return dict(columns) | lasts[further]


def main(folder: Path, num_interactions: int, num_clicks: int, large: bool) -> None:
    """Write what is missing; a world of other sizes in the same folder is made anew."""
    sizes = {f"c{at}": n for at, n in enumerate((*CLICK_COLUMNS, LARGE_COLUMN), 1)}
    world = {
        "interactions": num_interactions,
        "clicks": num_clicks,
        "users": {"user_id": NUM_USERS} | {f"u{at}": n for at, n in enumerate(USER_FEATURES, 1)},
        "items": {"item_id": NUM_ITEMS} | {f"i{at}": n for at, n in enumerate(ITEM_FEATURES, 1)},
        "click_columns": sizes,
        "dense_columns": [f"d{at}" for at in range(1, NUM_DENSE + 1)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "world.json"
    same = kept.exists() and json.loads(kept.read_text()) == world
    if not same:
        kept.unlink(missing_ok=True)  # it is written last, so that a half-made world is made anew
        write_interactions(folder, num_interactions)
        write_clicks(folder / CLICK_FILES["none"], num_clicks, CLICK_COLUMNS)
        for further in ("large", "small"):
            (folder / CLICK_FILES[further]).unlink(missing_ok=True)
    if large and not (folder / CLICK_FILES["large"]).exists():
        write_clicks(folder / CLICK_FILES["large"], num_clicks, (*CLICK_COLUMNS, LARGE_COLUMN))
    if large and not (folder / CLICK_FILES["small"]).exists():
        write_small(folder)
    kept.write_text(json.dumps(world, indent=1) + "\n")
    print(f"wrote {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--interactions", type=int, default=2_000_000)
    parser.add_argument("--clicks", type=int, default=2_000_000)
    parser.add_argument(
        "--large", action="store_true", help="also click tables with a further column"
    )
    given = parser.parse_args()
    main(given.folder, given.interactions, given.clicks, given.large)
