"""`twotower serve` as a user starts it: killed, stopped, and given new bundles."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bundle_versions import copy_home, further_version
from twotower.cli.main import main
from twotower.export.bundle import open_bundle
from twotower.export.writer import publish

PATIENCE = 120.0
HEADERS = {"Content-Type": "application/json"}
PREFIX = "B: "
LOST = ("RemoteDisconnected", "ConnectionResetError", "BrokenPipeError", "IncompleteRead")
REFUSED = "ConnectionRefusedError"


@dataclass
class Server:
    """A server that runs.

    Args:
        process: The parent of its workers.
        port: Where it listens.
    """

    process: subprocess.Popen
    port: int

    def workers(self) -> list[int]:
        """Process ids of the workers, oldest first."""
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            found = connection.getresponse()
            return found.status, found.read().decode()
        finally:
            connection.close()

    def post(self, path: str, body: dict) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", path, json.dumps(body), HEADERS)
        found = connection.getresponse()
        text = found.read().decode()
        connection.close()
        assert found.status == 200, text
        return json.loads(text)

    def ready(self) -> dict:
        status, text = self.get("/readyz")
        assert status == 200
        return json.loads(text)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def serving(bundle: Path, *overrides: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "twotower.cli.main", "serve", f"bundle={bundle}", "port=0"]
    settings = ["deadline_ms=30000", "reload_seconds=0.05", "grace_seconds=60", *overrides]
    process = subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith(f"serving {bundle} at http://127.0.0.1:"), line
        # Access lines follow; a full pipe would stop the workers.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Server(process=process, port=int(line.rpartition(":")[2]))
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


@dataclass
class Client:
    """Asks for one list after the other on one connection, until it is told to stop.

    Args:
        port: Of the server.
        user: For whom.
        k: How many items.
        answers: What came, with the time at which it was asked for as `asked`.
        failures: What came instead of an answer.
    """

    port: int
    user: str
    k: int
    answers: list[dict] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        body = json.dumps({"user": self.user, "explain": True, "k": self.k})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        while not self.stop.is_set():
            asked = time.monotonic()
            try:
                connection.request("POST", "/v1/recommend", body, HEADERS)
                found = connection.getresponse()
                text = found.read().decode()
            except (OSError, http.client.HTTPException) as error:
                connection.close()  # The next request opens another one.
                self.failures.append(repr(error))
                continue
            if found.status == 200:
                self.answers.append(json.loads(text) | {"asked": asked})
            else:
                self.failures.append(text)
        connection.close()


@contextmanager
def clients(server: Server, bundle: Path, count: int, k: int = 10) -> Iterator[list[Client]]:
    users = open_bundle(bundle).users.ids[:count].to_pylist()
    some = [Client(server.port, user, k) for user in users]
    try:
        wait(lambda: all(client.answers for client in some))
        yield some
    finally:
        for client in some:
            client.stop.set()
        for client in some:
            client.thread.join(PATIENCE)


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def more(some: list[Client], count: int) -> None:
    """Until every client has as many further answers."""
    wanted = [len(client.answers) + count for client in some]
    wait(lambda: all(len(c.answers) >= n for c, n in zip(some, wanted, strict=True)))


@pytest.fixture
def home(tiny_run, tmp_path: Path) -> Path:
    return copy_home(tiny_run.bundle, tmp_path)


def test_a_killed_worker_loses_what_was_in_flight_and_comes_back(home: Path) -> None:
    with serving(home, "processes=2") as server:
        wait(lambda: len(server.workers()) == 2)
        with clients(server, home, 6) as some:
            for _ in range(2):
                before = server.workers()
                os.kill(before[0], signal.SIGKILL)
                more(some, 5)
                wait(lambda gone=before[0]: gone not in server.workers())
                wait(lambda: len(server.workers()) == 2)
                more(some, 5)
            for client in some:
                # One request was in flight, or none where the other worker had the connection.
                assert len(client.failures) <= 2
                assert all(f.startswith(LOST) for f in client.failures), client.failures
            total = sum(len(client.answers) for client in some)
            counted = 0
            for line in server.get("/metrics")[1].splitlines():
                if line.startswith('twotower_requests_total{route="/v1/recommend",status="200"}'):
                    counted = int(float(line.rpartition(" ")[2]))
        for worker in server.workers():
            wait(lambda of=worker: "onnxruntime" in Path(f"/proc/{of}/maps").read_text())
        for worker in server.workers():
            assert "torch" not in Path(f"/proc/{worker}/maps").read_text()
        # What a killed worker had counted is not forgotten.
        assert counted >= total
        assert server.end() == 0


def test_a_signal_stops_it_when_everybody_has_an_answer(home: Path) -> None:
    with serving(home, "processes=2") as server, clients(server, home, 6) as some:
        wait(lambda: len(server.workers()) == 2)
        workers = server.workers()
        more(some, 5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0
        for client in some:
            client.stop.set()
        for client in some:
            client.thread.join(PATIENCE)
            # At most one request of each process was on its way when the idle connection was
            # closed, and one that no process took; then nobody listens.
            assert all(failure.startswith((*LOST, REFUSED)) for failure in client.failures)
            assert sum(failure.startswith(LOST) for failure in client.failures) <= 3
            assert client.failures
        assert not any(is_running(worker) for worker in workers)


def test_workers_end_with_their_parent(home: Path) -> None:
    with serving(home) as server:
        (worker,) = server.workers()
        server.process.kill()
        server.process.wait(PATIENCE)
        wait(lambda: not is_running(worker))


def test_new_bundles_under_load(home: Path) -> None:
    """Every answer is of one version, forth and back, and none is lost."""
    old = (home / "current").resolve()
    with serving(home, "processes=2") as server, clients(server, home, 4) as some:
        new = further_version(home, PREFIX)
        broken = further_version(home, "C: ")
        (broken / "popular.npy").write_bytes(b"")
        for target in (new, old, broken, new):
            publish(target)
            if target != broken:
                wait(lambda target=target: is_served_by_all(some, target.name))
            more(some, 5)
        # A process that no client happens to ask may be a moment behind.
        wait(lambda: server.ready()["version"] == new.name)
        seen = [answer for client in some for answer in client.answers]
        assert [client.failures for client in some] == [[]] * 4
    versions = {answer["version"] for answer in seen}
    assert versions == {old.name, new.name}
    for answer in seen:
        assert len(answer["items"]) == 10
        is_new = answer["version"] == new.name
        for item in answer["items"]:
            assert item["title"].startswith(PREFIX) == is_new
            assert item["reason"].startswith(f"like {PREFIX}") == is_new


def is_served_by_all(some: list[Client], version: str) -> bool:
    return all(client.answers[-1]["version"] == version for client in some)


def test_items_come_and_go_under_load(home: Path, tmp_path: Path) -> None:
    """What one process is told holds for the next request to any of them."""
    journal = f"journal={tmp_path / 'items.journal'}"
    new, old = "fresh-1", "i00007"
    with serving(home, "processes=2", journal) as server:
        with clients(server, home, 4, k=200) as some:  # all items but those that were seen
            wait(lambda: len(server.workers()) == 2)
            row = {"item_id": new, "title": "Fresh", "category": "none", "price": 5.0}
            assert server.post("/v1/items:upsert", {"items": [row]}) == {"changed": 1}
            upserted = time.monotonic()
            more(some, 10)
            between = [
                (answer["asked"], {item["item_id"] for item in answer["items"]})
                for client in some
                for answer in client.answers
                if answer["asked"] > upserted
            ]
            assert server.post("/v1/items:remove", {"ids": [old, new]}) == {"changed": 2}
            removed = time.monotonic()
            os.kill(server.workers()[0], signal.SIGKILL)  # and for one that comes later
            more(some, 10)
        lists = [
            (answer["asked"], {item["item_id"] for item in answer["items"]})
            for client in some
            for answer in client.answers
        ]
    assert any(old in items for asked, items in lists if asked < upserted)
    assert all(new in items for at, items in between)
    assert len(between) >= 30
    after = [items for asked, items in lists if asked > removed]
    assert len(after) >= 30
    assert not any(items & {new, old} for items in after)


def test_a_key_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOTOWER_API_KEY", "s3cret")
    with serving(home) as server:
        assert server.get("/metrics")[0] == 401
        assert server.get("/healthz")[0] == 200
        arguments = Path(f"/proc/{server.workers()[0]}/cmdline").read_text()
        assert "s3cret" not in arguments


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bundle=nowhere"], "nowhere: no bundle here"),
        (["processes=0"], "processes: must be at least 1, got 0"),
        (["max_batch=0"], "max_batch: must be at least 1, got 0"),
        (["host=256.1.1.1"], "host, port: cannot listen at 256.1.1.1:0"),
        (["api_key_file=nowhere"], "api_key_file: nowhere: No such file or directory; name a file"),
    ],
)
def test_what_cannot_be_served(home: Path, capsys, overrides: list[str], message: str) -> None:
    assert main(["serve", f"bundle={home}", "port=0", *overrides]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_bundle_is_one_message(home: Path, capfd) -> None:
    (home / "current" / "popular.npy").write_bytes(b"")
    assert main(["serve", f"bundle={home}", "port=0"]) == 2
    error = capfd.readouterr().err
    assert "popular.npy: changed since it was written" in error
    assert "Traceback" not in error


def test_a_port_that_is_taken(home: Path, capsys) -> None:
    with serving(home) as server:
        assert main(["serve", f"bundle={home}", f"port={server.port}"]) == 2
    assert f"another program listens at 127.0.0.1:{server.port}" in capsys.readouterr().err


def test_a_worker_that_cannot_come_back_is_tried_again(home: Path) -> None:
    """The link is broken when the worker dies, and mended later."""
    current = (home / "current").resolve()
    with serving(home, "processes=1") as server:
        (worker,) = server.workers()
        (home / "current").unlink()
        os.kill(worker, signal.SIGKILL)
        wait(lambda: worker not in server.workers())
        publish(current)
        with suppress(OSError):
            server.ready()
        wait(lambda: server.ready()["version"] == current.name)
