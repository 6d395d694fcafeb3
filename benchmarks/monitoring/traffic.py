"""What a server pays for keeping requests for monitoring, as a share of the time of a request.

    python benchmarks/monitoring/traffic.py bundle=<bundle> [--requests 2000] [--keep]

Requests are answered one by one, as a quiet server does, and sixteen together, as a busy one does;
with the recorder at its default of ten a second, and keeping every request. Rounds with and without
it take turns, in CPU seconds of the process, the writing thread included; the share is the median
over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from twotower.export.bundle import open_bundle
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request
from twotower.serving.traffic import TrafficRecorder

KEPT = Path(__file__).resolve().parents[1] / "results" / "monitoring"
EVERY = 1e9  # a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="bundle=<bundle>")
    parser.add_argument("--requests", type=int, default=2000, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", action="store_true", help="write the figures for RESULTS.md")
    given = parser.parse_args()
    bundle = open_bundle(Path(given.bundle.removeprefix("bundle=")))
    recommender = Recommender(bundle, num_threads=1)
    users = bundle.users.ids.to_pylist()
    rng = np.random.default_rng(0)
    asked = [Request(user=users[row]) for row in rng.integers(0, len(users), given.requests)]
    rows = []
    for together in (1, 16):
        shares: dict[str, list[float]] = {"10 a second": [], "every one": []}
        costs = []
        for _ in range(given.rounds):
            without = seconds(recommender, asked, together, None)
            costs.append(without / len(asked))
            for name, per_second in (("10 a second", 10.0), ("every one", EVERY)):
                shares[name].append(seconds(recommender, asked, together, per_second) / without - 1)
        rows += [
            {
                "requests answered": "one by one" if together == 1 else f"{together} together",
                "kept": name,
                "CPU ms a request": 1000 * float(np.median(costs)),
                "more with the recorder": float(np.median(of)),
                "of a request, directly": direct(bundle, recommender, asked) / np.median(costs)
                if name == "every one"
                else direct_skipped(bundle, recommender, asked) / np.median(costs),
            }
            for name, of in shares.items()
        ]
    for row in rows:
        print(row)
    if given.keep:
        keep(rows)


def seconds(
    recommender: Recommender, asked: list[Request], together: int, per_second: float | None
) -> float:
    """CPU seconds for all requests, with the recorder or without."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        recorder = None
        if per_second is not None:
            recorder = TrafficRecorder(Path(folder), recommender.bundle, per_second=per_second)
            recommender.observe = recorder.record
        for start in range(0, len(asked), together):
            recommender.answer(asked[start : start + together])
        recommender.observe = None
        if recorder is not None:
            recorder.close()
        return time.process_time() - started


def direct(bundle, recommender: Recommender, asked: list[Request]) -> float:
    """CPU seconds of keeping one request and of its share of a file, by itself."""
    return _alone(bundle, recommender, asked, EVERY)


def direct_skipped(bundle, recommender: Recommender, asked: list[Request]) -> float:
    """The same where most requests are not kept."""
    return _alone(bundle, recommender, asked, 10.0)


def _alone(bundle, recommender: Recommender, asked: list[Request], per_second: float) -> float:
    encoded = [recommender.encoder.asked(0, one) for one in asked]
    rows = np.zeros((1, 10), np.int64)
    with tempfile.TemporaryDirectory() as folder:
        recorder = TrafficRecorder(Path(folder), bundle, per_second=per_second)
        started = time.process_time()
        for one in encoded:
            recorder.record([one], rows)
        recorder.close()
        return (time.process_time() - started) / len(asked)


def keep(rows: list[dict[str, object]]) -> None:
    """Write what `render.py` reads."""
    KEPT.mkdir(parents=True, exist_ok=True)
    document = {
        "title": "Keeping a server's requests for monitoring, as a share of the time of a request",
        "command": "python benchmarks/monitoring/traffic.py bundle=bundles/demo/current --keep",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"one thread, {platform.machine()}",
        "columns": {
            "requests answered": "",
            "kept": "",
            "CPU ms a request": ".2f",
            "more with the recorder": ".2%",
            "of a request, directly": ".3%",
        },
        "rows": rows,
    }
    (KEPT / "traffic.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
