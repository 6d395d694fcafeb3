"""Kills batch runs at random moments, runs them again, and compares with a run that was not killed.

    python benchmarks/serving/batch_kills.py --kills 20 --seed 0

A run over 1,000 users of a small built-in world first publishes lists of 5 items. Then one of 20
items is started again and again and killed with SIGKILL, with all its threads, at a random moment
between its start and the time that it takes; after every kill all users are looked up: each must
have the old list or each the new one. When it was killed, or has ended, often enough, it is run to
its end, and files and store must be those of the run that was not killed. Meanwhile a reader looks
users up without pause and must always find a whole list, and never an older one than before. Both
stores are tried in turn; the Redis server itself stays alive.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from running import keep_rows

from twotower.serving.store import open_reader

OLD, NEW, CHUNK = 5, 20, 80
COLUMNS = {
    "store": "",
    "kills": "",
    "ended": "",
    "half": "",
    "wrong": "",
    "seconds": ".1f",
    "lookups": ",",
    "problems": "",
}
WORLD = ["data.num_users=1000", "data.num_items=500", "data.slates_per_user=6", "quiet=true"]
MODELS = [
    "name=killed",
    "models.retrieval.dim=16",
    "training.retrieval.max_epochs=1",
    "training.ranking.max_epochs=1",
    "trainer.accelerator=cpu",
]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "twotower.cli.main", *words]


class World:
    """Runs of one bundle in one folder and store."""

    def __init__(self, folder: Path, bundle: Path, url: str | None) -> None:
        self.folder, self.bundle, self.name = folder, bundle, folder.name
        self.store = ["store=lmdb"] if url is None else ["store=redis", f"store.url={url}"]
        place = folder / "stores" / self.name if url is None else f"{url}#{self.name}"
        self.location = str(place)
        folder.mkdir(parents=True)

    def batch(self, k: int, seconds: int) -> list[str]:
        """The command."""
        settings = [f"bundle={self.bundle}", f"k={k}", f"seconds={seconds}", f"name={self.name}"]
        return command("batch", *settings, f"chunk_size={CHUNK}", "quiet=true", *self.store)

    def run(self, k: int, seconds: int) -> float:
        """To the end; how many seconds it took."""
        begun = time.perf_counter()
        subprocess.run(self.batch(k, seconds), cwd=self.folder, check=True)
        return time.perf_counter() - begun

    def kill(self, k: int, seconds: int, after: float) -> bool:
        """Start and kill after some seconds; whether it was still running."""
        process = subprocess.Popen(self.batch(k, seconds), cwd=self.folder, start_new_session=True)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL

    def lists(self, users: list[Any]) -> list[Any]:
        """What is found of some users."""
        look = open_reader(self.location)
        return [(one.status, one.written_at, one.items) for one in map(look.lookup, users)]

    def files(self) -> dict[str, bytes]:
        """The files of the lists."""
        current = self.folder / "batches" / self.name / "current" / "lists"
        return {path.name: path.read_bytes() for path in current.glob("*.parquet")}


class Watch:
    """Looks users up all the time."""

    def __init__(self, world: World, users: list[Any]) -> None:
        self.lookups, self.problems = 0, list[Any]()
        self._world, self._users, self._done = world, users, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        look, latest = open_reader(self._world.location), 0
        while not self._done.is_set():
            found = look.lookup(random.choice(self._users))
            whole = len(found.items) in (OLD, NEW) and found.status == "found"
            if not whole or (found.written_at or 0) < latest:
                self.problems.append(found)
            latest = max(latest, found.written_at or 0)
            self.lookups += 1
            time.sleep(0.001)  # leaves the core to the run

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def make_bundle(folder: Path) -> Path:
    for words in (
        ["train", *WORLD, *MODELS],
        [
            *("export", "run=runs/killed/latest", "index=flat", "index.device=cpu", "quiet=true"),
            "num_candidates=50",
            "gates.max_calibration_error=null",
        ],
    ):
        subprocess.run(command(*words), cwd=folder, check=True)
    return folder / "bundles" / "killed" / "current"


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A server behind a socket in a folder."""
    socket = folder / "redis.sock"
    options = {"port": 0, "unixsocket": socket, "save": "", "appendonly": "no", "dir": folder}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    server = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        server.terminate()
        server.wait()


def try_store(name: str, work: Path, bundle: Path, num_kills: int, url: str | None) -> dict:
    """Kill and compare; what was found."""
    now = int(time.time()) - 1000
    worlds = [World(work / name / place, bundle, url) for place in ("undisturbed", "killed")]
    undisturbed, killed = worlds
    for world in worlds:
        world.run(OLD, now)
    users = pq.read_table(undisturbed.folder / "batches" / "undisturbed" / "current" / "lists")[
        "user_id"
    ]
    users = users.to_pylist()
    old = undisturbed.lists(users)
    seconds = undisturbed.run(NEW, now + 1)
    new = undisturbed.lists(users)
    found = {"store": name, "kills": 0, "ended": 0, "half": 0, "wrong": 0}
    with Watch(killed, users) as watch:
        while found["kills"] < num_kills:
            was_killed = killed.kill(NEW, now + 1, random.uniform(0.3, 1.1) * seconds)
            found["kills" if was_killed else "ended"] += 1
            found["half"] += killed.lists(users) not in (old, new)
            if not was_killed or random.random() < 0.3:
                killed.run(NEW, now + 1)
                same = killed.lists(users) == new and killed.files() == undisturbed.files()
                found["wrong"] += not same
                now += 2  # the next one is a new version in both places
                for world in worlds:
                    world.run(OLD, now)
                old = killed.lists(users)
                undisturbed.run(NEW, now + 1)
                new = undisturbed.lists(users)
        killed.run(NEW, now + 1)
        same = killed.lists(users) == new and killed.files() == undisturbed.files()
        found["wrong"] += not same
    return found | {"seconds": seconds, "lookups": watch.lookups, "problems": len(watch.problems)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    parser.add_argument("--stores", nargs="+", default=["lmdb", "redis"])
    given = parser.parse_args()
    random.seed(given.seed)
    work = Path(tempfile.mkdtemp(prefix="batch_kills_"))
    try:
        rows = []
        bundle = make_bundle(work)
        for name in given.stores:
            if name == "redis":
                with redis_server(work) as url:
                    found = try_store(name, work, bundle, given.kills, url)
            else:
                found = try_store(name, work, bundle, given.kills, None)
            rows.append(found)
            print(json.dumps(found), flush=True)
            if found["half"] or found["wrong"] or found["problems"]:
                raise SystemExit(1)
        if given.keep:
            title = "Batch: killed at random moments and run again"
            command = f"batch_kills.py --kills {given.kills} --seed {given.seed}"
            keep_rows("batch_kills", title, command, COLUMNS, rows)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
