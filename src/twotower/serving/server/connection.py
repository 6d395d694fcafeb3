"""A connection whose head is limited, in bytes and in seconds, and one of not too many.

A head that does not end would fill the memory, one that does not come would hold a connection
forever: uvicorn limits neither. The body is limited where it is read. And a process that has no
file descriptor left could neither accept a connection nor open a bundle, so the last connections
that it could hold are turned away.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 32 << 10
HEAD_SECONDS = 10.0
OTHER_FILES = 256  # of bundles, journals, libraries
TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


class Connection(HttpToolsProtocol):
    """uvicorn's connection on httptools, with limits."""

    # Whether the server ends. One that was accepted in that moment is not among those that uvicorn
    # then closes, and would be served until the client goes.
    is_ending: Callable[[], bool] = staticmethod(lambda: False)
    _head_bytes = 0
    _in_head = True
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        if self.is_ending():
            transport.close()
            return
        if len(self.connections) > _most_connections():
            transport.write(TURNED_AWAY)
            transport.close()
            return
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head."""
        super().data_received(data)
        self._head_bytes += len(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head is longer than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._end()
        super().on_headers_complete()

    def _begin(self) -> None:
        self._end()
        self._in_head, self._head_bytes = True, 0
        self._alarm = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end(self) -> None:
        self._in_head = False
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(files - OTHER_FILES, files // 2)
