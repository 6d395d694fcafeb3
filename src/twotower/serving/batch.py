"""Lists for all users of a bundle, written as Parquet and into a store.

A chunk of users is scored and written to a file; then the file is loaded into the store. Files and
store remember with a digest which chunks they have, so a run that was killed goes on where it was,
and ends with the files and the store of one that was not. Readers find the new lists when all of
them are in.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twotower.data.prepared import checksum
from twotower.data.schema import ITEM_ID, USER_ID
from twotower.data.workers import Workers
from twotower.export.bundle import Bundle, resolve
from twotower.export.manifest import MANIFEST
from twotower.index.allowed import AllowedRows
from twotower.serving.batch_files import RunFacts, RunFolder, open_run
from twotower.serving.batch_scores import (
    ERROR,
    NUM_EXAMPLES,
    PROBABILITY,
    SCORE,
    Chunk,
    Scorer,
    in_key_order,
    open_recommender,
)
from twotower.serving.filters import first_allowed
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Filter
from twotower.serving.store import user_key
from twotower.serving.store_version import Store, StoreVersion, VersionFacts
from twotower.serving.stored_list import MAX_COUNT, encode_lists

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How a batch is made.

    Args:
        k: Length of the lists.
        filters: What every item of a list must pass, that of popular items too.
        seconds: Time of the requests, seconds since 1970 UTC; None for now, or for the time of the
            same run that was left by less than a day ago.
        chunk_size: Users that are scored and written together.
        keep: Versions that stay, the new one included.
        ttl_days: Days after which nobody is to read the lists; None for never.
        max_failed_share: Share of users without a list above which nothing is published.

    Raises:
        ValueError: When a setting is out of range.
    """

    k: int = 100
    filters: Sequence[Filter] = ()
    seconds: int | None = None
    chunk_size: int = 8192
    keep: int = 1
    ttl_days: float | None = 7
    max_failed_share: float = 0.01

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1, got {value}"
            for name, value in (
                ("k", self.k),
                ("chunk_size", self.chunk_size),
                ("keep", self.keep),
            )
            if value < 1
        ]
        if self.k > MAX_COUNT:
            problems.append(f"k must be at most {MAX_COUNT}, got {self.k}")
        if self.ttl_days is not None and self.ttl_days <= 0:
            problems.append(f"ttl_days must be above 0, or null for never, got {self.ttl_days}")
        if not 0 <= self.max_failed_share <= 1:
            problems.append(f"max_failed_share must be 0 to 1, got {self.max_failed_share}")
        if problems:
            raise ValueError("\n".join(problems))

    def expires_at(self, written_at: int) -> int | None:
        """When lists of a time expire."""
        ttl = self.ttl_days
        return None if ttl is None else int(written_at + ttl * SECONDS_PER_DAY)


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """How a batch ended.

    Args:
        report: The figures of ``batch.json``.
        path: That file; None where too many users failed: then the run stopped there, and nothing
            was published.
    """

    report: dict[str, Any]
    path: Path | None


def run_batch(
    bundle: Path,
    home: Path,
    store: Store,
    settings: BatchSettings,
    workers: Workers,
    *,
    progress: bool = False,
) -> BatchResult:
    """Score all users of a bundle, or go on with it.

    Args:
        bundle: Version folder or ``current`` of a bundle.
        home: Folder of all runs of the name.
        store: Where the lists are to be looked up.
        settings: How.
        workers: Who scores the chunks.
        progress: Whether a progress bar is shown.

    Raises:
        ValueError: When the bundle, a filter or another setting cannot be used, the lists have
            expired already, another run of the name is going on, or the store refuses.
    """
    from tqdm import tqdm

    folder = resolve(bundle)
    recommender = open_recommender(folder)
    allowed = recommender.items.allowed(settings.filters)
    facts = _facts(recommender.bundle, settings)
    begun = time.perf_counter()
    with open_run(home, facts, any_time=settings.seconds is None) as run:
        about = _about(run.facts, settings)
        popular = _popular(recommender, about, allowed)
        with (
            store.begin(about, popular) as version,
            closing(_scored(run, recommender.bundle, settings, workers)) as numbers,
            tqdm(total=facts.num_users, desc="batch", unit="user", disable=not progress) as bar,
        ):
            failed = 0
            for number in numbers:
                failed += run.scored[number].num_failed
                if failed > settings.max_failed_share * facts.num_users:
                    report = _report(run, about, store, time.perf_counter() - begun)
                    return BatchResult(report=report, path=None)
                _load(run, number, version)
                bar.update(run.scored[number].num_users)
            report = _report(run, about, store, time.perf_counter() - begun)
            version.publish(report["users"] - report["failed"], keep=settings.keep)
        return BatchResult(report=report, path=run.finish(report, keep=settings.keep))


def _facts(bundle: Bundle, settings: BatchSettings) -> RunFacts:
    if bundle.users is None:
        raise ValueError(f"{bundle.folder}: knows no users; train with a table that has `user_id`")
    return RunFacts(
        bundle_version=bundle.manifest.version,
        bundle_digest=checksum(bundle.folder / MANIFEST),
        num_users=len(bundle.users),
        k=settings.k,
        filters=[{**asdict(rule), "values": list(rule.values)} for rule in settings.filters],
        chunk_size=settings.chunk_size,
        seconds=int(time.time()) if settings.seconds is None else settings.seconds,
    )


def _about(facts: RunFacts, settings: BatchSettings) -> VersionFacts:
    expires = settings.expires_at(facts.seconds)
    if not 0 <= facts.seconds < 2**32:
        raise ValueError(f"seconds must be a time from 1970 to 2106, got {facts.seconds}")
    if expires is not None and expires <= time.time():
        raise ValueError(
            f"ttl_days: lists of the time {facts.seconds} expire after {settings.ttl_days} days, "
            "which have passed; give a later time or ttl_days=null"
        )
    return VersionFacts(
        namespace=facts.namespace,
        bundle_version=facts.bundle_version,
        k=facts.k,
        written_at=facts.seconds,
        expires_at=expires,
    )


def _scored(
    run: RunFolder, bundle: Bundle, settings: BatchSettings, workers: Workers
) -> Generator[int]:
    """Numbers of all chunks in order, each when its file is there."""
    facts = run.facts
    rows = in_key_order(bundle.users.ids)  # type: ignore[union-attr]
    size = facts.chunk_size
    pending = [
        Chunk(number=number, user_rows=rows[number * size : (number + 1) * size])
        for number in range(facts.num_chunks)
        if number not in run.scored
    ]
    scorer = Scorer(
        bundle=bundle.folder,
        bundle_digest=facts.bundle_digest,
        k=facts.k,
        filters=settings.filters,
        seconds=facts.seconds,
        folder=run.lists,
    )
    with closing(workers.map(scorer, pending)) as scored:  # type: ignore[type-var]
        for number in range(facts.num_chunks):
            if number not in run.scored:
                run.note(next(scored))
            yield number


def _load(run: RunFolder, number: int, version: StoreVersion) -> None:
    """Bring a chunk into the store, unless it is there."""
    digest = run.scored[number].digest
    if version.chunks.get(number) != digest:
        version.put(number, digest, _entries(run.path(number), run.facts))


def _entries(path: Path, facts: RunFacts) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the users in a file who have a list."""
    table = pq.ParquetFile(path).read()
    table = table.filter(table[ERROR].is_null())
    column = {name: table[name].combine_chunks() for name in table.column_names}
    ranked = column[PROBABILITY].null_count == 0
    values = encode_lists(
        column[ITEM_ID],
        column[PROBABILITY if ranked else SCORE],
        is_probability=ranked,
        k=facts.k,
        written_at=facts.seconds,
    )
    return zip(map(user_key, column[USER_ID].to_pylist()), values, strict=True)


def _popular(
    recommender: Recommender, about: VersionFacts, allowed: AllowedRows | None
) -> bytes | None:
    """The list for users who have none."""
    popular = recommender.bundle.popular
    if popular is None:
        return None
    rows = first_allowed(np.asarray(popular), about.k, allowed)
    items = recommender.items.ids.take(pa.array(rows))
    lists = pa.ListArray.from_arrays(pa.array([0, len(items)], pa.int32()), items)
    written = about.written_at
    return next(encode_lists(lists, None, is_probability=False, k=about.k, written_at=written))


def _report(run: RunFolder, about: VersionFacts, store: Store, seconds: float) -> dict[str, Any]:
    chunks = list(run.scored.values())
    reasons: dict[str, dict[str, Any]] = {}
    for chunk in chunks:
        for reason, count in chunk.reasons.items():
            said = reasons.setdefault(reason, {"users": 0, "examples": []})
            said["users"] += count
            said["examples"] = [*said["examples"], *chunk.examples[reason]][:NUM_EXAMPLES]
    new = sum(chunk.num_users for chunk in chunks[run.num_found :])
    return {
        "bundle_version": about.bundle_version,
        "namespace": about.namespace,
        "store": store.location,
        "k": about.k,
        "filters": run.facts.filters,
        "written_at": about.written_at,
        "expires_at": about.expires_at,
        "users": sum(chunk.num_users for chunk in chunks),
        "failed": sum(chunk.num_failed for chunk in chunks),
        "short": sum(chunk.num_short for chunk in chunks),
        "reasons": reasons,
        "parquet_bytes": sum(run.path(number).stat().st_size for number in run.scored),
        "scored_now": new,
        "seconds": seconds,
        "users_per_second": new / seconds,
    }
