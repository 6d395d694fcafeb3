"""How fast a window of logs is read, checked and profiled, and how much memory that takes.

    python benchmarks/monitoring/profile_rate.py --rows 1e6 1e7 1e8 --folder <scratch> [--keep]

A million users and a hundred thousand items with twelve features between them, seventeen profiled
columns. A window of a hundred million rows is ten times the same Parquet file, which costs no less
to read, and the check of repeated rows, which is made, is told to allow it. Every size is profiled
by a process of its own, on one thread; memory is the most that the process ever held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kept import keep_rows

from twotower.data.prepare import prepare
from twotower.data.prepared import Prepared
from twotower.data.schema import Label
from twotower.data.split import TemporalSplit
from twotower.data.tables import TableSource
from twotower.features.infer import AutoSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.monitoring.reference import Reference, make_reference, window_form
from twotower.monitoring.window_profile import Known, WindowProfiler

NUM_USERS, NUM_ITEMS = 1_000_000, 100_000
TRAINING_ROWS, FILE_ROWS, GROUP_ROWS = 3_000_000, 10_000_000, 1_000_000
DAY = 86_400
START = 1_700_006_400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--keep", action="store_true", help="write the figures for RESULTS.md")
    parser.add_argument("--alone", type=int, help="profile so many rows in this process")
    given = parser.parse_args()
    world = made(given.folder)
    if given.alone is not None:
        print(json.dumps(measure(world, given.folder, given.alone)))
        return
    found = []
    for rows in map(int, given.rows):
        write_window(given.folder / f"window-{rows}", rows)
        command = [sys.executable, __file__, "--folder", str(given.folder), "--alone", str(rows)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    if given.keep:
        keep(found)


@dataclass(frozen=True)
class Made:
    """The data set of the bundle."""

    prepared: Prepared
    pipeline: FeaturePipeline


def made(folder: Path) -> Made:
    """The data set that the reference is of; made once."""
    tables = folder / "tables"
    if not tables.is_dir():
        tables.mkdir(parents=True)
        rng = np.random.default_rng(0)
        users, items = np.arange(NUM_USERS), np.arange(NUM_ITEMS)
        pq.write_table(
            pa.table(
                {
                    "user_id": users,
                    "country": pa.array([f"c{n}" for n in range(200)]).take(
                        pa.array(rng.integers(0, 200, NUM_USERS))
                    ),
                    "age": rng.integers(16, 90, NUM_USERS).astype(np.float64),
                    "income": rng.lognormal(size=NUM_USERS),
                }
            ),
            tables / "users.parquet",
        )
        pq.write_table(
            pa.table(
                {
                    "item_id": items,
                    "brand": pa.array([f"b{n}" for n in range(5000)]).take(
                        pa.array(rng.integers(0, 5000, NUM_ITEMS))
                    ),
                    "price": rng.lognormal(size=NUM_ITEMS),
                    "image": pa.FixedSizeListArray.from_arrays(
                        rng.normal(size=NUM_ITEMS * 16).astype(np.float32), 16
                    ),
                }
            ),
            tables / "items.parquet",
        )
        pq.write_table(rows_of(rng, TRAINING_ROWS, START), tables / "log.parquet")
    source = TableSource(
        interactions=str(tables / "log.parquet"),
        users=str(tables / "users.parquet"),
        items=str(tables / "items.parquet"),
        label=Label(column="click"),
        context=["device", "speed", "distance", "referrer"],
    )
    prepared = prepare(
        source=source,
        splitter=TemporalSplit(),
        encoders=PipelineFactory(provider=AutoSpec(history_length=0)),
        root=folder / "prepared",
    )
    pipeline = FeaturePipeline.load(prepared.folder / "features")
    if not (folder / "reference").is_dir():
        make_reference(prepared, pipeline).save(folder)
    return Made(prepared, pipeline)


def rows_of(rng: np.random.Generator, count: int, start: int) -> pa.Table:
    """Rows of a log."""
    devices = pa.array(["phone", "desktop", "tablet"])
    pages = pa.array([f"page{n}" for n in range(3000)])
    zipf = (NUM_ITEMS * rng.random(count) ** 3).astype(np.int64)
    return pa.table(
        {
            "user_id": (NUM_USERS * rng.random(count) ** 1.5).astype(np.int64),
            "item_id": zipf,
            "timestamp": start + np.sort(rng.integers(0, 2 * DAY, count)),
            "click": (rng.random(count) < 0.1).astype(np.float32),
            "device": devices.take(pa.array(rng.integers(0, 3, count))),
            "referrer": pages.take(pa.array((3000 * rng.random(count) ** 2).astype(np.int64))),
            "speed": rng.lognormal(size=count).astype(np.float32),
            "distance": pa.array(rng.normal(size=count), mask=rng.random(count) < 0.05),
        }
    )


def write_window(folder: Path, rows: int) -> None:
    """A window; what is longer than a file of ten million rows is links to one."""
    if folder.is_dir():
        return
    staging = folder.with_suffix(".staging")
    staging.mkdir(parents=True, exist_ok=True)
    first = staging / "0000.parquet"
    with pq.ParquetWriter(first, rows_of(np.random.default_rng(1), 1, 0).schema) as file:
        for start in range(0, min(FILE_ROWS, rows), GROUP_ROWS):
            rng = np.random.default_rng([1, start])
            file.write_table(rows_of(rng, min(GROUP_ROWS, rows - start), START + 4 * DAY))
    for number in range(1, rows // FILE_ROWS):
        (staging / f"{number:04}.parquet").hardlink_to(first)
    staging.rename(folder)


def measure(world: Made, folder: Path, rows: int) -> dict[str, float]:
    """Rate and memory of one window."""
    known = Known(pipeline=world.pipeline, users=world.prepared.users, items=world.prepared.items)
    reference = Reference.load(folder)
    profiler = WindowProfiler(known, reference, window_form(reference, max_repeated=0.99))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started, cpu = time.monotonic(), time.process_time()
    profile = profiler.profile(str(folder / f"window-{rows}"))
    seconds, used = time.monotonic() - started, time.process_time() - cpu
    profile.save(folder / f"profile-{rows}.npz")
    return {
        "rows": profile.num_rows,
        "columns": len(profile.bins),
        "rows a CPU second": rows / used,
        "seconds": seconds,
        "GiB before": before,
        "GiB at most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "MB of the profile": (folder / f"profile-{rows}.npz").stat().st_size / 1e6,
    }


def keep(rows: list[dict[str, float]]) -> None:
    """Write what `render.py` reads."""
    columns = {
        "rows": ",.0f",
        "columns": ",.0f",
        "rows a CPU second": ",.0f",
        "GiB before": ".2f",
        "GiB at most": ".2f",
        "MB of the profile": ".1f",
    }
    title = "Reading, checking and profiling a window of logs"
    keep_rows(
        "profile",
        title,
        "profile_rate.py --folder <scratch> --keep",
        columns,
        rows,
        where="one core",
    )


if __name__ == "__main__":
    main()
