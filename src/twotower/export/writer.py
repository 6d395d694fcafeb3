"""Writing a bundle: into a hidden folder first, renamed when it is whole, then published.

An export that is killed leaves at most a hidden folder, which readers do not look at and the next
export removes. Exports of one name run one at a time: the lock belongs to the process and goes with
it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from twotower.export.manifest import (
    CURRENT,
    LINK_PREFIX,
    LOCK,
    MANIFEST,
    STAGING_PREFIX,
    BundleError,
    Manifest,
    file_digests,
)

VERSION_FORMAT = "%Y-%m-%d_%H-%M-%S"


class BundleWriter:
    """Stages one version of a bundle; a context manager.

    Inside the block files are written into `folder`; `finish` makes a bundle of them. When the
    block is left without it, nothing stays.

    Args:
        root: Folder of all bundles.
        name: Name of the bundle.

    Raises:
        BundleError: When the name cannot be that of a folder, or, on entering, when another export
            of that name runs.
    """

    def __init__(self, root: Path, name: str) -> None:
        if not name or name.startswith(".") or "/" in name or name == CURRENT:
            raise BundleError(
                [f"bundle name: must be the name of a folder that is not hidden, got {name!r}"]
            )
        self.name = name
        self.home = root / name
        self.created = datetime.now(UTC)
        self.version = ""
        self.folder = self.home
        self._lock = -1

    def __enter__(self) -> BundleWriter:
        self.home.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.home)
        _remove_leftovers(self.home)
        self.version = _free_version(self.home, self.created)
        self.folder = self.home / f"{STAGING_PREFIX}{self.version}"
        self.folder.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.folder.name.startswith(STAGING_PREFIX):
                shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            os.close(self._lock)

    def current(self) -> Path | None:
        """The published version, or None."""
        return _target(self.home)

    def finish(self, manifest: Manifest) -> Path:
        """Write the manifest with the digests of all files and move the folder into place.

        Args:
            manifest: The facts; its `files` are filled in here.

        Returns:
            The version folder.
        """
        digests = file_digests(self.folder)
        for path in sorted(self.folder.rglob("*")):
            _sync(path)
        path = self.folder / MANIFEST
        path.write_bytes(replace(manifest, files=digests).to_bytes())
        _sync(path)
        _sync(self.folder)
        self.folder = self.folder.rename(self.home / self.version)
        _sync(self.home)
        return self.folder


def publish(folder: Path) -> Path | None:
    """Let ``current`` point to a version, in one step: a reader finds the old one or the new one.

    Args:
        folder: A version folder, not necessarily the newest.

    Returns:
        The version that ``current`` pointed to before, or None.

    Raises:
        BundleError: When the folder is no version of a bundle, or ``current`` is no link.
    """
    version = folder.resolve()
    link = version.parent / CURRENT
    if not (version / MANIFEST).is_file() or version.name.startswith("."):
        raise BundleError([f"{folder}: no version of a bundle, it cannot be published"])
    if link.exists() and not link.is_symlink():
        raise BundleError([f"{link}: not a link; remove it to publish a version"])
    previous = _target(version.parent)
    staged = version.parent / f"{LINK_PREFIX}{os.getpid()}"
    staged.unlink(missing_ok=True)
    staged.symlink_to(version.name, target_is_directory=True)
    staged.replace(link)
    _sync(version.parent)
    return previous


def _target(home: Path) -> Path | None:
    link = home / CURRENT
    return link.resolve() if link.exists() else None


def _locked(home: Path) -> int:
    handle = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BundleError([f"{home}: another export of this name is running"]) from error
    return handle


def _remove_leftovers(home: Path) -> None:
    for path in home.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(path)
    for path in home.glob(f"{LINK_PREFIX}*"):
        path.unlink()


def _free_version(home: Path, created: datetime) -> str:
    first = created.strftime(VERSION_FORMAT)
    return next(name for name in _numbered(first) if not (home / name).exists())


def _numbered(first: str) -> Iterator[str]:
    yield first
    number = 2
    while True:
        yield f"{first}-{number}"
        number += 1


def _sync(path: Path) -> None:
    """Make sure that a file or the entries of a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
