"""A command that several processes run together: the first leads, the others follow.

The first process composes the config, makes the run folder and writes; the others are told the
config and compute. With ``trainer.devices=N`` the first one starts the others, under ``torchrun``
they are there. Of what goes wrong in any of them one message is shown, and all end.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from twotower.cli.run import DONE, UNEXPECTED, never_freed, report
from twotower.config import build
from twotower.config_files import to_yaml
from twotower.data.schema import DataError
from twotower.losses.ranks import OneRank, Ranks
from twotower.training.processes import Place, connect, own_store, store_of_environment

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# Set for processes that the first one has started: they end when it does.
STARTED_BY_US = "TWOTOWER_STARTED"
FAILED = "failed"
GRACE = 10.0  # seconds for a process to notice by itself that another one is gone


class Processes:
    """The processes as the first one sees them."""

    def __init__(self) -> None:
        self._place = Place.of_environment()
        self._store: Store | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._num_jobs = 0

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def start(self, cfg: DictConfig) -> Ranks:
        """Let all processes begin with a config.

        Args:
            cfg: The config, resolved by the first process.

        Returns:
            What they are to each other.

        Raises:
            DataError: When ``trainer.devices`` is not what torchrun has started.
        """
        devices, place = cfg.trainer.get("devices", 1), Place.of_environment()
        if place is not None and devices not in (1, place.local_size):
            raise DataError(
                [
                    f"trainer.devices: torchrun has started {place.local_size} processes on this "
                    f"machine, got {devices}; leave it out"
                ]
            )
        if place is None and self._started and len(self._started) + 1 != devices:
            self.end()
        place = place or Place.first_of(devices)
        if place.size == 1:
            return OneRank()
        store = self._open(place)
        store.set(_job(self._num_jobs), to_yaml(cfg))
        self._num_jobs += 1
        return connect(place, store, build(cfg.trainer).device())

    def failed(self, error: BaseException) -> None:
        """End the others, as this one has come upon an error.

        Raises:
            SystemExit: When another process was the first to fail, and has said why.
        """
        if self._store is None:
            return
        is_first = _is_first_to_fail(self._store, 0)
        lost = self._lost() if is_first and isinstance(error, RuntimeError) else {}
        for rank, status in lost.items():
            told = f"by signal {-status}" if status < 0 else f"with status {status}"
            print(f"process {rank} of {len(self._started) + 1} was ended {told}", file=sys.stderr)
        self._end_started(wait=0.0)
        if lost or not is_first:
            never_freed.append(error)
            self._store = None
            raise SystemExit(UNEXPECTED) from error
        self._forget()

    def end(self) -> None:
        """Tell the others that there is nothing left to do, and wait for them."""
        place = Place.of_environment()
        if self._store is None and place is not None and place.size > 1 and not never_freed:
            self._open(place)
        if self._store is None:
            return
        self._store.set(_job(self._num_jobs), "")
        self._end_started(wait=GRACE)
        self._forget()

    def _open(self, place: Place) -> Store:
        """The store, and whoever is not there yet."""
        if self._store is not None:
            return self._store
        if Place.of_environment() is not None:
            self._store = store_of_environment(place)
            return self._store
        self._store, port = own_store()
        for rank in range(1, place.size):
            other = Place(rank=rank, size=place.size, local_rank=rank, local_size=place.local_size)
            path = os.pathsep.join(entry for entry in sys.path if entry)
            told = other.environment(port) | {STARTED_BY_US: "1", "PYTHONPATH": path}
            command = [sys.executable, "-c", "from twotower.cli.processes import main; main()"]
            started = subprocess.Popen(command, env=os.environ | told, stdin=subprocess.PIPE)
            self._started.append(started)
        watch = threading.Thread(target=_watch, args=(self._started,), daemon=True)
        watch.start()
        return self._store

    def _lost(self) -> dict[int, int]:
        """Processes that are gone without a word, with their status; by the operating system, say.

        What this process comes upon then is a broken connection.
        """
        deadline = time.monotonic() + 1.0
        while True:
            found = {rank: p.poll() for rank, p in enumerate(self._started, 1)}
            lost = {rank: status for rank, status in found.items() if status}
            if lost or time.monotonic() > deadline:
                return lost
            time.sleep(0.05)

    def _end_started(self, wait: float) -> None:
        started, self._started[:] = list(self._started), []
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=wait)
            process.kill()
            process.communicate()

    def _forget(self) -> None:
        self._store, self._num_jobs = None, 0
        if dist.is_initialized():
            dist.destroy_process_group()


def follow(function: Callable[[DictConfig, Ranks], object]) -> int:
    """Do what the first process says until there is nothing left; returns the exit status.

    Args:
        function: What is run with every config.
    """
    place = Place.of_environment()
    if place is None:
        raise RuntimeError("this process was not started together with others")
    if STARTED_BY_US in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # The first process sees it too, and ends all.
        threading.Thread(target=_end_with_the_first, daemon=True).start()
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")  # The first process says what there is to say.
    store, number = store_of_environment(place), 0
    while text := store.get(_job(number)).decode():
        number += 1
        try:
            cfg = DictConfig(OmegaConf.create(text))
            cfg.quiet = True
            function(cfg, connect(place, store, build(cfg.trainer).device()))
        except (Exception, SystemExit) as error:
            time.sleep(1.0)  # Where all fail, the first shall be the one that says so.
            with suppress(dist.DistError):  # The store ends with the first process.
                if _is_first_to_fail(store, place.rank):
                    print(f"process {place.rank} of {place.size}:", file=sys.stderr)
                    report(error)
            return UNEXPECTED
    if dist.is_initialized():
        dist.destroy_process_group()
    return DONE


def main() -> None:
    """What a process runs that the first one has started."""
    from twotower.cli.train import train_together

    sys.stdout.flush()
    os._exit(follow(train_together))


def _job(number: int) -> str:
    return f"job-{number}"


def _is_first_to_fail(store: Store, rank: int) -> bool:
    """Whether no process has failed before this one, which has then to say why."""
    return bool(store.compare_set(FAILED, "", f"{rank}") == f"{rank}".encode())


def _watch(started: list[subprocess.Popen[bytes]]) -> None:
    """End this process when another one is gone and it does not notice."""
    while started:
        if any(process.poll() for process in list(started)):
            time.sleep(GRACE)
            if started:
                for process in list(started):
                    process.kill()
                os._exit(UNEXPECTED)
        time.sleep(0.2)


def _end_with_the_first() -> None:
    """The first process holds the other end of the standard input as long as it lives."""
    sys.stdin.buffer.read()
    os._exit(UNEXPECTED)
