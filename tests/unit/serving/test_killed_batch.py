"""A batch that is killed with SIGKILL anywhere: readers notice nothing, and the next run ends it.

Children fork and die; what is left is looked at by a process that does not, and compared with a run
in another place that was never disturbed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import redis_binary, redis_server

pytest.importorskip("lmdb", reason="LMDB is not installed (the extra `batch`)")

CHILD = """
import json, os, signal, sys, time, traceback
from pathlib import Path
from twotower.data.workers import Threads
from twotower.serving import batch
from twotower.serving.store import open_reader

bundle, root, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink"}
SECONDS = int(time.time()) - 1000
OLD, NEW = 5, 12


def store_of(folder):
    if kind == "lmdb":
        from twotower.serving.store_lmdb import LmdbStore

        return LmdbStore(path=str(folder / "stores"), name="tiny")
    from twotower.serving.store_redis import RedisStore

    return RedisStore(url=kind, name=folder.name)


def run(folder, k, deadly=0):
    "Run in a fork and kill it before step `deadly`; how it ended and how many steps it took."
    read, write = os.pipe()
    child = os.fork()
    if not child:
        steps = 0

        def step():
            nonlocal steps
            steps += 1
            if steps == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

        def audit(event, arguments):
            if event in STEPS and str(folder) in str(arguments[0]):
                step()

        def counted(path, facts, entries=batch._entries):
            for number, entry in enumerate(entries(path, facts)):
                if number % 17 == 16:
                    step()  # in the middle of a transaction
                yield entry

        batch._entries = counted
        if kind != "lmdb":
            from redis.connection import Connection

            send = Connection.send_packed_command

            def sending(self, command, check_health=True):
                step()
                send(self, command, check_health)

            Connection.send_packed_command = sending
        sys.addaudithook(audit)
        try:
            settings = batch.BatchSettings(k=k, seconds=SECONDS + k, chunk_size=40)
            home = folder / "batches"
            batch.run_batch(bundle, home, store_of(folder), settings, Threads(num_threads=1))
            os.write(write, str(steps).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    _, status = os.waitpid(child, 0)
    steps = os.read(read, 100).decode()
    os.close(read)
    return os.waitstatus_to_exitcode(status), int(steps or 0)


def lists(folder):
    "What readers find: length of the lists and everything in them."
    reader = open_reader(store_of(folder).location)
    found = [reader.lookup(user) for user in USERS]
    return sorted({len(one.items) for one in found}), [
        (one.status, one.version, one.written_at, [(i.item_id, i.probability) for i in one.items])
        for one in found
    ]


def files(folder):
    current = folder / "batches" / "current" / "lists"
    return {path.name: path.read_bytes().hex() for path in sorted(current.glob("*.parquet"))}


def left(folder):
    "What lies about that is no published version."
    hidden = [*(folder / "batches").glob(".[!l]*"), *(folder / "stores").glob("tiny/.[!l]*")]
    versions = [*(folder / "batches").glob("[!.]*"), *(folder / "stores").glob("tiny/[!.]*")]
    return len(hidden), len(versions)


import pyarrow as pa

table = pa.ipc.open_file(pa.memory_map(str(bundle / "current" / "users" / "table.arrow")))
USERS = [*table.read_all().column(0).to_pylist(), "nobody"]
undisturbed = root / "undisturbed"
assert run(undisturbed, OLD)[0] == 0
before = lists(undisturbed)
status, num_steps = run(undisturbed, NEW)
assert status == 0
after, written, tidy = lists(undisturbed), files(undisturbed), left(undisturbed)
found = []
early = range(2, num_steps - 6, num_steps // 5)
for point in (*early, *range(num_steps - 5, num_steps + 1, 2)):
    folder = root / f"killed-{point}"
    assert run(folder, OLD)[0] == 0
    one = dict(point=point, status=run(folder, NEW, point)[0])
    seen = lists(folder)
    one["seen"] = "old" if seen == before else "new" if seen == after else seen
    one["next_status"], one["steps"] = run(folder, NEW)
    one["equal"] = (lists(folder) == after, files(folder) == written, left(folder) == tidy)
    found.append(one)
print(json.dumps({"lengths": [before[0], after[0]], "steps": num_steps, "points": found}))
"""


@pytest.fixture(params=["lmdb", "redis"], scope="module")
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "lmdb":
        yield "lmdb"
        return
    pytest.importorskip("redis", reason="the client of Redis is not installed (the extra `batch`)")
    if redis_binary() is None:
        pytest.skip("no redis-server is installed")
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="module")
def observed(kind: str, tiny_run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root: Path = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tiny_run.bundle), str(root), kind],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["lengths"] == [[5], [12]]
    assert len(found["points"]) >= 8
    for point in found["points"]:
        assert point["status"] == -9, (point, done.stderr)
        assert point["next_status"] == 0, (point, done.stderr)
    return found


def test_readers_find_the_old_version_or_the_new_one(observed: dict[str, Any]) -> None:
    seen = [point["seen"] for point in observed["points"]]
    assert set(seen) == {"old", "new"}
    assert seen == sorted(seen, reverse=True)  # once it is the new one it stays
    assert seen.count("old") >= 2


def test_the_next_run_ends_like_one_that_was_never_disturbed(observed: dict[str, Any]) -> None:
    for point in observed["points"]:
        assert point["equal"] == [True, True, True], point


def test_the_next_run_goes_on(observed: dict[str, Any]) -> None:
    """What is in is not written again."""
    steps = [point["steps"] for point in observed["points"]]
    assert steps[-1] < 0.7 * observed["steps"]
