"""Heads that do not end, or do not come, are given up; others are not touched."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from twotower.serving.server import connection as module
from twotower.serving.server.connection import MAX_HEAD_BYTES, Connection

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


async def hello(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.1)
    config = uvicorn.Config(hello, http=Connection, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def ask(connection: socket.socket, request: bytes = REQUEST) -> bytes:
    """A request and its answer."""
    connection.sendall(request)
    found = b""
    while not found.endswith((b"hello", b"0\r\n\r\n")):
        part = connection.recv(4096)
        assert part, found
        found += part
    return found


@pytest.mark.parametrize("sent", [b"", REQUEST[:20], REQUEST[:-2]])
def test_a_head_that_does_not_come(port: int, sent: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(sent)
        started = time.monotonic()
        assert connection.recv(4096) == b""  # closed
        assert 0.05 < time.monotonic() - started < 10


def test_a_second_head_that_does_not_come(port: int) -> None:
    with connect(port) as connection:
        assert b"200 OK" in ask(connection)
        connection.sendall(REQUEST[:20])
        assert connection.recv(4096) == b""


def test_a_connection_that_is_idle_between_requests_stays(port: int) -> None:
    with connect(port) as connection:
        for _ in range(3):
            assert b"200 OK" in ask(connection)
            time.sleep(0.2)  # longer than a head may take: none has begun


@pytest.mark.parametrize("part", [b"X-A: " + b"a" * 70_000, b"X-A: b\r\n" * 9_000])
def test_a_head_that_is_too_long(port: int, part: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(REQUEST[:-2])
        found = b""
        for start in range(0, len(part), 10_000):
            try:
                connection.sendall(part[start : start + 10_000])
            except OSError:
                break
        while more := connection_read(connection):
            found += more
        assert found.startswith(b"HTTP/1.1 400") or found == b""  # reset, when it sent on


def connection_read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


def test_a_long_head_that_is_short_enough(port: int) -> None:
    with connect(port) as connection:
        head = REQUEST[:-2] + b"X-A: " + b"a" * (MAX_HEAD_BYTES - 1000) + b"\r\n\r\n"
        assert b"200 OK" in ask(connection, head)


def test_a_body_is_no_head(port: int) -> None:
    with connect(port) as connection:
        size = 4 * MAX_HEAD_BYTES
        request = REQUEST[:-2] + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
        assert b"200 OK" in ask(connection, request)
        assert b"200 OK" in ask(connection)


def test_one_that_comes_when_the_server_ends_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(port) as before:
        assert b"200 OK" in ask(before)
        monkeypatch.setattr(Connection, "is_ending", staticmethod(lambda: True))
        with connect(port) as late:
            assert late.recv(4096) == b""
        assert b"200 OK" in ask(before)


def test_more_connections_than_there_are_files_for_are_turned_away(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 30)
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (4, 4))
    with connect(port) as first, connect(port) as second:
        assert b"200 OK" in ask(first)
        assert b"200 OK" in ask(second)
        with connect(port) as third:
            said = b""
            while part := third.recv(4096):
                said += part
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in said
        assert b"200 OK" in ask(second)
    until = time.monotonic() + 30
    while time.monotonic() < until:  # The two that were closed are forgotten soon.
        with connect(port) as again:
            again.sendall(REQUEST)
            if again.recv(4096).startswith(b"HTTP/1.1 200 "):
                return
    pytest.fail("no place was free again")
