"""Why an item is, or is not, among the recommendations of a request: the findings, in plain values.

Found by `twotower.serving.explain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from twotower.index.cells import Probe
from twotower.serving.ids import ItemId

Outcome: TypeAlias = Literal[
    "shown",
    "removed",  # from the catalogue
    "seen",
    "filtered",
    "lost_by_retrieval",
    "lost_by_index",
    "lost_by_ranker",
    "not_popular",  # nothing is known of the user, popular items are shown
]


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
    """Where an item was won or lost. Places begin with 1.

    Args:
        item_id: External id.
        title: Its title, or its id.
        version: Of the bundle.
        outcome: What became of it.
        sentence: That in words.
        k: How many items were asked for.
        place: Its place in the answer; None where it is not shown.
        score: Of the retrieval; None where nothing is known of the user.
        exact_rank: Place by score among all items that there are, by exact search.
        index_rank: The same by the index, without filters and seen items; None where it is not
            among the first `num_candidates`.
        allowed_rank: Place by exact score among items that may be shown; None where it may not.
        num_allowed: How many items may be shown.
        candidate_rank: Place among the candidates; None where it is none.
        num_candidates: How many candidates the retrieval hands on.
        probe: Its cell of an inverted file, and whether that was looked into; None for other
            indexes, and for items that stand beside it.
        ranker_rank: Place that the ranker gives it among the candidates, or would if it was one;
            None without a ranker.
        logit: Of the ranker.
        probability: Of the ranker, calibrated.
        contributions: Of all features, by occlusion, the weightiest first.
    """

    item_id: ItemId
    title: str
    version: str
    outcome: Outcome
    sentence: str
    k: int
    place: int | None = None
    score: float | None = None
    exact_rank: int | None = None
    index_rank: int | None = None
    allowed_rank: int | None = None
    num_allowed: int
    candidate_rank: int | None = None
    num_candidates: int
    probe: Probe | None = None
    ranker_rank: int | None = None
    logit: float | None = None
    probability: float | None = None
    contributions: Sequence[Contribution] = ()
