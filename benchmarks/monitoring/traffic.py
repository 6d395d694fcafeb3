"""What a server pays for keeping requests for monitoring, as a share of the time of a request.

    python benchmarks/monitoring/traffic.py bundle=<bundle> [--requests 2000] [--keep]

Requests are answered one by one, as a quiet server does, and sixteen together, as a busy one does;
without the recorder, with ten kept a second, which is the default, and keeping every one. The three
take turns every 64 requests, and the CPU seconds of the process are added up, the writing thread
included. "alone" is the recorder by itself on requests that are encoded already, over the time of a
request: it moves less from run to run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from kept import keep_rows

from twotower.export.bundle import open_bundle
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request
from twotower.serving.traffic import TrafficRecorder

KEEPING = {"10 a second": 10.0, "every one": 1e9}
TURN = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="bundle=<bundle>")
    parser.add_argument("--requests", type=int, default=2048)
    parser.add_argument("--keep", action="store_true", help="write the figures for RESULTS.md")
    given = parser.parse_args()
    bundle = open_bundle(Path(given.bundle.removeprefix("bundle=")))
    recommender = Recommender(bundle, num_threads=1)
    users = bundle.users.ids.to_pylist()
    rng = np.random.default_rng(0)
    asked = [Request(user=users[row]) for row in rng.integers(0, len(users), given.requests)]
    rows = []
    for together in (1, 16):
        used = in_turn(recommender, asked, together)
        for name, per_second in KEEPING.items():
            rows.append(
                {
                    "requests answered": "one by one" if together == 1 else f"{together} together",
                    "kept": name,
                    "CPU ms a request": 1000 * used["none"] / len(asked),
                    "more with the recorder": used[name] / used["none"] - 1,
                    "alone": alone(recommender, asked, per_second) * len(asked) / used["none"],
                }
            )
            print(rows[-1], flush=True)
    if given.keep:
        keep(rows)


def in_turn(recommender: Recommender, asked: list[Request], together: int) -> dict[str, float]:
    """CPU seconds for all requests, by what is kept of them."""
    used = dict.fromkeys(("none", *KEEPING), 0.0)
    with tempfile.TemporaryDirectory() as folder:
        recorders = {
            name: TrafficRecorder(Path(folder) / name, recommender.bundle, per_second=per_second)
            for name, per_second in KEEPING.items()
        }
        for turn, start in enumerate(range(0, len(asked), TURN)):
            names = list(used)
            for name in names[turn % 3 :] + names[: turn % 3]:
                recommender.observe = recorders[name].record if name in recorders else None
                started = time.process_time()
                for first in range(start, start + TURN, together):
                    recommender.answer(asked[first : first + together])
                used[name] += time.process_time() - started
        recommender.observe = None
        for name, recorder in recorders.items():
            started = time.process_time()
            recorder.close()
            used[name] += time.process_time() - started
    return used


def alone(recommender: Recommender, asked: list[Request], per_second: float) -> float:
    """CPU seconds that the recorder takes for one request."""
    encoded = [recommender.encoder.asked(0, one) for one in asked]
    rows = np.zeros((1, 10), np.int64)
    with tempfile.TemporaryDirectory() as folder:
        recorder = TrafficRecorder(Path(folder), recommender.bundle, per_second=per_second)
        started = time.process_time()
        for one in encoded:
            recorder.record([one], rows)
        recorder.close()
        return (time.process_time() - started) / len(asked)


def keep(rows: list[dict[str, object]]) -> None:
    """Write what `render.py` reads."""
    columns = {
        "requests answered": "",
        "kept": "",
        "CPU ms a request": ".2f",
        "more with the recorder": ".2%",
        "alone": ".2%",
    }
    title = "Keeping a server's requests for monitoring, as a share of the time of a request"
    keep_rows(
        "traffic",
        title,
        "traffic.py bundle=bundles/demo/current --keep",
        columns,
        rows,
        where="one thread",
    )


if __name__ == "__main__":
    main()
