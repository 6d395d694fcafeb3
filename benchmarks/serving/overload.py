"""Twice as many requests as the service can answer, while its bundle is swapped again and again.

    python benchmarks/serving/overload.py VERSION VERSION --minutes 10

The two versions must be of the same users and items and answer differently, such as exports of two
runs with other seeds. They are put below one `current`, which moves from one to the other every 30
seconds. First the service is asked in a closed loop, which says what it can do; then it is asked
twice as often, at equal distances, whatever comes back. Of every answer it is checked that items,
probabilities and retrieval scores are those that the version it names gives for that user alone.
With `--server-cores` the client keeps the cores of this process for itself: on shared ones it
falls behind its own pace, as does every client that has no time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from open_loop import Client
from running import Running, device, keep, running

from twotower.export.bundle import open_bundle
from twotower.export.writer import publish
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request

KEPT = Path(__file__).resolve().parents[1] / "results" / "serving" / "overload.json"
NOW = 1_750_000_000
SHOWN, KNOWN = 10, 100
CLOSE = 1e-4
CAPACITY_CLIENTS, CAPACITY_SECONDS = 16, 15
LOOK_SECONDS = 5.0

Scores = dict[object, tuple[float, float]]


@dataclass
class Truth:
    """What each version answers to each user alone.

    Args:
        scores: Probability and retrieval score of the best items, by version and user.
        checked: How many answers were checked, by version.
        wrong: Answers that are not those of the version they name.
    """

    scores: dict[str, dict[object, Scores]]
    checked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def check(self, user: object, answer: bytes) -> None:
        """Hold an answer against the version that it names."""
        found = json.loads(answer)
        expected = self.scores[found["version"]][user]
        self.checked[found["version"]] += 1
        best = sorted((one[0] for one in expected.values()), reverse=True)[: len(found["items"])]
        right = len(found["items"]) == SHOWN and all(
            item["item_id"] in expected
            and abs(item["probability"] - expected[item["item_id"]][0]) < CLOSE
            and abs(item["retrieval_score"] - expected[item["item_id"]][1]) < CLOSE
            and abs(item["probability"] - probability) < CLOSE
            for item, probability in zip(found["items"], best, strict=True)
        )
        if not right:
            self.wrong.append(answer.decode())


def truth_of(folders: list[Path], num_users: int) -> Truth:
    """Ask every version for every user."""
    scores: dict[str, dict[object, Scores]] = {}
    for folder in folders:
        recommender = Recommender(open_bundle(folder))
        users = recommender.bundle.users.ids[:num_users].to_pylist()
        lists = {
            user: recommender.answer([Request(user=user, k=KNOWN, seconds=NOW)])[0].items
            for user in users
        }
        scores[recommender.bundle.manifest.version] = {
            user: {one.item_id: (one.probability, one.retrieval_score) for one in items}
            for user, items in lists.items()
        }
    first, second = scores.values()
    same = sum(list(first[user])[:SHOWN] == list(second[user])[:SHOWN] for user in first)
    if same > 0.05 * len(first):
        sys.exit(f"the versions answer alike for {same} of {len(first)} users")
    return Truth(scores)


def home_of(folders: list[Path], root: Path) -> list[Path]:
    """Copies of the versions as two of one name."""
    home = root / "overload"
    home.mkdir()
    return [
        Path(shutil.copytree(folder.resolve(), home / f"version-{place}"))
        for place, folder in enumerate(folders)
    ]


class Swaps:
    """Moves `current` to and fro, and looks at the memory meanwhile."""

    def __init__(self, server: Running, versions: list[Path], every: float) -> None:
        self.count = 0
        self.memory: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._arguments = (server, versions, every)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Move it no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        server, versions, every = self._arguments
        due = time.monotonic() + every
        while not self._stop.wait(LOOK_SECONDS):
            self.memory.append({"at": time.monotonic()} | server.memory())
            if time.monotonic() >= due:
                self.count += 1
                due += every
                publish(versions[self.count % 2])


def run(given: argparse.Namespace, versions: list[Path], truth: Truth) -> dict[str, object]:
    """The row of the table."""
    users = list(next(iter(truth.scores.values())))
    chance = random.Random(1)

    def next_body() -> tuple[bytes, object]:
        user = chance.choice(users)
        body = {"user": user, "k": SHOWN, "seconds": NOW}
        return json.dumps(body).encode(), user

    publish(versions[0])
    settings = [f"processes={given.processes}", f"deadline_ms={given.deadline_ms}"]
    with running(versions[0].parent, settings, given.server_cores) as server:
        client = Client(server.port, next_body, truth.check)

        async def ask() -> tuple[float, float]:
            await client.closed_loop(CAPACITY_CLIENTS, 3.0)
            capacity = await client.closed_loop(CAPACITY_CLIENTS, CAPACITY_SECONDS)
            swaps.append(Swaps(server, versions, given.swap_seconds))
            return capacity, await client.open_loop(2 * capacity, 60 * given.minutes)

        swaps: list[Swaps] = []
        capacity, offered = asyncio.run(ask())
        swaps[0].end()
        taken = server.metrics()['twotower_reloads_total{outcome="taken"}']
    tally, memory = client.tally, swaps[0].memory

    def mib(kind: str) -> str:
        tenths = np.array_split([look[kind] for look in memory], min(10, len(memory)))
        return " ".join(f"{tenth.mean():.0f}" for tenth in tenths)

    others = {s: n for s, n in tally.statuses.items() if s not in (200, 503)}
    return {
        "minutes": given.minutes,
        "capacity/s": capacity,
        "offered/s": offered,
        "answered": tally.statuses.get(200, 0),
        "503": tally.statuses.get(503, 0),
        "other": json.dumps(others) if others else "none",
        "mixed or wrong": len(truth.wrong),
        "swaps": f"{swaps[0].count} ({taken:.0f} taken)",
        "versions": " / ".join(f"{n:,}" for n in truth.checked.values()),
        "ms p50 / p99": " / ".join(
            f"{np.quantile(tally.milliseconds, q):.0f}" for q in (0.5, 0.99)
        ),
        "deadline ms": given.deadline_ms,
        "503 ms p50 / p99": " / ".join(
            f"{np.quantile(tally.refused_milliseconds, q):.0f}" for q in (0.5, 0.99)
        ),
        "resident MiB by tenths": mib("resident"),
        "anonymous MiB by tenths": mib("anonymous"),
    }


def main(given: argparse.Namespace) -> None:
    """Measure, print, keep."""
    with tempfile.TemporaryDirectory() as name:
        versions = home_of(given.versions, Path(name))
        truth = truth_of(versions, given.users)
        row = run(given, versions, truth)
    print(json.dumps(row, indent=1))
    for wrong in truth.wrong[:3]:
        print("wrong:", wrong[:500])
    if given.keep:
        keep(
            KEPT,
            {
                "title": "HTTP service: twice its capacity, bundle swapped every "
                f"{given.swap_seconds:g} s",
                "command": "taskset -c 0 python benchmarks/serving/overload.py "
                f"{given.keep} --minutes {given.minutes:g} --server-cores 1",
                "device": f"{device()}, a core for the server, one for the client",
                "date": datetime.now(UTC).date().isoformat(),
                "columns": {
                    **{column: "" for column in row},
                    **{column: ",.0f" for column in ("capacity/s", "offered/s")},
                    **{column: "," for column in ("answered", "503", "mixed or wrong")},
                },
                "rows": [row],
            },
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.add_argument("versions", type=Path, nargs=2)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--swap-seconds", type=float, default=30.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--deadline-ms", type=int, default=1000)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--server-cores", help="for taskset; else those of this process")
    parser.add_argument("--keep", help="keep the figures; how the versions are called in them")
    main(parser.parse_args())
