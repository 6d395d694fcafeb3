"""A client that asks at its own pace, whether answers come or not.

Requests are due at equal distances. One that is due takes a connection that is free, or opens one;
its latency counts from when it was due, so that a server that stands still is not spared the
requests that would have come (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

HOST = "127.0.0.1"


@dataclass
class Tally:
    """What came.

    Args:
        statuses: How many answers by status; 0 for a connection that broke.
        milliseconds: Of every answer with status 200, from when the request was due.
        refused_milliseconds: Of every other answer.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    refused_milliseconds: list[float] = field(default_factory=list)

    def add(self, status: int, milliseconds: float) -> None:
        """Count an answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        (self.milliseconds if status == 200 else self.refused_milliseconds).append(milliseconds)


class Client:
    """Asks one server.

    Args:
        port: Where it listens.
        next_body: Gives the next request's body, and what `check` is told with the answer.
        check: Given a body of status 200.
    """

    def __init__(
        self,
        port: int,
        next_body: Callable[[], tuple[bytes, object]],
        check: Callable[[object, bytes], None],
    ) -> None:
        self._port = port
        self._next = next_body
        self._check = check
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.tally = Tally()

    async def closed_loop(self, connections: int, seconds: float) -> float:
        """Answers a second when as many connections are always busy."""
        until = time.perf_counter() + seconds
        self.tally = Tally()

        async def ask() -> None:
            while time.perf_counter() < until:
                await self._ask(time.perf_counter())

        await asyncio.gather(*(ask() for _ in range(connections)))
        return self.tally.statuses.get(200, 0) / seconds

    async def open_loop(self, rate: float, seconds: float) -> float:
        """Ask so many times a second; how many were asked a second in truth."""
        self.tally = Tally()
        tasks: set[asyncio.Task[None]] = set()
        started = time.perf_counter()
        asked = 0
        while (now := time.perf_counter()) < started + seconds:
            while asked < (now - started) * rate:
                task = asyncio.create_task(self._ask(started + asked / rate))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                asked += 1
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
        return asked / seconds

    async def _ask(self, due: float) -> None:
        body, about = self._next()
        try:
            status, answer = await self._exchange(body)
        except (OSError, EOFError):
            status, answer = 0, b""
        self.tally.add(status, 1000 * (time.perf_counter() - due))
        if status == 200:
            self._check(about, answer)

    async def _exchange(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer.

        A server may close a connection that has been idle for long at the moment at which it is
        used again; that says nothing of the request, which goes out on another one.
        """
        head = f"POST /v1/recommend HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n"
        asked = head.encode() + b"Content-Type: application/json\r\n\r\n" + body
        while True:
            is_used = bool(self._free)
            reader, writer = (
                self._free.pop()
                if is_used
                else await asyncio.open_connection(HOST, self._port, limit=1 << 20)
            )
            try:
                writer.write(asked)
                found = await _response(reader)
            except (ConnectionResetError, asyncio.IncompleteReadError) as error:
                writer.close()
                if is_used and not getattr(error, "partial", b""):
                    continue
                raise
            self._free.append((reader, writer))
            return found


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return int(head[9:12]), await reader.readexactly(int(length))
