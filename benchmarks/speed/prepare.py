"""Times preparing: rows a second, CPU-seconds and peak memory by the length of the log.

    python benchmarks/speed/prepare.py --rows 1e6 2e7 --output benchmarks/results/prepare.json

The tables are drawn with a fixed seed and written as Parquet, as pyarrow writes it by default:
users of log-normal activity, items of Zipf popularity (exponent 1.05) and ten tastes, times in
random order, eight categorical features a side. Every length is prepared by a process of its own
through the public `prepare`; the clock runs from the call to the published folder, so the digest
of the inputs and the checksums of the outputs are in it. Peak memory is the VmHWM of that process:
all resident pages, those of mapped files included. Data and prepared folders are deleted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twotower.data.prepare import prepare
from twotower.data.split import LeaveOneOut, TemporalSplit
from twotower.data.tables import TableSource
from twotower.features.infer import AutoSpec, PipelineFactory

ROWS_PER_FILE, ROWS_PER_DRAW = 5_000_000, 1_000_000
NUM_TASTES, NUM_FEATURES, EXPONENT = 10, 8, 1.05
START, DAYS = 1_700_000_000, 365
SPLITTERS = {"temporal": TemporalSplit, "leave_one_out": LeaveOneOut}


def draw_log(num_rows: int, num_users: int, num_items: int, part: int) -> pa.Table:
    """One part of the log; every part has random numbers of its own."""
    rng = np.random.default_rng([1, part])
    activity = np.cumsum(np.random.default_rng(0).lognormal(sigma=1.0, size=num_users))
    popularity = np.cumsum(np.arange(1, num_items + 1) ** -EXPONENT)
    users = np.searchsorted(activity, rng.random(num_rows) * activity[-1])
    items = np.searchsorted(popularity, rng.random(num_rows) * popularity[-1])
    own = rng.random(num_rows) < 0.5  # half of what a user takes is of the user's taste
    items = np.where(own, items - items % NUM_TASTES + users % NUM_TASTES, items) % num_items
    return pa.table(
        {
            "user_id": users * 7 + 1_000_003,
            "item_id": items * 11 + 500_009,
            "timestamp": START + rng.integers(0, DAYS * 86_400, num_rows),
        }
    )


def describe(key: str, ids: np.ndarray, stream: int) -> pa.Table:
    """Eight categorical features of 10 to 80 values."""
    rng = np.random.default_rng([2, stream])
    columns = {key: ids}
    for place in range(NUM_FEATURES):
        names = np.array([f"{chr(97 + place)}{value}" for value in range(10 * (place + 1))])
        columns[f"{key[0]}{place}"] = names[rng.integers(0, len(names), len(ids))]
    return pa.table(columns)


def write_tables(folder: Path, num_rows: int, num_users: int, num_items: int) -> None:
    users, items = np.arange(num_users) * 7 + 1_000_003, np.arange(num_items) * 11 + 500_009
    pq.write_table(describe("user_id", users, 0), folder / "users.parquet")
    pq.write_table(describe("item_id", items, 1), folder / "items.parquet")
    (folder / "log").mkdir()
    for first in range(0, num_rows, ROWS_PER_FILE):
        here = min(ROWS_PER_FILE, num_rows - first)
        parts = [
            draw_log(min(ROWS_PER_DRAW, here - at), num_users, num_items, first + at)
            for at in range(0, here, ROWS_PER_DRAW)
        ]
        pq.write_table(pa.concat_tables(parts), folder / "log" / f"{first:012}.parquet")


def timed(folder: Path, split: str, sender) -> None:
    """Prepare, in a process of its own, and say what it took."""
    source = TableSource(
        interactions=str(folder / "log"),
        users=str(folder / "users.parquet"),
        items=str(folder / "items.parquet"),
    )
    started = time.perf_counter()
    prepared = prepare(
        source=source,
        splitter=SPLITTERS[split](),
        encoders=PipelineFactory(provider=AutoSpec()),
        root=folder / "prepared",
    )
    seconds = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024**2
    size = sum(file.stat().st_size for file in prepared.folder.rglob("*") if file.is_file())
    sender.send(
        {
            "rows": prepared.manifest["counts"]["interactions"],
            "seconds": seconds,
            "rows_per_second": prepared.manifest["counts"]["interactions"] / seconds,
            "cpu_seconds": sum(one.ru_utime + one.ru_stime for one in used),
            "peak_gib": peak + used[1].ru_maxrss / 1024**2,
            "input_gib": sum(f.stat().st_size for f in (folder / "log").iterdir()) / 1024**3,
            "output_gib": size / 1024**3,
            "checksum": prepared.manifest["files"]["interactions/rows.npy"],
        }
    )


def apart(function, *arguments) -> None:
    """Run a function in a fresh process."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} ended with {process.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 5e6])
    parser.add_argument("--users", type=float, default=1e5)
    parser.add_argument("--items", type=float, default=5e4)
    parser.add_argument("--split", choices=SPLITTERS, default="temporal")
    parser.add_argument("--folder", type=Path, help="where data lie meanwhile; or a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {given.users:,.0f} users, {given.items:,.0f} items, {given.split} split")
    print(f"{'rows':>12} {'seconds':>8} {'rows/s':>10} {'CPU s':>7} {'peak GiB':>9} {'written':>9}")
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for rows in map(int, given.rows):
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            apart(write_tables, Path(name), rows, int(given.users), int(given.items))
            os.sync()  # what was drawn is on the disk before the clock starts
            receiver, sender = multiprocessing.Pipe(duplex=False)
            apart(timed, Path(name), given.split, sender)
            one = receiver.recv()
        print(
            f"{rows:12,} {one['seconds']:8.1f} {one['rows_per_second']:10,.0f} "
            f"{one['cpu_seconds']:7.1f} {one['peak_gib']:9.2f} {one['output_gib']:5.2f} GiB",
            flush=True,
        )
        figures.append(one)
    if given.output:
        settings = {
            "cores": cores,
            "machine": platform.processor() or platform.machine(),
            "users": int(given.users),
            "items": int(given.items),
            "split": given.split,
            **{name: version(name) for name in ("numpy", "pyarrow")},
        }
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps({"settings": settings, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
