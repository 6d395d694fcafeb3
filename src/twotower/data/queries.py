"""Who is asked what in evaluation: one query a user at the cut, the truth is what came after.

The history of a query is everything the user had done before the evaluated part; its context is
that of the first event of the part. Under leave one out the truth is one item, under a temporal
split it is all items of the part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.prepared import Prepared, history_before
from twotower.data.schema import SPLIT_NAMES, DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Evaluation queries of one part.

    Args:
        part: ``VALIDATION`` or ``TEST``.
        user_rows: (Q,) users.
        interactions: (Q,) the interaction whose context the query has.
        history_end: (Q,) absolute end of the history in the events.
        seen_offsets: (Q + 1,) CSR offsets of the items seen before.
        seen_items: Their item rows.
        truth_offsets: (Q + 1,) CSR offsets of the relevant items.
        truth_items: Their item rows, each once a query.
    """

    part: int
    user_rows: Array
    interactions: Array
    history_end: Array
    seen_offsets: Array
    seen_items: Array
    truth_offsets: Array
    truth_items: Array

    def __len__(self) -> int:
        return len(self.user_rows)


def evaluation_queries(
    prepared: Prepared, part: int, *, remove_seen: bool, max_users: int = 0, seed: int = 0
) -> Queries:
    """The queries of a part.

    Args:
        prepared: The data set.
        part: ``VALIDATION`` or ``TEST``.
        remove_seen: Whether seen items are kept out of the ranking; then they are no truth either.
        max_users: Draw at most this many of the users with positives in the part; 0 for all. Those
            of them who have no truth left make no query.
        seed: Seed of that draw.

    Raises:
        DataError: When no user has anything to be found in the part.
    """
    events, _, items = prepared.require_events()
    starts, ends = history_before(prepared, part), events.part_end(part)
    users = np.flatnonzero(ends > starts)
    if max_users and len(users) > max_users:
        draw = np.random.default_rng(seed).choice(len(users), max_users, replace=False)
        users = users[np.sort(draw)]
    first = events.offsets[:-1][users]
    truth_offsets, truth = slices(events.item_rows, starts[users], ends[users])
    seen_offsets, seen = slices(events.item_rows, first, starts[users])
    owners = np.repeat(np.arange(len(users)), np.diff(truth_offsets))
    pairs = np.unique(owners * len(items) + truth)
    if remove_seen:
        seen_pairs = np.repeat(np.arange(len(users)), np.diff(seen_offsets)) * len(items) + seen
        pairs = np.setdiff1d(pairs, seen_pairs, assume_unique=False)
    counts = np.bincount(pairs // len(items), minlength=len(users))
    kept = np.flatnonzero(counts)
    if not len(kept):
        raise DataError(
            [f"the {SPLIT_NAMES[part]} part holds no positive that could be found: nothing to rank"]
        )
    seen_starts = seen_offsets[:-1][kept]
    seen_ends = seen_starts + np.diff(seen_offsets)[kept]
    seen_offsets, seen = slices(seen, seen_starts, seen_ends)
    return Queries(
        part=part,
        user_rows=users[kept],
        interactions=events.interactions[starts[users[kept]]],
        history_end=starts[users[kept]],
        seen_offsets=seen_offsets,
        seen_items=seen,
        truth_offsets=np.concatenate([[0], np.cumsum(counts[kept])]),
        truth_items=pairs % len(items),
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How offline metrics are computed.

    Args:
        ks: Lengths of the lists, the headline one first.
        remove_seen: Whether items that a user took before are kept out of the ranking.
        max_users: Evaluate a random sample of so many users; 0 for all of them.
        num_resamples: Bootstrap resamples behind every interval.
    """

    ks: Sequence[int] = (10, 20, 100)
    remove_seen: bool = True
    max_users: int = 0
    num_resamples: int = 1000

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"evaluation: `ks` must be list lengths of at least 1, got {self.ks}")
        if self.max_users < 0:
            raise ValueError(f"evaluation: `max_users` must be at least 0, got {self.max_users}")

    def queries(self, prepared: Prepared, part: int) -> Queries:
        """The queries of a part."""
        return evaluation_queries(
            prepared, part, remove_seen=self.remove_seen, max_users=self.max_users
        )


def slices(values: Array, starts: Array, ends: Array) -> tuple[Array, Array]:
    """CSR of the slices ``values[start:end]``."""
    counts = ends - starts
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - starts, counts)
    return offsets, np.asarray(values[places], np.int64)
