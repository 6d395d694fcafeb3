"""One request at a time, on one core, against the bare chain of the same models in the same run.

    python benchmarks/serving/world.py FOLDER
    taskset -c 0 python benchmarks/serving/latency.py FOLDER [--requests 300] [--keep "DEVICE"]

A request is a known user with a history: 500 candidates out of a million items, 12 ids and 6
numbers a candidate. All ways take turns on the same requests, so that what else the machine does
falls on all of them; CPU time is that of the process. `bare_chain.py` says what the chain leaves
out. `--keep` puts the tables among the results.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from bare_chain import Chain

from twotower.export.bundle import Bundle, open_bundle
from twotower.serving import recommender as recommender_module
from twotower.serving.asked import RequestEncoder
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request

KEPT = Path(__file__).resolve().parents[1] / "results" / "serving"
WARM_UP = 20
START = """
import sys, time
started = time.perf_counter()
from pathlib import Path
from twotower.export.bundle import open_bundle
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request
imported = time.perf_counter()
bundle = open_bundle(Path(sys.argv[1]))
opened = time.perf_counter()
recommender = Recommender(bundle, num_threads=1)
ready = time.perf_counter()
recommender.answer([Request(user=bundle.users.ids[0].as_py())])
print(imported - started, opened - imported, ready - opened, time.perf_counter() - ready)
assert "torch" not in sys.modules
"""


def some_requests(bundle: Bundle, count: int) -> list[Request]:
    """Known users, one request each, with all of the context."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(bundle.users), count)
    return [
        Request(
            user=bundle.users.ids[int(row)].as_py(),
            context={f"c{at}": int(rng.integers(n)) for at, n in enumerate((3, 7, 24, 60))}
            | {f"cn{at}": float(rng.normal()) for at in range(2)},
            seconds=1_706_000_000.0,
        )
        for row in chosen
    ]


def encoded(encoder: RequestEncoder, request: Request, chain: Chain) -> dict[str, np.ndarray]:
    """What the chain is given: columns of the types that the models take."""
    asked = encoder.asked(0, request)
    kinds = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(bool)": np.bool_}
    return {
        node.name: asked.columns[node.name].astype(kinds[node.type])
        for model in (chain.tower, chain.ranker)
        for node in model.get_inputs()
        if node.name in asked.columns
    }


def measure(ways: dict[str, Callable[[int], Any]], count: int) -> dict[str, np.ndarray]:
    """CPU and wall milliseconds (count, 2) of every way, all taking turns."""
    clocks = {name: np.empty((count, 2)) for name in ways}
    names = list(ways)
    for number in range(-WARM_UP, count):
        for name in np.roll(names, number):
            wall, cpu = time.perf_counter(), time.process_time()
            ways[name](number % count)
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if number >= 0:
                clocks[name][number] = spent
    return {name: 1e3 * clock for name, clock in clocks.items()}


def stages_of(recommender: Recommender, requests: list[Request]) -> dict[str, float]:
    """Median CPU microseconds of every stage."""
    recommender_module.time = SimpleNamespace(perf_counter=time.process_time)
    taken = [recommender.answer([request])[0].seconds for request in requests]
    recommender_module.time = time
    return {name: 1e6 * float(np.median([t[name] for t in taken])) for name in taken[0]}


def start_of(folder: Path) -> dict[str, float]:
    """Seconds of a fresh process until it has answered, with its files in the page cache."""
    done = subprocess.run(
        [sys.executable, "-c", START, str(folder)], capture_output=True, text=True, check=True
    )
    parts = dict(
        zip(
            ("import", "open", "load", "first answer"), map(float, done.stdout.split()), strict=True
        )
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    return {**parts, "together": sum(parts.values()), "peak_rss_mib": used}


def same_top(first: Recommender, second: Recommender, requests: list[Request]) -> float:
    """Share of requests to which both show the same ten items in the same order."""
    shown = [
        [[item.item_id for item in r.answer([request])[0].items] for request in requests]
        for r in (first, second)
    ]
    return float(np.mean([one == other for one, other in zip(*shown, strict=True)]))


def main(given: argparse.Namespace) -> None:
    """Measure and print."""
    bundle = open_bundle(given.folder / "bundle" / "current")
    requests = some_requests(bundle, given.requests)
    ours = Recommender(bundle, num_threads=1)
    chains = {
        "chain, plain ranker": Chain(bundle, given.folder / "plain_ranker.onnx", 500),
        "chain, query once": Chain(bundle, None, 500),
    }
    encoder = RequestEncoder(bundle, ours.items)
    queries = [encoded(encoder, request, chains["chain, plain ranker"]) for request in requests]
    ways: dict[str, Callable[[int], Any]] = {
        name: lambda at, chain=chain: chain(queries[at]) for name, chain in chains.items()
    }
    ways["twotower"] = lambda at: ours.answer([requests[at]])
    clocks = measure(ways, given.requests)
    bars = [float(np.median(clocks[name][:, 0])) for name in chains]
    rows = []
    for name, clock in clocks.items():
        (cpu, wall), (_, slow) = np.percentile(clock, (50, 99), axis=0)
        rows.append(
            {
                "way": name,
                "CPU p50, ms": cpu,
                "wall p50, ms": wall,
                "wall p99, ms": slow,
                "of the plain chain": cpu / bars[0],
                "of the chain, query once": cpu / bars[1],
            }
        )
    print(json.dumps(rows, indent=1))
    print(json.dumps(stages_of(ours, requests), indent=1))
    print(json.dumps(start_of(bundle.folder), indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--keep", metavar="DEVICE", help="where it was measured")
    main(parser.parse_args())
