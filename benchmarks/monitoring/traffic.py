"""What a server pays for keeping requests for monitoring, as a share of the time of a request.

    python benchmarks/monitoring/traffic.py bundle=<bundle> [--turns 60] [--keep]

Three servers with one worker each answer the same requests over HTTP: one keeps nothing, one ten
requests a second, which is the default, and one every request. They take turns, in another order
every time, one request after the other as a quiet server has them, and from sixteen clients at once
as a busy one; a turn's CPU seconds of a worker, the thread that writes included, are held against
those of the worker that keeps nothing in the same turn. The median of these ratios does not mind
what else the machine does. Files are written every 4,096 requests, which a median does not see:
"alone" is what the recorder takes by itself for those that it keeps, writing included, over the CPU
seconds of all requests that a worker can answer.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "serving"))

import numpy as np
from kept import keep_rows
from running import Running, running

from twotower.export.bundle import open_bundle
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request
from twotower.serving.traffic import TrafficRecorder

NOTHING, EVERY = "nothing", 1e9
KEEPING = {"10 a second": 10.0, "every one": EVERY}
TURN = 128
PATIENT = ["deadline_ms=60000"]  # a shared machine may stop a server for a second
RESAMPLES = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="bundle=<bundle>")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="write the figures for RESULTS.md")
    given = parser.parse_args()
    folder = Path(given.bundle.removeprefix("bundle=")).resolve()
    users = open_bundle(folder).users.ids.to_pylist()
    rows = []
    with tempfile.TemporaryDirectory() as kept, ExitStack() as stack:
        servers = {NOTHING: stack.enter_context(running(folder, PATIENT))}
        for name, per_second in KEEPING.items():
            words = [f"traffic={kept}/{per_second:g}", f"traffic_per_second={per_second}"]
            servers[name] = stack.enter_context(running(folder, [*PATIENT, *words]))
        for clients in (1, 16):
            rows += measured(servers, users, clients, given.turns)
    of_one = 1000 * alone(folder, users)
    for row in rows:
        took = row["CPU ms a request"]
        row["alone"] = of_one / took * min(1.0, KEEPING[row["kept"]] * took / 1000)
        print(row, flush=True)
    if given.keep:
        keep(rows, given.turns)


def measured(
    servers: dict[str, Running], users: Sequence[object], clients: int, turns: int
) -> list[dict[str, object]]:
    """Rows of the table for so many clients."""
    rng = np.random.default_rng(clients)
    names = list(servers)
    used: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-2, turns):  # two to warm up
        asked = [users[row] for row in rng.integers(0, len(users), TURN)]
        for name in rng.permutation(names):
            before = cpu_seconds(servers[name])
            ask(servers[name].port, asked, clients)
            if turn >= 0:
                used[name].append(cpu_seconds(servers[name]) - before)
    plain = np.array(used[NOTHING])
    rows = []
    for name in KEEPING:
        ratios = np.array(used[name]) / plain - 1  # (turns,)
        drawn = rng.choice(ratios, (RESAMPLES, turns))
        low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
        rows.append(
            {
                "clients": clients,
                "kept": name,
                "CPU ms a request": 1000 * float(np.median(plain)) / TURN,
                "more, median": float(np.median(ratios)),
                "95 % interval": f"{low:+.2%} .. {high:+.2%}",
            }
        )
    return rows


def cpu_seconds(server: Running) -> float:
    """CPU seconds of all threads of a server's workers, to the nanosecond."""
    paths = [
        path for pid in server.workers for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
    ]
    return sum(int(path.read_text().split()[0]) for path in paths) / 1e9


def ask(port: int, asked: Sequence[object], clients: int) -> None:
    """Send a turn's requests, shared out to the clients."""

    def client(share: Sequence[object]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for user in share:
            body = json.dumps({"user": user, "k": 10})
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/recommend", body, headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"status {answer.status} for user {user}")
        connection.close()

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(client, [asked[first::clients] for first in range(clients)]))


def alone(folder: Path, users: Sequence[object], count: int = 8192) -> float:
    """CPU seconds that the recorder takes for one request that it keeps, its files included."""
    bundle = open_bundle(folder)
    recommender = Recommender(bundle, num_threads=1)
    encoded = [recommender.encoder.asked(0, Request(user=user)) for user in users[:1000]]
    rows = np.zeros((1, 10), np.int64)
    with tempfile.TemporaryDirectory() as kept:
        recorder = TrafficRecorder(Path(kept), bundle, per_second=EVERY)
        started = time.process_time()
        for place in range(count):
            recorder.record([encoded[place % len(encoded)]], rows)
        recorder.close()
        return (time.process_time() - started) / count


def keep(rows: list[dict[str, object]], turns: int) -> None:
    """Write what `render.py` reads."""
    keep_rows(
        "traffic",
        "Keeping a server's requests for monitoring: CPU seconds of the server in "
        f"{turns} turns of {TURN} requests, held against a server that keeps none",
        "traffic.py bundle=bundles/demo/current --keep",
        {
            "clients": "",
            "kept": "",
            "CPU ms a request": ".2f",
            "more, median": "+.2%",
            "95 % interval": "",
            "alone": ".2%",
        },
        rows,
        where="servers of one thread on one core",
    )


if __name__ == "__main__":
    main()
