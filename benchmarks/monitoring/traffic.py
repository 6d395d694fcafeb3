"""What a server pays for keeping requests for monitoring, as a share of the time of a request.

    python benchmarks/monitoring/traffic.py bundle=<bundle> [--pairs 2000] [--keep]

Every request is answered twice in a row by one process, once with the recorder and once without, in
turns which comes first; the median of the ratios of the pairs' CPU seconds, all threads included,
does not mind what else the machine does. Requests are answered one by one, as a quiet server does,
and sixteen together, as a busy one does; what HTTP costs besides is left out, so the share is that
of less than a whole request. Files are written every 4,096 requests, which a median does not see:
"alone" is the recorder by itself for those that it keeps, writing included, over the CPU seconds of
all requests that a core can answer.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from kept import keep_rows

from twotower.export.bundle import open_bundle
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request
from twotower.serving.traffic import TrafficRecorder

EVERY = 1e9
KEEPING = {"10 a second": 10.0, "every one": EVERY}
TOGETHER = (1, 16)
RESAMPLES, WARM_UP = 2000, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="bundle=<bundle>")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--keep", action="store_true", help="write the figures for RESULTS.md")
    given = parser.parse_args()
    bundle = open_bundle(Path(given.bundle.removeprefix("bundle=")))
    recommender = Recommender(bundle, num_threads=1)
    users = bundle.users.ids.to_pylist()
    of_one = alone(recommender, users)
    rows = []
    for together in TOGETHER:
        for name, per_second in KEEPING.items():
            plain, ratios = paired(recommender, users, together, per_second, given.pairs)
            milliseconds = 1000 * float(np.median(plain)) / together
            low, high = interval(ratios)
            rows.append(
                {
                    "answered together": together,
                    "kept": name,
                    "CPU ms a request": milliseconds,
                    "more, median": float(np.median(ratios)) - 1,
                    "95 % interval": f"{low - 1:+.2%} .. {high - 1:+.2%}",
                    "alone": 1000
                    * of_one
                    / milliseconds
                    * min(1, per_second * milliseconds / 1000),
                }
            )
            print(rows[-1], flush=True)
    if given.keep:
        keep(rows, given.pairs)


def paired(
    recommender: Recommender, users: Sequence[object], together: int, per_second: float, pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """CPU seconds of requests without the recorder (pairs,), and ratios with it (pairs,)."""
    rng = np.random.default_rng(together)
    used: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        recorder = TrafficRecorder(Path(folder), recommender.bundle, per_second=per_second)
        for pair in range(-WARM_UP, max(pairs // together, 100)):
            asked = [Request(user=users[row]) for row in rng.integers(0, len(users), together)]
            for keeps in (False, True) if pair % 2 else (True, False):
                recommender.observe = recorder.record if keeps else None
                started = time.process_time_ns()
                recommender.answer(asked)
                if pair >= 0:
                    used[keeps].append((time.process_time_ns() - started) / 1e9)
        recommender.observe = None
        recorder.close()
    plain = np.array(used[False])
    return plain, np.array(used[True]) / plain


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


def alone(recommender: Recommender, users: Sequence[object], count: int = 8192) -> float:
    """CPU seconds that the recorder takes for one request that it keeps, its files included."""
    encoded = [recommender.encoder.asked(0, Request(user=user)) for user in users[:1000]]
    rows = np.zeros((1, 10), np.int64)
    with tempfile.TemporaryDirectory() as folder:
        recorder = TrafficRecorder(Path(folder), recommender.bundle, per_second=EVERY)
        started = time.process_time()
        for place in range(count):
            recorder.record([encoded[place % len(encoded)]], rows)
        recorder.close()
        return (time.process_time() - started) / count


def keep(rows: list[dict[str, object]], pairs: int) -> None:
    """Write what `render.py` reads."""
    keep_rows(
        "traffic",
        "Keeping a server's requests for monitoring, as a share of the time of a request",
        f"traffic.py bundle=bundles/demo/current --pairs {pairs} --keep",
        {
            "answered together": "",
            "kept": "",
            "CPU ms a request": ".2f",
            "more, median": "+.2%",
            "95 % interval": "",
            "alone": ".2%",
        },
        rows,
        where="one thread",
    )


if __name__ == "__main__":
    main()
