"""What a store promises to those who fill it: versions, one of which is current.

A version becomes current in one step, when all of it is in, and never changes after that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Protocol

from twotower.serving.stored_list import StoreError

STORE_FORMAT = 1
MAX_KEY = 511  # of LMDB as it is built; the same for every store


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """What a store says about one version.

    Args:
        namespace: Its name: that of the bundle's version and a digest of all that decides what is
            in it.
        bundle_version: Version of the bundle that made the lists.
        k: Length of the lists.
        written_at: Time from which the age counts, seconds since 1970.
        expires_at: Time from which nobody is to read it, or None.
    """

    namespace: str
    bundle_version: str
    k: int
    written_at: int
    expires_at: int | None

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps({"format": STORE_FORMAT, **asdict(self)}).encode()

    @staticmethod
    def from_bytes(written: bytes, place: str) -> VersionFacts:
        """Read what `to_bytes` wrote.

        Args:
            written: JSON.
            place: Where it was found, for the message.

        Raises:
            StoreError: When it is no JSON or of another format.
        """
        try:
            document = json.loads(written)
            found = document.pop("format")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise StoreError(f"{place}: facts of a version cannot be read: {error!r}") from error
        if found != STORE_FORMAT:
            raise StoreError(
                f"{place}: format version {found!r}, this release reads {STORE_FORMAT}; run "
                "`twotower batch` again"
            )
        return VersionFacts(**document)


class StoreVersion(Protocol):
    """One version that is being written."""

    @property
    def chunks(self) -> Mapping[int, str]:
        """Digest of every chunk that is in already, by its number."""

    def put(self, chunk: int, digest: str, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Write a chunk; it counts as in only when all of it is.

        Args:
            chunk: Its number; chunks come in order.
            digest: Of its content.
            entries: Keys, in rising order, and values.
        """

    def publish(self, num_values: int, *, keep: int) -> None:
        """Make this version the current one, then remove those before it.

        Args:
            num_values: How many values it must hold.
            keep: How many published versions stay, this one included.

        Raises:
            StoreError: When it holds another number, or a later version was published meanwhile;
                the current version stays.
        """


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one version says about a user; all None where nothing was published.

    Args:
        namespace: The current version.
        facts: About it; None where it expired or was evicted.
        value: The user's list, or None.
        popular: The list for those who have none, or None.
    """

    namespace: str | None = None
    facts: VersionFacts | None = None
    value: bytes | None = None
    popular: bytes | None = None


class Values(Protocol):
    """Reads the current version of a store."""

    def read(self, key: bytes) -> Read:
        """Everything about a key, out of one version."""


class Store(Protocol):
    """Where lists are kept."""

    @property
    def location(self) -> str:
        """Path or URL that `open_reader` takes; holds no password."""

    def begin(
        self, facts: VersionFacts, popular: bytes | None
    ) -> AbstractContextManager[StoreVersion]:
        """Begin a version, or go on with it where it was left.

        Args:
            facts: About the version.
            popular: The list for users who have none.

        Raises:
            StoreError: When the store cannot be written.
        """

    def values(self) -> Values:
        """For reading."""


class NoStore:
    """No store: the lists are written as Parquet alone.

    Args:
        name: Not looked at.
    """

    location = "none"

    def __init__(self, *, name: str) -> None:
        self.name = name
        self.chunks: Mapping[int, str] = {}

    def begin(
        self, facts: VersionFacts, popular: bytes | None
    ) -> AbstractContextManager[StoreVersion]:
        """See `Store`."""
        return nullcontext(self)

    def put(self, chunk: int, digest: str, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """See `StoreVersion`; the entries are not even made."""

    def publish(self, num_values: int, *, keep: int) -> None:
        """See `StoreVersion`."""

    def values(self) -> Values:
        """See `Store`.

        Raises:
            StoreError: Always.
        """
        raise StoreError("store=none keeps nothing to look up; choose store=lmdb or store=redis")
