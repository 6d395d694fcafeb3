"""Lists in a Redis server, for readers on several machines.

===================================  ==================  =========================================
key                                  type                what
===================================  ==================  =========================================
``twotower:<name>:current``          string              namespace of the version that is read
``twotower:<name>:published``        list                versions that were current, newest last
``twotower:<name>:writing``          list                versions that were begun, newest last
``twotower:<name>:<ns>:<bucket>``    hash                value by user, bucket CRC-32 of it mod 256
``twotower:<name>:<ns>:about``       string              facts of the version
``twotower:<name>:<ns>:popular``     string              the list for users who have none
``twotower:<name>:<ns>:chunks``      hash                digest by chunk
===================================  ==================  =========================================

Everything of a version expires with it (EXPIREAT), but not the first three keys. Values lie in
hashes because those take less memory than keys of their own with a time each; there are 256, so
that no single one takes long to expire or to grow.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from twotower.serving.store_version import Read, StoreVersion, VersionFacts
from twotower.serving.stored_list import StoreError

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import Pipeline

NUM_BUCKETS = 256
SECONDS_TO_CONNECT = 5.0
ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class RedisStore:
    """A store in a Redis server.

    Args:
        url: Of the server and its database, as ``redis.from_url`` takes it.
        name: Name of the store; several share a server.

    Raises:
        ValueError: When the client is not installed, or the name or URL is none.
    """

    url: str = field(default="redis://localhost:6379/0", repr=False)  # It may hold a password.
    name: str

    def __post_init__(self) -> None:
        _import_redis()
        if not self.name:
            raise StoreError(
                f"{_shown(self.url)}: names no store; it stands behind a #, as in "
                "redis://localhost:6379/0#demo"
            )

    @property
    def location(self) -> str:
        """See `Store`."""
        return f"{_shown(self.url)}#{self.name}"

    def connect(self) -> Redis:
        """A client of the server.

        Raises:
            StoreError: When the URL is none.
        """
        redis = _import_redis()
        try:
            client: Redis = redis.from_url(self.url, socket_connect_timeout=SECONDS_TO_CONNECT)
        except ValueError as error:
            raise StoreError(f"{_shown(self.url)}: {error}") from error
        return client

    def begin(
        self, facts: VersionFacts, popular: bytes | None
    ) -> AbstractContextManager[StoreVersion]:
        """See `Store`; of several runs that write at a time the one that began last wins."""
        return self._begun(facts, popular)

    @contextmanager
    def _begun(self, facts: VersionFacts, popular: bytes | None) -> Iterator[StoreVersion]:
        with _said(self.location), self.connect() as client:
            yield _RedisVersion(client, self.name, facts, popular)

    def values(self) -> _RedisValues:
        """See `Store`."""
        return _RedisValues(self.connect(), self.name, self.location)


class _Keys:
    """Names of the keys of a store."""

    def __init__(self, name: str) -> None:
        self._root = f"twotower:{name}"
        self.current, self.published, self.writing = (
            f"{self._root}:{key}" for key in ("current", "published", "writing")
        )

    def of(self, namespace: str, part: str | int) -> str:
        """A key of one version."""
        return f"{self._root}:{namespace}:{part}"

    def every(self, namespace: str) -> list[str]:
        """All keys of one version."""
        parts = (*range(NUM_BUCKETS), "about", "popular", "chunks")
        return [self.of(namespace, part) for part in parts]


class _RedisVersion:
    """A version that is being written, or was finished; see `StoreVersion`."""

    def __init__(
        self, client: Redis, name: str, facts: VersionFacts, popular: bytes | None
    ) -> None:
        self._client, self._keys = client, _Keys(name)
        self._namespace, self._expires = facts.namespace, facts.expires_at
        if not self._is_in(self._keys.published):
            pipeline = client.pipeline()
            if not self._is_in(self._keys.writing):
                pipeline.rpush(self._keys.writing, self._namespace)
            about, popular_key = self._of("about"), self._of("popular")
            pipeline.set(about, facts.to_bytes(), exat=self._expires)
            if popular is not None:
                pipeline.set(popular_key, popular, exat=self._expires)
            pipeline.execute()
        digests: dict[bytes, bytes] = client.hgetall(self._of("chunks"))
        self.chunks = {int(chunk): digest.decode() for chunk, digest in digests.items()}

    def put(self, chunk: int, digest: str, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """See `StoreVersion`; the digest is written after all values.

        Raises:
            StoreError: When the version was finished, or given up for a later one.
        """
        if not self._is_in(self._keys.writing):
            raise StoreError(
                f"version {self._namespace} was published, or a later run has removed it; a "
                "published version never changes: give another time, seconds=..."
            )
        buckets: dict[str, dict[bytes, bytes]] = {}
        for key, value in entries:
            buckets.setdefault(self._of(_bucket(key)), {})[key] = value
        pipeline = self._client.pipeline(transaction=False)
        for bucket, values in buckets.items():
            pipeline.hset(bucket, mapping=values)
            self._expire(pipeline, bucket)
        pipeline.execute()
        self._client.hset(self._of("chunks"), str(chunk), digest)
        self._expire(self._client, self._of("chunks"))
        self.chunks[chunk] = digest

    def publish(self, num_values: int, *, keep: int) -> None:
        """See `StoreVersion`."""
        keys, namespace = self._keys, self._namespace
        pipeline = self._client.pipeline(transaction=False)
        for bucket in range(NUM_BUCKETS):
            pipeline.hlen(self._of(bucket))
        found = sum(pipeline.execute())
        if found != num_values:
            self._remove([namespace], keys.writing)
            self._remove([namespace], keys.published)
            raise StoreError(
                f"version {namespace}: holds {found} lists where {num_values} were written (were "
                "some evicted?); it was removed, run the same command again"
            )
        writing = self._texts(keys.writing)
        earlier = writing[: writing.index(namespace)] if namespace in writing else []

        def swap(pipeline: Pipeline) -> None:
            there = pipeline.lrange(keys.writing, 0, -1), pipeline.lrange(keys.published, 0, -1)
            if not any(namespace.encode() in names for names in there):
                raise StoreError(f"version {namespace}: a later run has been published meanwhile")
            pipeline.multi()
            pipeline.lrem(keys.writing, 0, namespace)
            pipeline.lrem(keys.published, 0, namespace)
            pipeline.rpush(keys.published, namespace)
            pipeline.set(keys.current, namespace)

        self._client.transaction(swap, keys.writing, keys.published)
        self._remove(earlier, keys.writing)
        self._remove(self._texts(keys.published)[:-keep], keys.published)

    def _of(self, part: str | int) -> str:
        return self._keys.of(self._namespace, part)

    def _is_in(self, names: str) -> bool:
        return self._namespace in self._texts(names)

    def _texts(self, names: str) -> list[str]:
        found: list[bytes] = self._client.lrange(names, 0, -1)
        return [name.decode() for name in found]

    def _expire(self, client: Redis, key: str) -> None:
        if self._expires is not None:
            client.expireat(key, self._expires)

    def _remove(self, namespaces: Iterable[str], names: str) -> None:
        """Remove versions; their names go last, so that a killed removal is finished later."""
        for namespace in namespaces:
            self._client.unlink(*self._keys.every(namespace))
            self._client.lrem(names, 0, namespace)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What a reader remembers of the version that was current; no facts where there were none."""

    namespace: str
    facts: VersionFacts | None
    popular: bytes | None


class _RedisValues:
    """Reads the current version; see `Values`."""

    def __init__(self, client: Redis, name: str, location: str) -> None:
        self._client, self._keys, self._location = client, _Keys(name), location
        self._known: _Known | None = None

    def read(self, key: bytes) -> Read:
        """See `Values`; one round trip, as long as the version stays."""
        with _said(self._location):
            for _ in range(ATTEMPTS):
                known = self._known or self._learn()
                if known is None:
                    return Read()
                pipeline = self._client.pipeline(transaction=True)
                pipeline.get(self._keys.current)
                pipeline.exists(self._keys.of(known.namespace, "about"))
                pipeline.hget(self._keys.of(known.namespace, _bucket(key)), key)
                current, there, value = pipeline.execute()
                stays = current == known.namespace.encode()
                self._known = known if stays and there else None
                if stays and not (there and known.facts):
                    return Read(namespace=known.namespace)
                if stays:
                    return Read(
                        namespace=known.namespace,
                        facts=known.facts,
                        value=value,
                        popular=known.popular,
                    )
        raise StoreError(f"{self._location}: another version became current {ATTEMPTS} times")

    def _learn(self) -> _Known | None:
        found: bytes | None = self._client.get(self._keys.current)
        if found is None:
            return None
        namespace = found.decode()
        parts = [self._keys.of(namespace, part) for part in ("about", "popular")]
        about, popular = self._client.mget(parts)
        facts = None
        if about is not None:
            facts = VersionFacts.from_bytes(about, f"{self._location}, {namespace}")
        return _Known(namespace=namespace, facts=facts, popular=popular)


def _bucket(key: bytes) -> int:
    return zlib.crc32(key) % NUM_BUCKETS


def _shown(url: str) -> str:
    """A URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


@contextmanager
def _said(location: str) -> Iterator[None]:
    """What the server or the way to it says, as an error of the store."""
    redis = _import_redis()
    try:
        yield
    except redis.RedisError as error:
        raise StoreError(f"{location}: {error}") from error


def _import_redis() -> ModuleType:
    try:
        import redis
    except ImportError as error:
        raise ValueError(
            "store=redis needs its client, which is not installed: pip install 'twotower[batch]'; "
            "store=lmdb needs no server"
        ) from error
    module: ModuleType = redis
    return module
