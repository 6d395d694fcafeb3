"""One request at a time, on one core, against the bare chain of the same models in the same run.

    python benchmarks/serving/world.py FOLDER
    taskset -c 0 python benchmarks/serving/latency.py FOLDER [--requests 300] [--keep]

A request is a known user with a history: 500 candidates out of a million items, 12 ids and 6
numbers a candidate. All ways take turns on the same requests, so that what else the machine does
falls on all of them; CPU time is that of the process. `bare_chain.py` says what the chain leaves
out; its ranker is the bundle's own, or, "plain", as PyTorch exports it. "twotower" is
`Recommender.answer`, and with "int8" the bundle's second ranker screens the candidates. Stages are
timed once more by themselves. `--keep` puts the tables among the results.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from bare_chain import Chain
from running import keep_rows

sys.path.append(str(Path(__file__).resolve().parents[1]))
from render import table

from twotower.export.bundle import Bundle, open_bundle
from twotower.serving import recommender as recommender_module
from twotower.serving.asked import RequestEncoder
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request

WARM_UP = 20
CONTEXT_VALUES, NUM_CONTEXT_NUMBERS = (3, 7, 24, 60), 2
START = """
import sys, time
started = time.perf_counter(), time.process_time()
from pathlib import Path
from twotower.export.bundle import open_bundle
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request
clocks = [started, (time.perf_counter(), time.process_time())]
bundle = open_bundle(Path(sys.argv[1]))
clocks.append((time.perf_counter(), time.process_time()))
recommender = Recommender(bundle, num_threads=1)
clocks.append((time.perf_counter(), time.process_time()))
recommender.answer([Request(user=bundle.users.ids[0].as_py())])
clocks.append((time.perf_counter(), time.process_time()))
for before, after in zip(clocks, clocks[1:]):
    print(after[0] - before[0], after[1] - before[1])
assert "torch" not in sys.modules
"""


def some_requests(bundle: Bundle, count: int) -> list[Request]:
    """Known users, one request each, with all of the context."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(bundle.users), count)
    return [
        Request(
            user=bundle.users.ids[int(row)].as_py(),
            context={f"c{at}": int(rng.integers(n)) for at, n in enumerate(CONTEXT_VALUES)}
            | {f"cn{at}": float(rng.normal()) for at in range(NUM_CONTEXT_NUMBERS)},
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


def figures(clock: np.ndarray) -> dict[str, float]:
    """Half and all but a hundredth of some times (n, 2)."""
    (cpu, wall), (slow_cpu, slow) = np.percentile(clock, (50, 99), axis=0)
    return {"CPU p50": cpu, "CPU p99": slow_cpu, "wall p50": wall, "wall p99": slow}


def stages_of(way: str, recommender: Recommender, requests: list[Request]) -> list[dict[str, Any]]:
    """CPU and wall milliseconds of every stage."""
    kinds = {"wall": time.perf_counter, "CPU": time.process_time}
    taken = {}
    for kind, clock in kinds.items():
        recommender_module.time = SimpleNamespace(perf_counter=clock)
        taken[kind] = [recommender.answer([request])[0].seconds for request in requests]
    recommender_module.time = time
    rows = []
    for stage in taken["CPU"][0]:
        clocks = [[1e3 * seconds[stage] for seconds in taken[kind]] for kind in ("CPU", "wall")]
        rows.append({"way": way, "stage": stage, **figures(np.array(clocks).T)})
    return rows


def start_of(folder: Path) -> list[dict[str, Any]]:
    """Seconds of a fresh process until it has answered, its files in the page cache."""
    command = [sys.executable, "-c", START, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    parts = ("import", "check and open", "load", "first answer")
    clocks = np.array([line.split() for line in done.stdout.splitlines()], float)
    rows = [
        {"part": part, "wall s": wall, "CPU s": cpu}
        for part, (wall, cpu) in zip(parts, clocks, strict=True)
    ]
    wall, cpu = clocks.sum(axis=0)
    gigabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
    rows.append({"part": f"together, {gigabytes:.2f} GB", "wall s": wall, "CPU s": cpu})
    print(f"peak memory {used:,.0f} MiB, mapped files among it")
    return rows


def same_lists(first: Recommender, second: Recommender, requests: list[Request]) -> float:
    """Share of requests to which both show the same ten items in the same order."""
    shown = [
        [[item.item_id for item in r.answer([request])[0].items] for request in requests]
        for r in (first, second)
    ]
    return float(np.mean([one == other for one, other in zip(*shown, strict=True)]))


def ways_of(
    given: argparse.Namespace, bundle: Bundle, ours: dict[str, Recommender], requests: list[Request]
) -> list[dict[str, Any]]:
    """All ways, one under the other."""
    chains = {
        "chain, plain ranker": Chain(bundle, given.folder / "plain_ranker.onnx", 500),
        "chain": Chain(bundle, None, 500),
    }
    encoder = RequestEncoder(bundle, next(iter(ours.values())).items)
    queries = [encoded(encoder, request, chains["chain"]) for request in requests]
    ways: dict[str, Callable[[int], Any]] = {
        name: lambda at, chain=chain: chain(queries[at]) for name, chain in chains.items()
    }
    for name, recommender in ours.items():
        ways[name] = lambda at, one=recommender: one.answer([requests[at]])
    clocks = measure(ways, given.requests)
    bars = [float(np.median(clocks[name][:, 0])) for name in chains]
    rows = []
    for name, clock in clocks.items():
        row = {"way": name, **figures(clock)}
        row |= {
            "of the plain chain": row["CPU p50"] / bars[0],
            "of the chain": row["CPU p50"] / bars[1],
        }
        rows.append(row)
    if len(ours) > 1:
        rows[-1]["same ten"] = same_lists(*ours.values(), requests)
    return rows


def main(given: argparse.Namespace) -> None:
    """Measure, print, keep."""
    bundle = open_bundle(given.folder / "bundle" / "current")
    requests = some_requests(bundle, given.requests)
    ours = {"twotower": Recommender(replace(bundle, screen=None), num_threads=1)}
    if bundle.screen is not None:
        ours["twotower, int8"] = Recommender(bundle, num_threads=1)
    tables = {
        "ways": ways_of(given, bundle, ours, requests),
        "stages": [row for name, r in ours.items() for row in stages_of(name, r, requests)],
        "start": start_of(bundle.folder),
    }
    times = {name: ".2f" for name in figures(np.zeros((1, 2)))}
    shares = {"of the plain chain": ".2f", "of the chain": ".2f", "same ten": ".3f"}
    columns = {
        "ways": {"way": "", **times, **shares},
        "stages": {"way": "", "stage": "", **times},
        "start": {"part": "", "wall s": ".2f", "CPU s": ".2f"},
    }
    for name, rows in tables.items():
        print(*table(columns[name], rows), "", sep="\n")
    if not given.keep:
        return
    what = f"{len(bundle.items):,} items x {bundle.manifest.dim}, 500 candidates"
    command = f"latency.py FOLDER --requests {given.requests}"
    titles = {
        "ways": f"A request and the bare chain, {what}, milliseconds",
        "stages": "Stages of a request, milliseconds",
        "start": f"Start of a process, {len(bundle.items):,} items",
    }
    for name, rows in tables.items():
        suffix = "" if name == "ways" else f"_{name}"
        keep_rows(f"latency{suffix}", titles[name], command, columns[name], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    main(parser.parse_args())
