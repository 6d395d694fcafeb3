"""A sample of the requests that a server answers, kept in files for monitoring.

What is kept is what the models were given: the encoded features of user and context, the row of the
user and the items that were found; no ids, no text. A request costs a few references here; arrays
are put together and written by a thread of its own once there are enough of them, or a minute has
passed. Files are ``<folder>/<version of the bundle>/<day>/<time>-<process>.npz``, complete or not
there. With the first file of a day, the files of days that are too old are removed.

Shape letters: Q requests, k items of an answer.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.export.bundle import Bundle
from twotower.serving.asked import Asked

TRAFFIC_VERSION = 1
ROWS_OF_A_FILE = 4096
SECONDS_OF_A_FILE = 60.0
MAX_ITEMS = 10  # of an answer that are kept
NO_ITEM = -1
DOCUMENT, USER_ROWS, ITEM_ROWS, COLUMN_PREFIX = "document", "user_rows", "item_rows", "column."

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)


class TrafficRecorder:
    """Keeps requests of one bundle.

    Args:
        folder: Where the files go.
        bundle: The bundle that answers.
        per_second: How many requests are kept at most, over any stretch of time; those that are
            kept are spread evenly.
        days: For how many days, of all bundles whose traffic lies in the folder.
        rows_of_a_file: Requests of one file at most.
        seconds_of_a_file: How long requests wait to be written, while there are requests.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        *,
        per_second: float,
        days: int = 30,
        rows_of_a_file: int = ROWS_OF_A_FILE,
        seconds_of_a_file: float = SECONDS_OF_A_FILE,
    ) -> None:
        self._root, self._days = folder, days
        self._folder = folder / bundle.manifest.version
        self._version = bundle.manifest.version
        self._names = [f.name for f in bundle.pipeline.spec.features if f.side != "item"]
        self._gap = 1.0 / per_second
        self._most, self._seconds = rows_of_a_file, seconds_of_a_file
        self._next = 0.0  # when the next request may be kept
        self._kept: list[tuple[Asked, Array]] = []
        self._began = 0.0
        self._closed = False
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="traffic")

    def record(self, asked: Sequence[Asked], rows: Array) -> None:
        """Keep some requests, if it is time to.

        Args:
            asked: Q requests.
            rows: (Q, k) items that were found, -1 where there is none.
        """
        now = time.monotonic()
        if now < self._next or self._closed:
            return
        with self._lock:
            for one, found in zip(asked, rows, strict=True):
                if now < self._next:
                    break
                self._next = max(self._next + self._gap, now - 1.0)  # a second is made up for
                if not self._kept:
                    self._began = now
                self._kept.append((one, found[: min(one.request.k, MAX_ITEMS)]))
            full = len(self._kept) >= self._most or now - self._began >= self._seconds
            if full and self._kept:
                kept, self._kept = self._kept, []
                self._writer.submit(self._write, kept, time.time())

    def close(self) -> None:
        """Write what is left; what comes later is not kept."""
        with self._lock:
            self._closed = True
            if self._kept:
                self._writer.submit(self._write, self._kept, time.time())
                self._kept = []
        self._writer.shutdown()

    def _write(self, kept: Sequence[tuple[Asked, Array]], now: float) -> None:
        try:
            self._write_file(kept, now)
        except OSError:  # A full disk is no reason to answer no more.
            log.exception("%s: %d requests are not kept for monitoring", self._folder, len(kept))

    def _write_file(self, kept: Sequence[tuple[Asked, Array]], now: float) -> None:
        items = np.full((len(kept), MAX_ITEMS), NO_ITEM, np.int64)
        for row, (_, found) in enumerate(kept):
            items[row, : len(found)] = found
        times = [now if one.request.seconds is None else one.request.seconds for one, _ in kept]
        document = {
            "version": TRAFFIC_VERSION,
            "bundle": self._version,
            "span": [int(min(times)), int(max(times)) + 1],
        }
        arrays: dict[str, Any] = {
            DOCUMENT: np.frombuffer(json.dumps(document).encode(), np.uint8),
            USER_ROWS: np.array([one.user_row for one, _ in kept], np.int64),
            ITEM_ROWS: items,
        }
        for name in self._names:
            columns = [one.columns[name] for one, _ in kept]
            arrays[COLUMN_PREFIX + name] = np.concatenate(columns)
        written = BytesIO()
        np.savez(written, allow_pickle=False, **arrays)
        at = datetime.fromtimestamp(now, UTC)
        folder = self._folder / at.strftime("%Y-%m-%d")
        if not folder.exists():
            _remove_before(self._root, at.date() - timedelta(days=self._days))
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{at.strftime('%H-%M-%S-%f')}-{os.getpid()}.npz"
        staging = folder / f".{name}.staging"
        staging.write_bytes(written.getvalue())
        staging.replace(folder / name)


def _remove_before(root: Path, first: date) -> None:
    """Remove the files of all days before one; another process may do so at the same time."""
    for folder in root.glob("*/????-??-??"):
        try:
            is_old = date.fromisoformat(folder.name) < first
        except ValueError:  # no folder of this writer
            continue
        if not is_old:
            continue
        for path in folder.glob("*.npz"):
            path.unlink(missing_ok=True)
        for empty in (folder, folder.parent):
            with suppress(OSError):  # something else is in it, or it is gone already
                empty.rmdir()
