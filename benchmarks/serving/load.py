"""Throughput and latency of the HTTP service by stage, at several numbers of clients.

    python benchmarks/serving/load.py bundles/demo/current
    python benchmarks/serving/load.py bundles/demo/current --clients 8 --seconds 30 --processes 2

wrk (Debian's package of that name) keeps as many connections busy as there are clients, each with
the next request as soon as the last is answered, for random known users, ten items, with reasons.
Server and wrk share the cores of this process. A stage is timed by the server for the batch that a
request was part of; `queue` is what a request waited for that batch, read off the server's
histogram, and `rest` is HTTP, JSON and threads at the median.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from running import Running, device, keep, running

from twotower.export.bundle import open_bundle

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / "results" / "serving" / "load.json"
STAGES = ("features", "query_tower", "index", "ranker", "describe")
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
SEED = 7


class NoAnswerError(Exception):
    """Nothing was answered in the time that there was."""


def wrk(port: int, clients: int, seconds: int, folder: Path) -> tuple[dict[str, float], np.ndarray]:
    """One run: what wrk says, and seconds of every answer by stage (answers, stages)."""
    files = {"USERS_FILE": folder / "users", "STAGES_FILE": folder / "stages"}
    environment = os.environ | {name: str(path) for name, path in files.items()}
    said = subprocess.run(
        [
            *("wrk", "--latency", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "30s"),
            *("-s", str(HERE / "load.lua"), f"http://127.0.0.1:{port}"),
        ],
        env=environment | {"LOAD_SEED": str(SEED + clients)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    if failed or "Socket errors" in said:
        sys.exit(f"not all requests were answered:\n{said}")
    if not re.search(r"[1-9]\d* requests in", said):
        raise NoAnswerError
    found = {"requests/s": float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])}
    for percent in (50, 99):
        value, unit = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)$", said, re.M).groups()
        found[f"p{percent}"] = float(value) * UNITS[unit]
    lines = files["STAGES_FILE"].read_text().splitlines()
    rows = [[row.get(stage, 0.0) for stage in STAGES] for row in map(json.loads, lines[:-1])]
    return found, np.asarray(rows)


def queue_quantile(before: dict[str, float], after: dict[str, float], share: float) -> float:
    """Milliseconds in the queue, by straight lines between the bounds of the histogram."""
    name = re.compile(r'twotower_stage_seconds_bucket\{le="([^"]+)",stage="queue"\}')
    bounds = {float(found[1]): key for key in after if (found := name.fullmatch(key))}
    edges = sorted(bounds)
    counts = [after[bounds[edge]] - before.get(bounds[edge], 0.0) for edge in edges]
    # The last bound is infinite.
    return 1000 * float(np.interp(share * counts[-1], [0.0, *counts[:-1]], [0.0, *edges[:-1]]))


def measure(server: Running, clients: int, seconds: int, folder: Path) -> dict[str, object]:
    """A row of the table."""
    with suppress(NoAnswerError):
        wrk(server.port, clients, 2, folder)  # warms up
    before, cpu = server.metrics(), server.cpu_seconds()
    whole, stages = wrk(server.port, clients, seconds, folder)
    after, cpu = server.metrics(), server.cpu_seconds() - cpu

    def grown(series: str) -> float:
        return after[series] - before.get(series, 0.0)

    answers = grown("twotower_batch_size_sum")
    row: dict[str, object] = {
        "clients": clients,
        "requests/s": whole["requests/s"],
        "batch": answers / grown("twotower_batch_size_count"),
        "server CPU ms": 1000 * cpu / answers,
        "whole": f"{whole['p50']:.2f} / {whole['p99']:.2f}",
    }
    queue = [queue_quantile(before, after, share) for share in (0.5, 0.99)]
    row["queue"] = f"{queue[0]:.2f} / {queue[1]:.2f}"
    for stage, values in zip(STAGES, 1000 * stages.T, strict=True):
        row[stage] = f"{np.quantile(values, 0.5):.2f} / {np.quantile(values, 0.99):.2f}"
    row["rest"] = whole["p50"] - queue[0] - 1000 * float(np.median(stages.sum(1)))
    return row


def main(given: argparse.Namespace) -> None:
    """Measure, print, keep."""
    bundle = open_bundle(given.bundle)
    overrides = [f"processes={given.processes}", "deadline_ms=30000", "max_waiting=1024"]
    rows = []
    with tempfile.TemporaryDirectory() as name, running(given.bundle, overrides) as server:
        folder = Path(name)
        users = bundle.users.ids[: given.users].to_pylist()
        (folder / "users").write_text("\n".join(json.dumps(user) for user in users))
        for clients in given.clients:
            rows.append(measure(server, clients, given.seconds, folder))
            print(json.dumps(rows[-1]), flush=True)
        print(f"started in {server.start_seconds:.2f} s")
    if not given.keep:
        return
    counts, form = bundle.manifest.counts, ",.1f"
    keep(
        KEPT,
        {
            "title": f"HTTP service: {counts['items']:,} items, {bundle.manifest.index}, "
            f"{bundle.manifest.num_candidates} candidates, ms as p50 / p99 of a batch",
            "command": f"python benchmarks/serving/load.py {given.keep}",
            "device": f"{device()}, one core for server and wrk",
            "date": datetime.now(UTC).date().isoformat(),
            "columns": {
                "clients": "",
                "requests/s": form,
                "batch": form,
                "server CPU ms": ".2f",
                **dict.fromkeys(("whole", "queue", *STAGES), ""),
                "rest": ".2f",
            },
            "rows": rows,
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--keep", help="keep the figures; how the bundle is called in them")
    main(parser.parse_args())
