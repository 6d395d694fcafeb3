"""Follows a folder into which windows arrive, and judges each once.

A window is a file or a folder whose name begins with neither ``.`` nor ``_``; names in order of
time give a history in order of time. One that was changed a moment ago may still be written and is
left for the next round. The history says what was judged, so a watch that is killed goes on where
it was: at worst the window that it was at is judged again, and its last line counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from twotower.data.schema import DataError
from twotower.monitoring.history import PENDING, Entry, read_history
from twotower.monitoring.judge import Judge

SETTLE_SECONDS = 5.0


class Watch:
    """Rounds over a folder.

    Args:
        judge: Judges the windows.
        folder: Where they arrive.
        settle_seconds: A window that was changed since is left for the next round.

    Raises:
        DataError: When there is no such folder.
    """

    def __init__(
        self, judge: Judge, folder: Path, *, settle_seconds: float = SETTLE_SECONDS
    ) -> None:
        if not folder.is_dir():
            raise DataError([f"{folder}: no folder; allowed: one into which windows arrive"])
        self._judge = judge
        self._folder = folder
        self._settle = settle_seconds
        self._looked_at: dict[
            str, float
        ] = {}  # windows that lack labels, as they were when last read

    def round(self, now: float | None = None) -> Iterator[Entry]:
        """Judge what has arrived and what has matured.

        Args:
            now: The present, epoch seconds; by the clock when None.

        Yields:
            The windows that were judged, or found to be unusable.
        """
        present = time.time() if now is None else now
        known = {entry.window: entry for entry in read_history(self._judge.folder)}
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith((".", "_")):
                continue
            changed = _changed(path)
            before = known.get(path.name)
            if present - changed < self._settle or not self._is_due(before, changed, present):
                continue
            try:
                entry = self._judge.judge(str(path), path.name, now=now).entry
            except DataError as error:
                entry = self._judge.note_unusable(path.name, error, present)
            if entry.labels == PENDING and present >= (entry.until or 0):
                self._looked_at[path.name] = changed
            yield entry

    def _is_due(self, before: Entry | None, changed: float, present: float) -> bool:
        if before is None:
            return True
        if before.labels != PENDING or present < (before.until or 0):
            return False
        return self._looked_at.get(before.window) != changed


def _changed(path: Path) -> float:
    """When a file, or the latest file in a folder, was changed."""
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max(one.stat().st_mtime for one in paths)
