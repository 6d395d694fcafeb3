"""Lists of a chunk of users, as one Parquet file.

A user is a row, with the items as a list: such a file can be read back into a store row by row, a
user who has seen everything or for whom the models failed still has a row, and a row group knows
between which ids its users lie. Users come in the order of their ids as text, in UTF-8.

=================  =====================  ====================================================
``user_id``        int64 or string        as in the tables
``item_id``        list of the same kind  at most k, best first; null where the models failed
``score``          list of float32        of the two towers
``probability``    list of float32        of the ranker; null without one
``error``          string                 why there is no list; null where there is one
=================  =====================  ====================================================

Shape letters: Q users of a block, K candidates, k items of a list.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twotower.data.item_lists import ItemLists
from twotower.data.prepared import checksum
from twotower.data.schema import ITEM_ID, USER_ID
from twotower.export.bundle import open_bundle
from twotower.export.manifest import MANIFEST
from twotower.index.base import NO_ITEM
from twotower.serving.queries import Columns, encode_context, history_columns
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Filter
from twotower.serving.store import user_key
from twotower.serving.store_version import MAX_KEY

BLOCK = 2048  # FAISS takes a third less time for a query than in blocks of 256
NUM_EXAMPLES = 5
SCORE, PROBABILITY, ERROR = "score", "probability", "error"

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Users that are scored and written together.

    Args:
        number: Its place among the chunks.
        user_rows: Rows of the users in the bundle.
    """

    number: int
    user_rows: Rows


@dataclass(frozen=True, kw_only=True)
class ScoredChunk:
    """What is known of a chunk that was written.

    Args:
        number: Its place among the chunks.
        digest: Of its file.
        num_users: Users in it.
        num_short: Those whose list has fewer than k items.
        num_failed: Those who have no list.
        reasons: How many of them, by the reason.
        examples: Some of them, by the reason.
    """

    number: int
    digest: str
    num_users: int
    num_short: int
    num_failed: int
    reasons: Mapping[str, int]
    examples: Mapping[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores chunks of users, in this process or another.

    Args:
        bundle: Version folder of the bundle.
        bundle_digest: Digest of its manifest.
        k: Length of the lists.
        filters: What every item of a list must pass.
        seconds: Time of the requests, seconds since 1970 UTC.
        folder: Where the files are written.
    """

    bundle: Path
    bundle_digest: str
    k: int
    filters: Sequence[Filter]
    seconds: int
    folder: Path

    def __call__(self, chunk: Chunk) -> ScoredChunk:
        """Write the file of a chunk, whole or not at all.

        Raises:
            ValueError: When the bundle is another one than when the run began.
        """
        recommender = open_recommender(self.bundle)
        if checksum(self.bundle / MANIFEST) != self.bundle_digest:
            raise ValueError(f"{self.bundle}: was replaced since this run began")
        starts = range(0, len(chunk.user_rows), BLOCK)
        blocks = (chunk.user_rows[start : start + BLOCK] for start in starts)
        table = pa.concat_tables(self._table(recommender, rows) for rows in blocks)
        path = chunk_path(self.folder, chunk.number)
        write_table(table, path)
        failed = table.filter(table[ERROR].is_valid())
        users, errors = failed[USER_ID].to_pylist(), failed[ERROR].to_pylist()
        examples: dict[str, list[Any]] = {}
        for user, reason in zip(users, errors, strict=True):
            some = examples.setdefault(reason, [])
            some += [user] if len(some) < NUM_EXAMPLES else []
        lengths = pc.list_value_length(table[ITEM_ID])
        return ScoredChunk(
            number=chunk.number,
            digest=checksum(path),
            num_users=len(table),
            num_short=pc.sum(pc.less(lengths, self.k)).as_py() or 0,
            num_failed=len(failed),
            reasons=dict(Counter(errors)),
            examples=examples,
        )

    def _table(self, recommender: Recommender, rows: Rows) -> pa.Table:
        """Rows (Q) of the file; what the models refuse is cut in halves until one user is left."""
        ids = recommender.bundle.users.ids.take(pa.array(rows))  # type: ignore[union-attr]
        try:
            return self._lists(recommender, rows, ids)
        except ValueError as error:
            if len(rows) > 1:
                halves = (rows[: len(rows) // 2], rows[len(rows) // 2 :])
                return pa.concat_tables(self._table(recommender, half) for half in halves)
            schema = file_schema(ids.type, recommender.items.ids.type)
            return pa.Table.from_pylist([{USER_ID: ids[0].as_py(), ERROR: str(error)}], schema)

    def _lists(self, recommender: Recommender, rows: Rows, ids: pa.Array) -> pa.Table:
        for user in ids.to_pylist():
            if not 1 <= len(user_key(user)) <= MAX_KEY:
                raise ValueError(f"an id must have 1 to {MAX_KEY} bytes, got {len(user_key(user))}")
        queries, seen = user_queries(recommender, rows, self.seconds)
        allowed = [recommender.items.allowed(self.filters)] * len(rows)
        ranked = recommender.rank(queries, self.k, seen, allowed=allowed)
        shown = ranked.rows != NO_ITEM  # (Q, k)
        offsets = pa.array(np.concatenate([[0], np.cumsum(shown.sum(1))]).astype(np.int32))
        items = recommender.items.ids.take(pa.array(ranked.rows[shown]))
        scores = np.take_along_axis(ranked.candidates.scores, ranked.places, 1)[shown]
        probabilities: pa.Array = pa.nulls(len(rows), pa.list_(pa.float32()))
        if ranked.probabilities is not None:
            values = np.take_along_axis(ranked.probabilities, ranked.places, 1)[shown]
            if not np.isfinite(values).all():
                raise ValueError("the ranker gives a probability that is not finite")
            probabilities = _lists_of(offsets, values)
        columns = (
            ids,
            pa.ListArray.from_arrays(offsets, items),
            _lists_of(offsets, scores),
            probabilities,
            pa.nulls(len(rows), pa.string()),
        )
        return pa.table(list(columns), schema=file_schema(ids.type, items.type))


def user_queries(
    recommender: Recommender, rows: Rows, seconds: int
) -> tuple[Columns, ItemLists | None]:
    """Encoded columns of users as a request of theirs has them, and what they may not be shown.

    Args:
        recommender: Of the bundle.
        rows: (Q,) users.
        seconds: Time of the requests.
    """
    bundle, pipeline = recommender.bundle, recommender.bundle.pipeline
    context = encode_context(pipeline, {}, seconds=seconds)  # (1, ...) each
    queries = {name: np.repeat(column, len(rows), 0) for name, column in context.items()}
    if bundle.users is not None:
        queries |= {name: column[rows] for name, column in bundle.users.columns.items()}
    offsets, events = bundle.offsets, bundle.item_rows
    if offsets is None or events is None:
        offsets, events = np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int64)
        rows = np.arange(len(rows))
    starts, ends = offsets[rows], offsets[rows + 1]
    times = bundle.event_times
    if times is None:
        times = np.broadcast_to(np.int64(seconds), (len(events),))
    history = pipeline.spec.history
    queries |= history_columns(
        events, times, starts, ends, recommender.items.columns, history.features, history.length
    )
    seen = ItemLists.cut(events, starts, ends) if bundle.manifest.remove_seen else None
    return queries, seen


def in_key_order(ids: pa.Array) -> Rows:
    """(U,) rows of users in the order of their keys in a store."""
    return np.asarray(pc.sort_indices(ids.cast(pa.string())).to_numpy(), np.int64)


def file_schema(users: pa.DataType, items: pa.DataType) -> pa.Schema:
    """Columns of a file.

    Args:
        users: Type of the user ids.
        items: Type of the item ids.
    """
    numbers = pa.list_(pa.float32())
    kinds = (users, pa.list_(items), numbers, numbers, pa.string())
    names = (USER_ID, ITEM_ID, SCORE, PROBABILITY, ERROR)
    return pa.schema(list(zip(names, kinds, strict=True)))


def chunk_path(folder: Path, number: int) -> Path:
    """The file of a chunk."""
    return folder / f"part-{number:06}.parquet"


def write_table(table: pa.Table, path: Path) -> None:
    """Write a file beside its place, and rename it when it is on the disk."""
    unfinished = path.with_name(f".{path.name}")
    pq.write_table(
        table, unfinished, compression="zstd", use_dictionary=[f"{ITEM_ID}.list.element"]
    )
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


@lru_cache(maxsize=1)
def open_recommender(bundle: Path) -> Recommender:
    """The bundle in a folder, opened once by every process.

    Args:
        bundle: Version folder.
    """
    return Recommender(open_bundle(bundle))


def _lists_of(offsets: pa.Array, values: Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32()))
