"""Items that change while a bundle is served: how soon they are shown, and what they cost.

    python benchmarks/serving/world.py FOLDER
    python benchmarks/serving/freshness.py FOLDER [--json FILE]

On the bundle of `world.py`, a million items. For every number of items that already stand beside
the bundle: wall milliseconds from the call of `upsert` of one new item until it has been shown in
the answer to a request whose filter it alone passes, of `poll` in another process' place and of
`poll` where nothing has come (microseconds), and CPU milliseconds of one request, with a filter
that half of the items pass too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from running import keep_rows

from twotower.export.bundle import open_bundle
from twotower.serving.freshness import Freshness
from twotower.serving.item_journal import ItemJournal
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Filter, Request

BESIDE = (0, 100, 10_000)
ROUNDS, REQUESTS = 11, 30


def request_ms(recommender: Recommender, filters: tuple[Filter, ...]) -> float:
    """CPU milliseconds of a request, the median."""
    users = recommender.bundle.users.ids[:REQUESTS].to_pylist()
    taken = []
    for user in users:
        started = time.process_time()
        recommender.answer([Request(user=user, filters=filters)])
        taken.append(time.process_time() - started)
    return float(np.median(taken)) * 1e3


def main(given: argparse.Namespace) -> None:
    """Measure, print, keep."""
    built = Recommender(open_bundle(given.folder / "bundle"), num_threads=1)
    values = built.items.values(5)
    user = built.bundle.users.ids[0].as_py()
    half = Filter(column="in0", operator="at_least", values=[0.0])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.journal"
        freshness, other = (Freshness(built, ItemJournal(path, bundle="w")) for _ in range(2))
        done = 0
        for beside in BESIDE:
            ids = [f"new-{number}" for number in range(done, beside)]
            done = max(done, beside)
            freshness.upsert([values | {"item_id": item} for item in ids])
            other.poll()
            shown, followed, idle = [], [], []
            for number in range(ROUNDS):
                item, unlike = f"one-{beside}-{number}", 1e6 + beside + number
                only = Filter(column="in0", operator="at_least", values=[unlike])
                started = time.perf_counter()
                freshness.upsert([values | {"item_id": item, "in0": unlike}])
                (answer,) = freshness.recommender.answer([Request(user=user, filters=[only])])
                if [one.item_id for one in answer.items] != [item]:
                    sys.exit(f"{item} is not shown: {answer}")
                shown.append(time.perf_counter() - started)
                started = time.perf_counter()
                other.poll()
                followed.append(time.perf_counter() - started)
                started = time.perf_counter()
                other.poll()
                idle.append(time.perf_counter() - started)
            row = {
                "beside": beside,
                "upsert to answer, ms": float(np.median(shown)) * 1e3,
                "poll, ms": float(np.median(followed)) * 1e3,
                "idle poll, us": float(np.median(idle)) * 1e6,
                "request, CPU ms": request_ms(freshness.recommender, ()),
                "filtered, CPU ms": request_ms(freshness.recommender, (half,)),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    if given.keep:
        title = f"Items that change beside an index of {len(built.items):,}"
        columns = {name: ",.2f" if name != "beside" else "," for name in rows[0]}
        keep_rows("freshness", title, "freshness.py FOLDER", columns, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    main(parser.parse_args())
