"""One process that answers: ``python -m twotower.serving.server.worker <settings> <slot> ...``.

Started by `twotower.serving.server.processes`, which hands it the listening socket, a pipe to say
on that it is ready, and one that closes when the parent is gone.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import prometheus_client.values

from twotower.serving.server.metrics import FOLDER
from twotower.serving.server.service import Service
from twotower.serving.server.settings import READY, ServerSettings

if TYPE_CHECKING:
    import uvicorn

API_KEY = "TWOTOWER_API_KEY"
BAD_INPUT = 2
KEEP_ALIVE_SECONDS = 75
# Two threads take turns at the interpreter; the default of 5 ms would be seen in the latency.
SWITCH_SECONDS = 0.0005

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; the exit status."""
    given = _parser().parse_args(argv)
    settings = ServerSettings.from_json(given.settings)
    _set_up_logs()
    if FOLDER in os.environ:
        # Files of figures by slot: a worker that is started again goes on with those of the last.
        prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue(  # type: ignore[no-untyped-call]
            lambda: given.slot
        )
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        server = _server(settings)
    except (ValueError, OSError) as error:
        os.write(given.ready, str(error).encode())
        return BAD_INPUT

    def stop(*_: object) -> None:
        server.should_exit = True

    # Until uvicorn has handlers of its own, and when it raises their signal again at the end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    _end_with_parent(given.parent)
    os.write(given.ready, READY.encode())
    server.run([socket.socket(fileno=given.socket)])
    return 0


def _server(settings: ServerSettings) -> uvicorn.Server:
    """What serves a bundle.

    Raises:
        ValueError: When the bundle cannot be served, or the key is empty.
        OSError: When the file with the key cannot be read.
    """
    api_key = read_api_key(settings.api_key_file)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(Service, settings)
        # The web framework is imported while the files of the bundle are compared with their
        # digests: half a second of the start.
        import uvicorn

        from twotower.serving.server.app import create_app
        from twotower.serving.server.connection import Connection

        service = opened.result()
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(service, api_key=api_key),
            loop="asyncio",
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
        )
    )
    # Until its sockets are closed, whoever comes is served.
    Connection.is_ending = staticmethod(lambda: not all(s.is_serving() for s in server.servers))
    return server


def read_api_key(path: str | None) -> str | None:
    """The key that clients must show, from a file or else the environment; None for no key.

    Raises:
        ValueError: When it is empty, or the file cannot be read.
    """
    try:
        key = os.environ.get(API_KEY) if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise ValueError(
            f"api_key_file: {path}: {why}; name a file that holds the key, or set {API_KEY}"
        ) from error
    if key is not None and not key.strip():
        raise ValueError(f"the API key in {API_KEY if path is None else path} is empty")
    return None if key is None else key.strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", help="`ServerSettings` as JSON")
    parser.add_argument("slot", type=int, help="which of the workers it is")
    for name in ("socket", "ready", "parent"):
        parser.add_argument(name, type=int, help="file descriptor")
    return parser


def _set_up_logs() -> None:
    """Messages to the error stream, access lines to the output stream."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    access = logging.getLogger("twotower.access")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    access.propagate = False


def _end_with_parent(pipe: int) -> None:
    """Stop as on a signal when the other end of a pipe is closed."""

    def wait() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
