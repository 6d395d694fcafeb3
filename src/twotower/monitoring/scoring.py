"""What a bundle says about the rows of a window: known users and items, histories, probabilities.

Rows are scored as the ranker was trained on them: with the context that was logged, and the events
of the user that the bundle knows of and that lie before the row. Nothing is done row by row.

Shape letters: R rows of a window, Q queries of a block, U users, N items, D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.schema import (
    ITEM_ID,
    LABEL,
    MICROSECONDS,
    RETRIEVAL_RANK,
    RETRIEVAL_SCORE,
    TIMESTAMP,
    USER_ID,
    DataError,
)
from twotower.export.bundle import Bundle
from twotower.features.vocabulary import as_array
from twotower.monitoring.estimates import Clusters
from twotower.monitoring.windows import Window
from twotower.serving.models import OnnxModel, score_candidates
from twotower.serving.queries import Columns, encode_user, history_columns
from twotower.serving.recommender import Recommender

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

BLOCK = 8192
UNKNOWN = -1
PLACES_OF_A_BLOCK = 1 << 24  # scores of all items that are held at once: 64 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowRows:
    """The rows of a window as a bundle knows them.

    Args:
        user_rows: (R,) users, -1 where unknown.
        item_rows: (R,) items, -1 where unknown.
        clusters: Whose rows they are; an unknown user is one of its own window.
        seconds: (R,) when they happened, seconds since 1970.
        labels: (R,) whether they were a success, or None in a log of successes alone.
        has_label: (R,) whether the label has come.
    """

    user_rows: Integers
    item_rows: Integers
    clusters: Clusters
    seconds: Integers
    labels: npt.NDArray[np.bool_] | None
    has_label: npt.NDArray[np.bool_]

    @property
    def taken(self) -> npt.NDArray[np.bool_]:
        """(R,) rows at which a user took an item."""
        return self.has_label if self.labels is None else self.labels & self.has_label


class BundleModels:
    """The models of a bundle, opened, as monitoring asks them.

    Args:
        bundle: The bundle.
        num_threads: Threads that a model uses in one call; 0 for one a core.
    """

    def __init__(self, bundle: Bundle, *, num_threads: int = 0) -> None:
        self.bundle = bundle
        self.recommender: Recommender | None = None
        if bundle.query_tower is not None:
            self.recommender = Recommender(bundle, num_threads=num_threads)
        self.ranker: OnnxModel | None = None
        if bundle.ranker is not None:
            self.ranker = OnnxModel(bundle.ranker, num_threads=num_threads)

    @cached_property
    def last_event(self) -> int:
        """Time of the latest event in the bundle, seconds since 1970; 0 without times."""
        times = self.bundle.event_times
        return 0 if times is None or not len(times) else int(times.max())

    @cached_property
    def item_counts(self) -> Integers:
        """(N,) events of every item that the bundle knows of."""
        num_items = 0 if self.bundle.items is None else len(self.bundle.items.ids)
        events = np.zeros(0, np.int64) if self.bundle.item_rows is None else self.bundle.item_rows
        return np.bincount(events, minlength=num_items).astype(np.int64)

    def rows(self, window: Window, positive_from: float) -> WindowRows:
        """Look the rows of a window up.

        Args:
            window: The window.
            positive_from: Smallest label of a success.

        Raises:
            DataError: When its ids cannot be those of the bundle.
        """
        table, bundle = window.interactions, self.bundle
        users = None if bundle.users is None else bundle.users.ids
        items = None if bundle.items is None else bundle.items.ids
        user_rows, users_of_rows = find_ids(table, USER_ID, users)
        times = np.full(table.num_rows, window.start, np.int64)
        if TIMESTAMP in table.column_names:
            times = np.asarray(as_array(table[TIMESTAMP])) // MICROSECONDS
        labels, has_label = None, np.ones(table.num_rows, np.bool_)
        if LABEL in table.column_names:
            values = as_array(table[LABEL])
            has_label = np.asarray(values.is_valid())
            labels = np.asarray(pc.fill_null(values, 0.0)) >= positive_from
            labels &= has_label
        return WindowRows(
            user_rows=user_rows,
            item_rows=find_ids(table, ITEM_ID, items)[0],
            clusters=Clusters.of(users_of_rows),
            seconds=np.asarray(times, np.int64),
            labels=labels,
            has_label=has_label,
        )

    def probabilities(self, window: Window, rows: WindowRows) -> npt.NDArray[np.float32] | None:
        """Probability (R,) that every row is a success; NaN where the item is unknown.

        Args:
            window: The window.
            rows: Its rows.

        Returns:
            None without a ranker.
        """
        if self.ranker is None:
            return None
        found = np.full(window.interactions.num_rows, np.nan, np.float32)
        known = np.arange(len(found))
        if self.bundle.items is not None:
            known = np.flatnonzero(rows.item_rows != UNKNOWN)
        for start in range(0, len(known), BLOCK):
            block = known[start : start + BLOCK]
            found[block] = self._score(self.ranker, window, rows, block)
        return found

    def _score(
        self, ranker: OnnxModel, window: Window, rows: WindowRows, block: Integers
    ) -> npt.NDArray[np.float32]:
        """Probabilities (Q,) of some rows."""
        table = window.interactions.take(pa.array(block))
        queries: Columns = self.bundle.pipeline.encode("context", table)
        queries |= self.user_columns(rows.user_rows[block], rows.seconds[block])
        items = np.maximum(rows.item_rows[block], 0)[:, None]  # (Q, 1); none in a flat click table
        columns = {} if self.bundle.items is None else self.bundle.items.columns
        pairs: dict[str, Array] = {}
        if {RETRIEVAL_SCORE, RETRIEVAL_RANK} & ranker.inputs.keys():
            vectors = self._recommender().embed(queries)
            pairs = self._retrieval(vectors, items, RETRIEVAL_RANK in ranker.inputs)
        return score_candidates(ranker, queries, columns, items, pairs)[:, 0]

    def _recommender(self) -> Recommender:
        if self.recommender is None:
            raise ValueError(f"{self.bundle.folder}: holds no retrieval stage")
        return self.recommender

    def _retrieval(self, vectors: Array, items: Integers, with_ranks: bool) -> dict[str, Array]:
        """Score and rank (Q, 1) that the retrieval gives to one item (Q, 1) of every query."""
        of_items = np.asarray(self.bundle.item_vectors)
        scores = np.einsum("qd,qd->q", vectors, of_items[items[:, 0]])  # (Q,)
        pairs: dict[str, Array] = {RETRIEVAL_SCORE: scores.astype(np.float32)[:, None]}
        if with_ranks:
            ranks = np.empty(len(scores), np.float32)
            size = max(1, PLACES_OF_A_BLOCK // len(of_items))
            for start in range(0, len(scores), size):
                block = slice(start, start + size)
                every = vectors[block] @ of_items.T  # (q, N)
                ranks[block] = 1 + np.count_nonzero(every > scores[block, None], axis=1)
            pairs[RETRIEVAL_RANK] = ranks[:, None]
        return pairs

    def user_columns(self, user_rows: Integers, seconds: Integers) -> Columns:
        """User and history columns (Q, ...) as they were at some times.

        Args:
            user_rows: (Q,) users, -1 where unknown.
            seconds: (Q,) the times; of what happened then nothing is known yet.
        """
        bundle = self.bundle
        known = user_rows != UNKNOWN
        columns: Columns = {}
        for name, missing in encode_user(bundle.pipeline, {}).items():
            columns[name] = np.repeat(missing, len(user_rows), 0)
            if bundle.users is not None:
                columns[name][known] = bundle.users.columns[name][user_rows[known]]
        starts, ends = self.histories(user_rows, seconds)
        if bundle.item_rows is None or bundle.items is None:
            return columns
        history, times = bundle.pipeline.spec.history, bundle.event_times
        if times is None:
            times = np.broadcast_to(np.int64(seconds.max(initial=0)), (len(bundle.item_rows),))
        return columns | history_columns(
            bundle.item_rows,
            times,
            starts,
            ends,
            bundle.items.columns,
            history.features,
            history.length,
        )

    def histories(self, user_rows: Integers, seconds: Integers) -> tuple[Integers, Integers]:
        """Where the events of users before some times begin and end in the bundle (Q,) each."""
        offsets, times = self.bundle.offsets, self.bundle.event_times
        if offsets is None:
            return np.zeros(len(user_rows), np.int64), np.zeros(len(user_rows), np.int64)
        places = np.maximum(user_rows, 0)
        starts = np.asarray(offsets[places], np.int64)
        ends = np.where(user_rows == UNKNOWN, starts, offsets[places + 1]).astype(np.int64)
        if times is None or (len(seconds) and int(seconds.min()) > self.last_event):
            return starts, ends
        return starts, _first_not_before(times, starts, ends, seconds)


def find_ids(table: pa.Table, name: str, ids: pa.Array | None) -> tuple[Integers, Integers]:
    """Rows of the ids in a column, and keys by which equal ids can be told.

    Args:
        table: R rows.
        name: The column.
        ids: Known ids, or None.

    Returns:
        (R,) rows, -1 where unknown; and (R,) keys: the row, below -1 where unknown. Where there is
        no such column, every row has a key of its own.

    Raises:
        DataError: When the ids are numbers and the known ones are text, or the reverse.
    """
    if name not in table.column_names:
        unknown = np.full(table.num_rows, UNKNOWN, np.int64)
        return unknown, -2 - np.arange(table.num_rows, dtype=np.int64)
    encoded = as_array(table[name]).dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(0), np.int64)
    distinct = encoded.dictionary
    rows = np.full(len(distinct), UNKNOWN, np.int64)
    if ids is not None and len(distinct):
        if pa.types.is_integer(ids.type) != pa.types.is_integer(distinct.type):
            raise DataError(
                [f"column `{name}` holds {distinct.type}, the bundle knows ids of type {ids.type}"]
            )
        places = pc.index_in(distinct.cast(ids.type), value_set=ids)
        rows = np.asarray(pc.fill_null(places, UNKNOWN), np.int64)
    keys = np.where(rows == UNKNOWN, -2 - np.arange(len(rows)), rows)
    return rows[codes], keys[codes]


def _first_not_before(
    times: Array, starts: Integers, ends: Integers, seconds: Integers
) -> Integers:
    """First event (Q,) in ``times[start:end]``, which rise, that is not before a time (Q,)."""
    low, high = starts.copy(), ends.copy()
    while (low < high).any():
        middle = (low + high) // 2
        open_ = low < high
        before = open_ & (times[np.where(open_, middle, 0)] < seconds)
        low = np.where(before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)
    return low
