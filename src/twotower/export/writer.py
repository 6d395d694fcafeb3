"""Writing a bundle: into a hidden folder first, renamed when it is whole, then published.

An export that is killed leaves at most a hidden folder, which readers do not look at and the next
export removes. Exports of one name run one at a time; their lock ends with the process.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from twotower.export.manifest import (
    CURRENT,
    LINK_PREFIX,
    LOCK,
    MANIFEST,
    PUBLISHED,
    STAGING_PREFIX,
    BundleError,
    Manifest,
    file_digests,
)

VERSION_FORMAT = "%Y-%m-%d_%H-%M-%S"


@dataclass(frozen=True, kw_only=True)
class BundleWriter:
    """One version of a bundle in the making.

    Args:
        home: Folder of all versions of the name.
        version: Name of the version folder, unique under `home`.
        created: When the export began.
        folder: Hidden folder that the files are written into.
    """

    home: Path
    version: str
    created: datetime
    folder: Path

    def finish(self, manifest: Manifest) -> Path:
        """Write the manifest with the digests of all files and move the folder into place.

        Args:
            manifest: The facts; its `files` are filled in here.

        Returns:
            The version folder, all of it on the disk.
        """
        digests = file_digests(self.folder)
        path = self.folder / MANIFEST
        path.write_bytes(replace(manifest, files=digests).to_bytes())
        for part in sorted(self.folder.rglob("*")):
            _sync(part)
        _sync(self.folder)
        folder = self.folder.rename(self.home / self.version)
        _sync(self.home)
        return folder


@contextmanager
def bundle_writer(root: Path, name: str) -> Iterator[BundleWriter]:
    """Stage a new version; what is not finished when the block is left is removed.

    Args:
        root: Folder of all bundles.
        name: Name of the bundle.

    Raises:
        BundleError: When the name cannot be that of a folder or another export of it is running.
    """
    if not name or name.startswith(".") or "/" in name or name == CURRENT:
        raise BundleError(
            [f"bundle name: must be the name of a folder that is not hidden, got {name!r}"]
        )
    home = root / name
    home.mkdir(parents=True, exist_ok=True)
    with lock(home):
        _remove_leftovers(home)
        created = datetime.now(UTC)
        version = _free_version(home, created)
        staging = home / f"{STAGING_PREFIX}{version}"
        staging.mkdir()
        try:
            yield BundleWriter(home=home, version=version, created=created, folder=staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def publish(folder: Path) -> Path | None:
    """Let ``current`` point to a version, in one step: a reader finds the old one or the new one.

    Args:
        folder: A version folder, not necessarily the newest.

    Returns:
        The version that ``current`` pointed to before, or None.

    Raises:
        BundleError: When the folder is no version of a bundle or ``current`` is no link.
    """
    version = folder.resolve()
    home, link = version.parent, version.parent / CURRENT
    if not (version / MANIFEST).is_file() or version.name.startswith("."):
        raise BundleError([f"{folder}: no version of a bundle, so it cannot be published"])
    if link.exists() and not link.is_symlink():
        raise BundleError([f"{link}: not a link; remove it to publish a version"])
    previous = published(home)
    names = _publications(home, previous)
    staged = home / f"{LINK_PREFIX}{os.getpid()}"
    if version.name not in names:
        staged.write_text("\n".join([*names, version.name]), encoding="utf-8")
        _sync(staged)
        staged.replace(home / PUBLISHED)
    staged.unlink(missing_ok=True)
    staged.symlink_to(version.name, target_is_directory=True)
    staged.replace(link)
    _sync(home)
    return previous


def published_before(home: Path) -> Path:
    """The version that was published before the one that ``current`` points to.

    Versions that were never published, such as those that a gate refused, do not count, nor do
    those that have been removed since. To publish it is to go back: what was published after it is
    forgotten with the next publication of another version.

    Args:
        home: Folder of all versions of a name.

    Raises:
        BundleError: When no version is known to have been published before.
    """
    current = published(home)
    for name in reversed(_publications(home, current)[:-1]):
        if (home / name / MANIFEST).is_file():
            return home / name
    now = "any" if current is None else current.name
    there = sorted(path.parent.name for path in home.glob(f"[!.]*/{MANIFEST}"))
    others = ", ".join(name for name in there if name not in (CURRENT, now)) or "none"
    raise BundleError(
        [
            f"{home}: it is not known which version was published before {now}; other versions: "
            f"{others}; version=<one of them> publishes it"
        ]
    )


def _publications(home: Path, current: Path | None) -> list[str]:
    """Names of the versions that were published up to the one that is published now."""
    if current is None:
        return []
    path = home / PUBLISHED
    names = path.read_text(encoding="utf-8").split() if path.is_file() else []
    while names and names[-1] != current.name:  # gone back since, or noted and then not published
        names.pop()
    return names or [current.name]


def published(home: Path) -> Path | None:
    """The version that ``current`` points to, or None.

    Args:
        home: Folder of all versions of a name.
    """
    link = home / CURRENT
    return link.resolve() if link.exists() else None


@contextmanager
def lock(home: Path) -> Iterator[None]:
    """Keep other exports of a name out while the block runs.

    Args:
        home: Folder of all versions of the name.

    Raises:
        BundleError: When another one is running.
    """
    with (home / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BundleError([f"{home}: another export of this name is running"]) from error
        yield


def _remove_leftovers(home: Path) -> None:
    for path in home.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(path)
    for path in home.glob(f"{LINK_PREFIX}*"):
        path.unlink()


def _free_version(home: Path, created: datetime) -> str:
    first = created.strftime(VERSION_FORMAT)
    # Padded, so that names in alphabetical order are in order of time.
    names = itertools.chain([first], (f"{first}-{number:04}" for number in itertools.count(2)))
    return next(name for name in names if not (home / name).exists())


def _sync(path: Path) -> None:
    """Make sure that a file, or the list of entries of a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
