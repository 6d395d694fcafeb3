"""The processes of the service: one parent that holds the port, and workers that answer.

The parent opens the listening socket and starts every worker with it. Connections that no worker
has taken yet wait in that one socket, so a worker that is killed takes only those along that it was
answering; the parent starts another in its place. (With a socket a worker, `SO_REUSEPORT`, the
kernel would reset what waits in the socket of the dead one.) The parent loads no bundle.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from twotower.serving.server.settings import READY, ServerSettings

log = logging.getLogger(__name__)

BACKLOG = 2048
LOOK_SECONDS = 0.1
LONGEST_PAUSE = 30.0
STOP_SECONDS = 5.0
LONGEST_MESSAGE = 65_536
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(eq=False)
class _Slot:
    """A place for a worker.

    Args:
        number: Which.
        process: Who has it now.
        pipe: Where the process says that it is ready, or why it is not; -1 once it has.
        said: What it said.
        failures: How often in a row one ended before it was ready.
        pause_until: When the next one may be started, by `time.monotonic`.
    """

    number: int
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    said: str = ""
    failures: int = 0
    pause_until: float = 0.0

    def listen(self) -> None:
        """Read what the process has said, until it says no more."""
        if self.pipe < 0 or not select.select([self.pipe], [], [], 0)[0]:
            return
        text = os.read(self.pipe, LONGEST_MESSAGE).decode(errors="replace")
        self.said += text
        if not text or self.is_ready:
            os.close(self.pipe)
            self.pipe = -1

    @property
    def is_ready(self) -> bool:
        """Whether the process answers."""
        return self.said == READY


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 for one that is free.

    Raises:
        ValueError: When the address cannot be had.
    """
    if not 0 <= port < 65_536:
        raise ValueError(f"port: must be 0 to 65535, got {port}; 0 takes one that is free")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = f"host, port: cannot listen at {host}:{port}: {error}"
        if error.errno == errno.EADDRINUSE:
            why = (
                f"port: another program listens at {host}:{port}; stop it, or say port=<another>, "
                "or port=0 for one that is free"
            )
        raise ValueError(why) from error
    return bound


class Processes:
    """Starts workers, starts them again, stops them.

    Args:
        settings: Of every worker.
        bound: The listening socket.
        num_workers: How many.
        announce: Called once, when the first worker is ready.
    """

    def __init__(
        self,
        settings: ServerSettings,
        bound: socket.socket,
        num_workers: int,
        announce: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._socket = bound
        self._slots = [_Slot(number) for number in range(num_workers)]
        self._announce = announce
        self._signal: int | None = None
        self._was_ready = False
        self._environment: dict[str, str] = {}
        self._life = -1

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ValueError: When the first worker says why it cannot serve.
            RuntimeError: When it ends without a word.
            KeyboardInterrupt: After SIGINT, when all workers have ended.
        """
        self._life, parent = os.pipe()  # Nothing is written: it closes with this process.
        with self._signals(), tempfile.TemporaryDirectory(prefix="twotower-metrics-") as folder:
            self._environment = os.environ | {METRICS_FOLDER: folder}
            self._environment.setdefault("OMP_NUM_THREADS", str(self._settings.threads))
            try:
                while self._signal is None:
                    for slot in self._slots:
                        self._attend(slot)
                    self._wait()
            finally:
                self._stop()
                os.close(self._life)
                os.close(parent)
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt

    def _attend(self, slot: _Slot) -> None:
        """Hear a worker, and start one where there is none."""
        slot.listen()
        if slot.is_ready and not self._was_ready:
            self._was_ready = True
            self._announce()
        if slot.process is not None and slot.process.poll() is not None:
            self._ended(slot, slot.process.returncode)
        if slot.process is None and time.monotonic() >= slot.pause_until:
            self._start(slot)

    def _ended(self, slot: _Slot, status: int) -> None:
        """A worker is gone; when another may come, or what to raise if none ever could."""
        said, was_ready = slot.said, slot.is_ready
        self._forget(slot)
        if not self._was_ready:
            raise ValueError(said) if said else RuntimeError(f"a worker ended with {status}")
        slot.failures = 0 if was_ready else slot.failures + 1
        pause = min(2.0**slot.failures, LONGEST_PAUSE) if slot.failures else 0.0
        slot.pause_until = time.monotonic() + pause
        why = "while it answered" if was_ready else said or "without a word"
        log.warning("worker %d ended with %d: %s", slot.number, status, why)

    def _start(self, slot: _Slot) -> None:
        slot.pipe, write = os.pipe()
        handles = (self._socket.fileno(), write, self._life)
        slot.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "twotower.serving.server.worker"),
                *(self._settings.to_json(), str(slot.number), *map(str, handles)),
            ],
            pass_fds=handles,
            env=self._environment,
            start_new_session=True,  # An interrupt from the keyboard is for the parent.
        )
        os.close(write)

    def _wait(self) -> None:
        """Until a worker says something, or a moment."""
        select.select([slot.pipe for slot in self._slots if slot.pipe >= 0], [], [], LOOK_SECONDS)

    def _stop(self) -> None:
        """Ask all workers to end, and kill those that do not."""
        processes = [slot.process for slot in self._slots if slot.process is not None]
        for process in processes:
            process.terminate()
        until = time.monotonic() + self._settings.grace_seconds + STOP_SECONDS
        for process in processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker %d did not end in time and is killed", process.pid)
                process.kill()
                process.wait()
        for slot in self._slots:
            self._forget(slot)

    def _forget(self, slot: _Slot) -> None:
        slot.process, slot.said = None, ""
        if slot.pipe >= 0:
            os.close(slot.pipe)
            slot.pipe = -1

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def remember(number: int, _: FrameType | None) -> None:
            self._signal = number

        numbers = (signal.SIGTERM, signal.SIGINT)
        before: Sequence[object] = [signal.signal(number, remember) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)  # type: ignore[arg-type]


def serve(
    settings: ServerSettings,
    *,
    host: str,
    port: int,
    num_workers: int,
    announce: Callable[[str], None],
) -> None:
    """Serve a bundle until a signal comes.

    Args:
        settings: What the workers are told.
        host: Address to listen at.
        port: Port; 0 for one that is free.
        num_workers: How many processes answer.
        announce: Called once with the URL, when there are answers.

    Raises:
        ValueError: When the address cannot be had, there is no worker, or it cannot serve.
    """
    if num_workers < 1:
        raise ValueError(f"processes: must be at least 1, got {num_workers}")
    threads = max(1, len(os.sched_getaffinity(0)) // num_workers)
    with listening_socket(host, port) as bound:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{bound.getsockname()[1]}"
        fitted = replace(settings, threads=threads)
        Processes(fitted, bound, num_workers, lambda: announce(url)).run()
