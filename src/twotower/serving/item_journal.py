"""Changes of items in a file that several processes follow, and that outlives them.

The first line says whose items they are, every further line is one change. A line is a checksum of
eight hexadecimal digits, a space, and JSON. A change counts once its line is whole: what a crash
left of a line at the end of the file is cut off by the next one who writes.

::

    1c291ca3 {"format": 1, "bundle": "shop"}
    9f2c8a10 {"at": "2026-01-05T10:00:00+00:00", "upsert": [{"item_id": "s3", "price": 9.5}]}
    41b7d0e2 {"at": "2026-01-05T10:00:07+00:00", "remove": ["s8"]}

Who writes holds a lock (``flock`` on a file beside it), so the order is the same for all. A file
that was compacted is a new one; followers notice and begin again.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from twotower.serving.ids import ItemId

FORMAT = 1
HEAD = 9  # bytes before the JSON of a line


class JournalError(ValueError):
    """A journal that cannot be followed: of another bundle or format, or damaged in the middle."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What was asked for in one call: either or.

    Args:
        at: When, UTC.
        upsert: Rows of the item table, with ``item_id`` and the columns that are given.
        remove: External ids.
    """

    at: datetime
    upsert: Sequence[Mapping[str, Any]] = ()
    remove: Sequence[ItemId] = ()

    def to_line(self) -> bytes:
        """The line of the journal.

        Raises:
            ValueError: When a value cannot be written as JSON.
        """
        what = {"upsert": list(self.upsert)} if self.upsert else {"remove": list(self.remove)}
        return _line({"at": self.at.isoformat(), **what})


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a journal holds that was not read before.

    Args:
        changes: In order.
        afresh: Whether the file is another one than before, and the changes are all that there are.
    """

    changes: Sequence[Change] = field(default_factory=list)
    afresh: bool = False


class ItemJournal:
    """One process' view of a journal.

    Args:
        path: The file; it is made, with its folder, when the first change is written.
        bundle: Name of the bundle whose items it is about.
    """

    def __init__(self, path: Path, *, bundle: str) -> None:
        self.path = path
        self.bundle = bundle
        self._file: tuple[int, int] | None = None  # device and inode of what was read
        self._offset = 0  # up to where it was read

    def read(self) -> Read:
        """What has come since the last call.

        Raises:
            JournalError: When it is about another bundle, of another format, or damaged.
        """
        try:
            stream = self.path.open("rb")
        except FileNotFoundError:
            return self._begin(None)
        with stream:
            status = os.fstat(stream.fileno())
            file = (status.st_dev, status.st_ino)
            begun = Read()
            if file != self._file or status.st_size < self._offset:
                begun = self._begin(file)
            if status.st_size == self._offset:
                return begun
            stream.seek(self._offset)
            documents = self._documents(stream.read())
        return Read(changes=[_change(document) for document in documents], afresh=begun.afresh)

    def _begin(self, file: tuple[int, int] | None) -> Read:
        """Begin to read another file, or none."""
        was_there, self._file, self._offset = self._file is not None, file, 0
        return Read(afresh=was_there)

    def append(self, change: Change) -> Read:
        """Write a change, for good when this returns.

        Returns:
            What had not been read before, with this change as the last.

        Raises:
            JournalError: As `read`.
            OSError: When it cannot be written; then it is not.
        """
        line, was_read = change.to_line(), (self._file, self._offset)
        with self._locked():
            try:
                before = self.read()
                if self._file is None:
                    self._create()
                self._write(line)
            except (JournalError, OSError):
                self._file, self._offset = was_read  # what came since is read the next time
                raise
            after = self.read()
        return Read(changes=[*before.changes, *after.changes], afresh=before.afresh)

    def compact(self, changes: Sequence[Change]) -> None:
        """Put some changes in the place of all that was read; what came since stays behind them.

        Args:
            changes: What is left of the changes that this process has read.

        Raises:
            JournalError: As `read`.
            OSError: When it cannot be written; then all stays as it was.
        """
        with self._locked():
            kept, offset = b"".join(change.to_line() for change in changes), self._offset
            since = b""
            if self._file is not None:
                with self.path.open("rb") as stream:
                    stream.seek(offset)
                    since = stream.read()
            self._replace(_line(self._header()) + kept + since)

    def _header(self) -> dict[str, Any]:
        return {"format": FORMAT, "bundle": self.bundle}

    def _create(self) -> None:
        self._replace(_line(self._header()))
        status = os.stat(self.path)
        self._file = (status.st_dev, status.st_ino)
        self._offset = status.st_size

    def _replace(self, content: bytes) -> None:
        """Write a whole file and rename it into place."""
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with unfinished.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, line: bytes) -> None:
        """Write behind what was read; what a crash left there is cut off."""
        with self.path.open("r+b") as stream:
            try:
                stream.truncate(self._offset)
                stream.seek(self._offset)
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(self._offset)
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f"{self.path.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _documents(self, content: bytes) -> list[dict[str, Any]]:
        """Whole lines, read and counted; the header is checked and left out."""
        documents: list[dict[str, Any]] = []
        broken: int | None = None
        place = 0
        while (end := content.find(b"\n", place)) >= 0:
            document = _document(content[place:end])
            start, place = self._offset + place, end + 1
            if document is None:
                broken = start if broken is None else broken
                continue
            if broken is not None:
                raise JournalError(
                    f"{self.path}: damaged at byte {broken}, with whole lines behind it; restore "
                    "the file, or delete the damaged line to go on without its change"
                )
            if start == 0:
                self._check(document)
            else:
                documents.append(document)
        self._offset += place if broken is None else broken - self._offset
        return documents

    def _check(self, header: Mapping[str, Any]) -> None:
        expected = self._header()
        if dict(header) != expected:
            raise JournalError(
                f"{self.path}: is a journal of {dict(header)}, expected one of {expected}"
            )


def now() -> datetime:
    """The time of a change."""
    return datetime.now(UTC)


def _line(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, allow_nan=False, default=_iso).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _iso(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise ValueError(f"{value!r} cannot be written as JSON")


def _document(line: bytes) -> dict[str, Any] | None:
    """What a line says, None where it is not whole."""
    text = line[HEAD:]
    if line[:HEAD] != b"%08x " % zlib.crc32(text):
        return None
    document = json.loads(text)
    return document if isinstance(document, dict) else None


def _change(document: Mapping[str, Any]) -> Change:
    return Change(
        at=datetime.fromisoformat(document["at"]),
        upsert=document.get("upsert", ()),
        remove=document.get("remove", ()),
    )
