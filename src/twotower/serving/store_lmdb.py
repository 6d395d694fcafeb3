"""Lists in LMDB: files that any process of this machine reads without a server.

===========================  ====================================================================
``<name>/<namespace>/``      one version: an LMDB environment that nothing writes to any more
``<name>/current``           link to the one that is read
``<name>/.staging-<...>/``   a version that is being written
===========================  ====================================================================

An environment has two databases, ``users`` and ``facts``. Chunks are transactions, so a killed
writer leaves whole ones. Keys come in rising order and are appended: pages are full. A version is a
folder of its own, so old ones are removed as files, and one that is current can be copied to other
machines. LMDB: Chu, "MDB: A Memory-Mapped Database and Backend for OpenLDAP", 2011.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

from twotower.serving.store_version import MAX_KEY, Read, StoreVersion, VersionFacts
from twotower.serving.stored_list import StoreError

CURRENT, LOCK, DATA = "current", ".lock", "data.mdb"
STAGING, REMOVED, LINK = ".staging-", ".removed-", ".current-"
USERS, FACTS, ABOUT, POPULAR = b"users", b"facts", b"about", b"popular"
CHUNK = b"chunk "
# Of the address space, not of the disk: a file has the size of what is in it.
MAP_SIZE = 1 << 40
ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class LmdbStore:
    """A store in a folder.

    Args:
        path: Folder of all stores.
        name: Name of the store, a folder in it.

    Raises:
        ValueError: When LMDB is not installed.
    """

    path: str = "stores"
    name: str

    def __post_init__(self) -> None:
        _import_lmdb()

    @property
    def home(self) -> Path:
        """Folder of the store."""
        return Path(self.path) / self.name

    @property
    def location(self) -> str:
        """See `Store`."""
        return str(self.home)

    def begin(
        self, facts: VersionFacts, popular: bytes | None
    ) -> AbstractContextManager[StoreVersion]:
        """See `Store`; writers of a store work one at a time."""
        return self._begun(facts, popular)

    @contextmanager
    def _begun(self, facts: VersionFacts, popular: bytes | None) -> Iterator[StoreVersion]:
        home = self.home
        home.mkdir(parents=True, exist_ok=True)
        with _lock(home):
            for left in (*home.glob(f"{REMOVED}*"), *home.glob(f"{LINK}*")):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            if (home / facts.namespace).is_dir():
                yield _Finished(home, facts.namespace)
                return
            version = _Staged(home, facts, popular)
            try:
                yield version
            finally:
                version.close()

    def values(self) -> _LmdbValues:
        """See `Store`."""
        return _LmdbValues(self.home)


class _Staged:
    """A version that is being written; see `StoreVersion`."""

    def __init__(self, home: Path, facts: VersionFacts, popular: bytes | None) -> None:
        self._home, self._namespace = home, facts.namespace
        self._folder = home / f"{STAGING}{facts.namespace}"
        self._environment = _writable(self._folder)
        self._users = self._environment.open_db(USERS)
        self._facts = self._environment.open_db(FACTS)
        with self._environment.begin(write=True, db=self._facts) as transaction:
            transaction.put(ABOUT, facts.to_bytes())
            if popular is not None:
                transaction.put(POPULAR, popular)
        self.chunks = _chunks(self._environment, self._facts)

    def put(self, chunk: int, digest: str, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """See `StoreVersion`; one transaction, on the disk when this returns."""
        lmdb = _import_lmdb()
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in entries:
                    if not transaction.put(key, value, db=self._users, append=True):
                        raise StoreError(f"{self._folder}: key {key!r} does not come in order")
                transaction.put(CHUNK + str(chunk).encode(), digest.encode(), db=self._facts)
        except lmdb.Error as error:
            raise StoreError(f"{self._folder}: cannot be written: {error}") from error
        self.chunks[chunk] = digest

    def publish(self, num_values: int, *, keep: int) -> None:
        """See `StoreVersion`."""
        with self._environment.begin(db=self._users) as transaction:
            found = transaction.stat(self._users)["entries"]
        self.close()
        if found != num_values:
            shutil.rmtree(self._folder)
            raise StoreError(
                f"{self._folder}: holds {found} lists where {num_values} were written; it was "
                "removed, run the same command again"
            )
        self._folder.rename(self._home / self._namespace)
        _publish(self._home, self._namespace, keep)

    def close(self) -> None:
        """Let go of the files."""
        self._environment.close()


class _Finished:
    """A version that is whole and not to be changed; see `StoreVersion`."""

    def __init__(self, home: Path, namespace: str) -> None:
        self._home, self._namespace = home, namespace
        self._opened = _opened(home / namespace)
        self.chunks = self._opened.chunks

    def put(self, chunk: int, digest: str, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """See `StoreVersion`.

        Raises:
            StoreError: Always.
        """
        raise StoreError(
            f"{self._home / self._namespace}: was finished with another chunk {chunk} and never "
            "changes; give another time, seconds=..., or remove the folder"
        )

    def publish(self, num_values: int, *, keep: int) -> None:
        """See `StoreVersion`."""
        _publish(self._home, self._namespace, keep)


class _Opened:
    """A finished version, open for reading as long as somebody holds this."""

    def __init__(self, folder: Path) -> None:
        lmdb = _import_lmdb()
        try:
            self.environment = lmdb.open(
                str(folder), readonly=True, lock=False, max_dbs=2, map_size=MAP_SIZE, create=False
            )
            size = self.environment.stat()["psize"] * (self.environment.info()["last_pgno"] + 1)
            if (folder / DATA).stat().st_size < size:  # A page that is not there ends the process.
                raise StoreError(f"{folder / DATA}: cut; `twotower batch` writes it again")
            self.users = self.environment.open_db(USERS, create=False)
            facts = self.environment.open_db(FACTS, create=False)
            with self.environment.begin(db=facts) as transaction:
                about, self.popular = transaction.get(ABOUT), transaction.get(POPULAR)
        except lmdb.Error as error:
            if not folder.is_dir():
                raise FileNotFoundError(folder) from error
            raise StoreError(f"{folder}: no readable store: {error}") from error
        self.facts = VersionFacts.from_bytes(about or b"", str(folder))
        self.chunks = _chunks(self.environment, facts)
        self._folder, self._error = folder, lmdb.Error

    def get(self, key: bytes) -> Any:  # noqa: ANN401 - LMDB has no types
        try:
            with self.environment.begin(db=self.users) as transaction:
                return transaction.get(key) if 1 <= len(key) <= MAX_KEY else None
        except self._error as error:
            raise StoreError(f"{self._folder}: no readable store: {error}") from error


class _LmdbValues:
    """Reads the current version; see `Values`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._version: _Opened | None = None

    def read(self, key: bytes) -> Read:
        """See `Values`."""
        for _ in range(ATTEMPTS):
            try:
                namespace = os.readlink(self._home / CURRENT)
            except FileNotFoundError:
                return Read()
            version = self._version
            if version is None or version.facts.namespace != namespace:
                try:
                    version = _opened(self._home / namespace)
                except FileNotFoundError:  # another one has become current, and this was removed
                    continue
                self._version = version
            value, facts = version.get(key), version.facts
            return Read(namespace=namespace, facts=facts, value=value, popular=version.popular)
        raise StoreError(f"{self._home / CURRENT}: leads to {namespace}, which is not there")


# A process must not open an environment twice.
_OPEN: WeakValueDictionary[Path, _Opened] = WeakValueDictionary()
_OPENING = threading.Lock()


def _opened(folder: Path) -> _Opened:
    folder = folder.resolve()
    with _OPENING:
        version = _OPEN.get(folder)
        if version is None:
            version = _OPEN[folder] = _Opened(folder)
        return version


def _writable(folder: Path) -> Any:  # noqa: ANN401 - LMDB has no types
    """The environment in a folder; one that cannot be read, since its maker was killed, anew."""
    lmdb = _import_lmdb()
    try:
        return lmdb.open(str(folder), max_dbs=2, map_size=MAP_SIZE)
    except lmdb.Error:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        return lmdb.open(str(folder), max_dbs=2, map_size=MAP_SIZE)
    except lmdb.Error as error:
        raise StoreError(f"{folder}: cannot be written: {error}") from error


def _chunks(environment: Any, facts: Any) -> dict[int, str]:  # noqa: ANN401
    with environment.begin(db=facts) as transaction:
        pairs = list(transaction.cursor())
    return {
        int(key.removeprefix(CHUNK)): digest.decode()
        for key, digest in pairs
        if key.startswith(CHUNK)
    }


def _publish(home: Path, namespace: str, keep: int) -> None:
    """Let ``current`` lead to a version, then remove all but the latest."""
    os.utime(home / namespace)
    staged = home / f"{LINK}{os.getpid()}"
    staged.unlink(missing_ok=True)
    staged.symlink_to(namespace, target_is_directory=True)
    staged.replace(home / CURRENT)
    handle = os.open(home, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    versions = (path.parent for path in home.glob(f"[!.]*/{DATA}"))
    others = [path for path in versions if path.name not in (CURRENT, namespace)]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in (*others[keep - 1 :], *home.glob(f"{STAGING}*")):
        removed = home / f"{REMOVED}{path.name.removeprefix(STAGING)}"
        path.rename(removed)
        shutil.rmtree(removed)


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    with (home / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{home}: is being written by another run") from error
        yield


def _import_lmdb() -> ModuleType:
    try:
        import lmdb
    except ImportError as error:
        raise ValueError(
            "store=lmdb needs LMDB, which is not installed: pip install 'twotower[batch]'; "
            "store=none writes Parquet alone"
        ) from error
    module: ModuleType = lmdb
    return module
