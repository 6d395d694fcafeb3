"""Why an item is, or is not, among the recommendations of a request: plain values.

Found by `twotower.serving.explain`. All places begin with 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from twotower.index.cells import Probe
from twotower.serving.ids import ItemId

Outcome: TypeAlias = Literal[
    "shown",
    "removed",
    "seen",
    "filtered",
    "lost_by_retrieval",
    "lost_by_index",
    "lost_by_ranker",
    "not_popular",
]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the item stands after every step.

    Args:
        num_items: How many items there are.
        num_allowed: How many of them may be shown: not removed, not seen, through the filters.
        num_candidates: How many of these the retrieval handed on.
        score: Of the retrieval; None where nothing is known of the user.
        exact_rank: Place by score among all items, by exact search.
        index_rank: The same by the index, filters and seen items aside; None where it is not among
            the first `num_candidates`.
        allowed_rank: Place by score among the items that may be shown, by exact search; None where
            it may not be.
        candidate_rank: Place among the candidates; None where it is none.
        probe: Its cell of an inverted file and whether the search looked into it; None for other
            indexes and for an item that stands beside the index.
        ranker_rank: Place that the ranker gives it among the candidates, or would if it was one;
            None without a ranker.
        logit: Of the ranker.
        probability: Of the ranker, calibrated.
        place: In the answer; None where it is not shown.
    """

    num_items: int
    num_allowed: int
    num_candidates: int
    score: float | None = None
    exact_rank: int | None = None
    index_rank: int | None = None
    allowed_rank: int | None = None
    candidate_rank: int | None = None
    probe: Probe | None = None
    ranker_rank: int | None = None
    logit: float | None = None
    probability: float | None = None
    place: int | None = None


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What a feature does for the item, by occlusion: see `twotower.serving.occlusion`.

    Args:
        feature: Its name, or ``history``, ``retrieval_score``, ``retrieval_rank``.
        side: ``user``, ``context``, ``item``, ``history`` or ``retrieval``.
        value: What it holds, in words; empty where it is missing.
        score: How much lower the retrieval's score is without it; None where the towers do not look
            at it.
        logit: How much lower the ranker's logit is without it; None where the ranker does not look
            at it, or there is none.
    """

    feature: str
    side: str
    value: str
    score: float | None
    logit: float | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Where an item was won or lost.

    Args:
        item_id: External id.
        title: Its title, or its id.
        version: Of the bundle.
        k: How many items were asked for.
        outcome: What became of it.
        sentence: That in words.
        places: Where it stands after every step.
        contributions: Of all features, by occlusion, the weightiest first.
    """

    item_id: ItemId
    title: str
    version: str
    k: int
    outcome: Outcome
    sentence: str
    places: Places
    contributions: Sequence[Contribution] = ()
