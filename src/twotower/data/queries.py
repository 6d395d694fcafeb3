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

from twotower.data.item_lists import ItemLists
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
        seen: The items seen before, as often as they were.
        truth: The relevant items, rising within a query, each once.
    """

    part: int
    user_rows: Array
    interactions: Array
    history_end: Array
    seen: ItemLists
    truth: ItemLists

    def __len__(self) -> int:
        return len(self.user_rows)

    def between(self, start: int, stop: int) -> Queries:
        """The queries from `start` up to `stop`."""
        return Queries(
            part=self.part,
            user_rows=self.user_rows[start:stop],
            interactions=self.interactions[start:stop],
            history_end=self.history_end[start:stop],
            seen=self.seen.between(start, stop),
            truth=self.truth.between(start, stop),
        )


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
    truth = ItemLists.cut(events.item_rows, starts[users], ends[users])
    seen = ItemLists.cut(events.item_rows, first, starts[users])
    pairs = np.unique(truth.query_index * len(items) + truth.item_rows)
    if remove_seen:
        pairs = np.setdiff1d(pairs, seen.query_index * len(items) + seen.item_rows)
    counts = np.bincount(pairs // len(items), minlength=len(users))
    kept = np.flatnonzero(counts)
    if not len(kept):
        raise DataError(
            [f"the {SPLIT_NAMES[part]} part holds no positive that could be found: nothing to rank"]
        )
    offsets = np.concatenate([[0], np.cumsum(counts[kept])])
    return Queries(
        part=part,
        user_rows=users[kept],
        interactions=events.interactions[starts[users[kept]]],
        history_end=starts[users[kept]],
        seen=seen.take(kept),
        truth=ItemLists(offsets=offsets, item_rows=pairs % len(items)),
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
