"""Asks a running server steadily for a quarter of an hour, and looks whether it stays as it was.

    python benchmarks/robustness/soak.py VERSION VERSION --minutes 15

The two versions are put below one `current`, which moves to and fro every minute; a swap gives up
one model and takes up another. Of the requests, sent at equal distances over a few connections that
are kept and some that are not, most are right (recommendations, similar items, explanations), some
are wrong (unknown users, broken JSON, bodies that are too long, paths that are not there), and some
change items: they are put up, changed and taken away again. No answer may have a status above 499
but 503, and what is wrong must be refused. Memory, file descriptors and threads of the worker are
looked at every five seconds; latency is compared between the first tenth of the time and the last.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "serving"))

from overload import home_of  # noqa: E402
from running import Running, device, keep, running  # noqa: E402

from twotower.export.bundle import Bundle, open_bundle  # noqa: E402
from twotower.export.writer import publish  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "robustness" / "soak.json"
CLIENTS, LOOK_SECONDS, OVERLOADED = 4, 5.0, 503
LONG_BODY = 3 << 20


@dataclass(frozen=True)
class Ask:
    """A request and the statuses that are right for it."""

    kind: str
    method: str
    path: str
    body: bytes
    right: tuple[int, ...]


@dataclass
class Tally:
    """What came back.

    Args:
        statuses: How often each kind of request gave each status.
        wrong: Answers with another status than those that are right, in words.
        milliseconds: Of right recommendations: when it was asked and how long it took.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    milliseconds: list[tuple[float, float]] = field(default_factory=list)


class Asker:
    """Thinks of requests.

    Args:
        bundle: What is served.
        seed: Of the random numbers.
    """

    def __init__(self, bundle: Bundle, seed: int) -> None:
        assert_has(bundle)
        self._random = random.Random(seed)
        self._users = bundle.users.ids.to_pylist() if bundle.users else []
        self._items = bundle.items.ids.to_pylist() if bundle.items else []
        self._seed, self._number = seed, 0

    def next(self) -> Ask:
        """The next one."""
        kinds = (self._recommend, self._similar, self._explain, self._wrong, self._change)
        (kind,) = self._random.choices(kinds, (60, 10, 5, 15, 10))
        return kind()

    def _recommend(self) -> Ask:
        body = {"user": self._random.choice(self._users), "k": self._random.choice((1, 5, 10, 20))}
        return _ask("recommend", "/v1/recommend", body)

    def _similar(self) -> Ask:
        return _ask("similar", "/v1/similar", {"item": self._random.choice(self._items), "k": 5})

    def _explain(self) -> Ask:
        user, item = self._random.choice(self._users), self._random.choice(self._items)
        return _ask("explain", "/v1/explain", {"user": user, "item": item})

    def _wrong(self) -> Ask:
        path = "/v1/recommend"
        return self._random.choice(
            (
                _ask("wrong", path, {"user": None, "history": ["no such item"]}, (422,)),
                _ask("wrong", path, {"user": self._users[0], "k": -3}, (400, 422)),
                _ask("wrong", path, {"usr": 1}, (400, 422)),
                Ask("wrong", "POST", path, b'{"user": ', (400, 422)),
                Ask("wrong", "POST", path, b"\xff\xfe", (400, 422)),
                Ask("wrong", "POST", path, b"[" * LONG_BODY, (400, 413, 422)),
                Ask("wrong", "GET", path, b"", (422,)),
                Ask("wrong", "DELETE", path, b"", (405,)),
                Ask("wrong", "POST", "/v1/recomend", b"{}", (404,)),
            )
        )

    def _change(self) -> Ask:
        """Up, changed and away again: 50 items of each asker in turn."""
        self._number += 1
        name = f"soak-{self._seed}-{self._number % 50}"
        if self._number % 3 == 0:
            return _ask("remove", "/v1/items:remove", {"ids": [name]})
        title = f"Version {self._number}"
        return _ask("upsert", "/v1/items:upsert", {"items": [{"item_id": name, "title": title}]})


def assert_has(bundle: Bundle) -> None:
    """Refuse a bundle without users and items."""
    if bundle.users is None or bundle.items is None:
        sys.exit(f"{bundle.folder}: has no users or no items")


def _ask(kind: str, path: str, body: object, right: tuple[int, ...] = (200,)) -> Ask:
    return Ask(kind, "POST", path, json.dumps(body).encode(), right)


class Client(threading.Thread):
    """Asks at equal distances.

    Args:
        port: Of the server.
        asker: Thinks of requests.
        every: Seconds from one request to the next.
        until: When to stop, by `time.monotonic`.
        tally: Where answers are counted; of this client alone.
    """

    def __init__(self, port: int, asker: Asker, every: float, until: float) -> None:
        super().__init__()
        self._port, self._asker, self._every, self._until = port, asker, every, until
        self.tally = Tally()

    def run(self) -> None:
        """Ask until it is time to stop."""
        due, connection = time.monotonic(), None
        while due < self._until:
            time.sleep(max(0.0, due - time.monotonic()))
            ask, begun = self._asker.next(), time.monotonic()
            connection = connection or http.client.HTTPConnection("127.0.0.1", self._port, 30)
            try:
                headers = {"Content-Type": "application/json"}
                connection.request(ask.method, ask.path, ask.body, headers)
                answer = connection.getresponse()
                status, text = answer.status, answer.read()
            except OSError:  # A body that is too long may be refused before it was sent.
                status, text = 413, b""
                connection.close()
                connection = None
            if connection is not None and random.random() < 0.02:
                connection.close()
                connection = None
            self._count(ask, status, text, begun)
            due += self._every

    def _count(self, ask: Ask, status: int, text: bytes, begun: float) -> None:
        self.tally.statuses[ask.kind, status] += 1
        if status not in (*ask.right, OVERLOADED):
            self.tally.wrong.append(
                f"{ask.method} {ask.path} {ask.body[:80]!r}: {status} {text[:200]!r}"
            )
        if ask.kind == "recommend" and status == 200:
            self.tally.milliseconds.append((begun, 1000 * (time.monotonic() - begun)))


def look(server: Running) -> dict[str, float]:
    """Memory in MiB, file descriptors and threads of the worker."""
    (worker,) = server.workers
    return {
        "anonymous": server.memory()["anonymous"],
        "descriptors": len(list(Path(f"/proc/{worker}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{worker}/task").iterdir())),
    }


def soak(given: argparse.Namespace, versions: list[Path], journal: Path) -> dict[str, object]:
    """The row of the table."""
    publish(versions[0])
    bundle = open_bundle(versions[0])
    settings = [f"journal={journal}", "max_in_flight=64"]
    with running(versions[0].parent, settings) as server:
        begun = time.monotonic()
        until = begun + 60 * given.minutes
        every = CLIENTS / given.per_second
        askers = [Asker(bundle, seed) for seed in range(CLIENTS)]
        clients = [Client(server.port, asker, every, until) for asker in askers]
        for client in clients:
            client.start()
        looks, swaps, cpu = [], 0, server.cpu_seconds()
        while time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            looks.append(look(server))
            if time.monotonic() - begun > (swaps + 1) * given.swap_seconds:
                swaps += 1
                publish(versions[swaps % 2])
        for client in clients:
            client.join()
        cpu = server.cpu_seconds() - cpu
        taken = server.metrics()['twotower_reloads_total{outcome="taken"}']
    return row(
        given, [client.tally for client in clients], looks, f"{swaps} ({taken:.0f} taken)", cpu
    )


def row(
    given: argparse.Namespace,
    tallies: list[Tally],
    looks: list[dict[str, float]],
    swaps: str,
    cpu: float,
) -> dict[str, object]:
    """What is kept of it."""
    statuses = sum((tally.statuses for tally in tallies), Counter())
    wrong = [text for tally in tallies for text in tally.wrong]
    for text in wrong[:5]:
        print("wrong:", text)
    times = np.array(sorted(pair for tally in tallies for pair in tally.milliseconds))
    tenth = (times[-1, 0] - times[0, 0]) / 10
    first = times[times[:, 0] < times[0, 0] + tenth, 1]
    last = times[times[:, 0] > times[-1, 0] - tenth, 1]

    def tenths(name: str) -> str:
        parts = np.array_split([one[name] for one in looks], min(10, len(looks)))
        return " ".join(f"{part.mean():.0f}" for part in parts)

    by_kind = {kind: sum(n for (k, _), n in statuses.items() if k == kind) for kind, _ in statuses}
    return {
        "minutes": given.minutes,
        "requests": sum(statuses.values()),
        "of them": ", ".join(f"{n:,} {kind}" for kind, n in sorted(by_kind.items())),
        "503": sum(n for (_, status), n in statuses.items() if status == OVERLOADED),
        "other 5xx": sum(n for (_, s), n in statuses.items() if s > 499 and s != OVERLOADED),
        "not as it should be": len(wrong),
        "swaps": swaps,
        "cores": cpu / (60 * given.minutes),
        "ms p50, first / last tenth": f"{np.median(first):.1f} / {np.median(last):.1f}",
        "ms p99, first / last tenth": " / ".join(
            f"{np.quantile(part, 0.99):.0f}" for part in (first, last)
        ),
        "anonymous MiB by tenths": tenths("anonymous"),
        "descriptors by tenths": tenths("descriptors"),
        "threads by tenths": tenths("threads"),
    }


def main() -> int:
    """Run the command line; 1 when an answer was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", type=Path, nargs=2)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--per-second", type=float, default=20.0)
    parser.add_argument("--swap-seconds", type=float, default=60.0)
    parser.add_argument("--keep", help="keep the figures; how the versions are called in them")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        versions = home_of(given.versions, Path(name))
        found = soak(given, versions, Path(name) / "items.journal")
    print(json.dumps(found, indent=1))
    if given.keep:
        forms = {"requests": ",", "503": ",", "other 5xx": ",", "not as it should be": ","}
        keep(
            KEPT,
            {
                "title": "HTTP service, asked for a quarter of an hour",
                "command": f"python benchmarks/robustness/soak.py {given.keep} --minutes "
                f"{given.minutes:g} --per-second {given.per_second:g}",
                "device": f"{device()}, shared with other work",
                "date": datetime.now(UTC).date().isoformat(),
                "columns": {name: forms.get(name, "") for name in found} | {"cores": ".2f"},
                "rows": [found],
            },
        )
    return int(bool(found["other 5xx"] or found["not as it should be"]))


if __name__ == "__main__":
    sys.exit(main())
