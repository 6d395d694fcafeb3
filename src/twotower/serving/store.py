"""Lists of all users under their ids, made by `twotower batch` and looked up in microseconds.

A store holds versions, and one of them is current. A lookup takes everything that it answers from
that one, so nobody sees half a version, also while a newer one is written or becomes current.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twotower.serving.ids import ItemId
from twotower.serving.requests import Recommendation, Source
from twotower.serving.store_version import Store, Values
from twotower.serving.stored_list import StoredList, StoreError, decode_list

REDIS_SCHEMES = ("redis://", "rediss://", "unix://")

Status = Literal["found", "fallback", "stale", "missing"]


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What is known of a user.

    Args:
        status: ``found``: the user's own list; ``fallback``: popular items, the user has no list;
            ``stale``: either of them, older than the reader wants; ``missing``: nothing.
        items: Best first; they have no titles but their ids.
        source: ``model``, ``popular``, or None where nothing is there.
        version: Of the bundle that made the list, or None.
        written_at: Time from which the age counts, seconds since 1970, or None.
        age: Seconds since then, or None.
        note: The status in words.
    """

    status: Status
    items: Sequence[Recommendation] = ()
    source: Source | None = None
    version: str | None = None
    written_at: int | None = None
    age: float | None = None
    note: str


@dataclass(frozen=True, kw_only=True)
class StoreReader:
    """Looks users up; may be shared by threads.

    Args:
        values: The store.
        max_age: Seconds after which a list is stale; None for never.
        clock: What time it is, seconds since 1970.
        location: Where the store is, for messages.
    """

    values: Values
    max_age: float | None = None
    clock: Callable[[], float] = time.time
    location: str = "the store"

    def lookup(self, user: ItemId, *, k: int | None = None) -> Lookup:
        """The list of a user.

        Args:
            user: External id; a number and its text are the same user.
            k: How many items at most; None for all that are kept.

        Raises:
            StoreError: When the store cannot be reached, or a value in it is damaged or of another
                format.
        """
        found, now = self.values.read(user_key(user)), self.clock()
        facts = found.facts
        if facts is None:
            gone = "nothing was published; `twotower batch bundle=<bundle>` does that"
            if found.namespace is not None:
                gone = f"version {found.namespace} has expired or was evicted"
            return Lookup(status="missing", note=gone)
        if facts.expires_at is not None and now >= facts.expires_at:
            gone = f"version {facts.namespace} expired {_ago(now - facts.expires_at)} ago"
            return Lookup(status="missing", version=facts.bundle_version, note=gone)
        written = found.popular if found.value is None else found.value
        if written is None:
            gone = f"user {user!r} has no list, and there are no popular items"
            return Lookup(status="missing", version=facts.bundle_version, note=gone)
        try:
            own, stored = found.value is not None, decode_list(written)
        except StoreError as error:
            raise StoreError(f"{self.location}, user {user!r}: {error}") from error
        age = now - stored.written_at
        status: Status = "found" if own else "fallback"
        note = f"list of {user!r}" if own else f"{user!r} has no list: popular items"
        note += f", {_ago(age)} old"
        if self.max_age is not None and age > self.max_age:
            status = "stale"
            note += f"; at most {_ago(self.max_age)} is wanted"
        return Lookup(
            status=status,
            items=recommendations(stored, facts.bundle_version, k),
            source="model" if own else "popular",
            version=facts.bundle_version,
            written_at=stored.written_at,
            age=age,
            note=note,
        )


def recommendations(stored: StoredList, version: str, k: int | None) -> list[Recommendation]:
    """The first `k` items of a stored list."""
    scores = stored.scores
    why = "popular: the user has no list" if scores is None else f"batch of {version}"
    return [
        Recommendation(
            item_id=item,
            title=str(item),
            probability=scores[at] if scores is not None and stored.is_probability else None,
            retrieval_score=None if scores is None or stored.is_probability else scores[at],
            retrieval_rank=None if scores is None or stored.is_probability else at + 1,
            reason=why,
        )
        for at, item in enumerate(stored.item_ids[:k])
    ]


def user_key(user: ItemId) -> bytes:
    """The key of a user; a number and its text are the same.

    Example:
        >>> user_key(7) == user_key("7") == b"7"
        True
    """
    return str(user).encode()


def open_reader(location: str, *, max_age: float | None = None) -> StoreReader:
    """A reader of a store.

    Args:
        location: Folder of an LMDB store, such as ``stores/demo``, or URL of a Redis server with
            the name of the store behind a ``#``, such as ``redis://localhost:6379/0#demo``.
        max_age: Seconds after which a list is stale; None for never.

    Raises:
        ValueError: When the package that reads it is not installed, or the URL names no store.
    """
    from twotower.serving.store_lmdb import LmdbStore
    from twotower.serving.store_redis import RedisStore

    if location.startswith(REDIS_SCHEMES):
        url, _, name = location.partition("#")
        store: Store = RedisStore(url=url, name=name)
    else:
        path = Path(location)
        store = LmdbStore(path=str(path.parent), name=path.name)
    return StoreReader(values=store.values(), max_age=max_age, location=store.location)


def _ago(seconds: float) -> str:
    """A time span in one unit.

    Example:
        >>> _ago(45), _ago(7200), _ago(200_000)
        ('45 seconds', '2.0 hours', '2.3 days')
    """
    if abs(seconds) < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 3600:.1f} hours" if seconds < 2 * 86_400 else f"{seconds / 86_400:.1f} days"
