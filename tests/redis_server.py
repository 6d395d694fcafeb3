"""A real Redis server for as long as a test needs it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_TO_START = 20.0
READY = "Ready to accept connections"


def redis_binary() -> str | None:
    """The server's program, or None where it is not installed."""
    return shutil.which("redis-server")


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Start a server that keeps nothing on the disk; the URL of its first database.

    Args:
        folder: Where it works.
    """
    binary = redis_binary()
    if binary is None:
        raise FileNotFoundError("redis-server")
    for _ in range(5):  # another program may take the port first
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "no"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        server = subprocess.Popen([binary, *words], stdout=subprocess.PIPE, text=True)
        try:
            if server.stdout is not None and any(READY in line for line in server.stdout):
                yield f"redis://127.0.0.1:{port}/0"
                return
        finally:
            server.kill()
            server.wait()
    raise RuntimeError("no Redis server could be started")
