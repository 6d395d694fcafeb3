"""Why an item is, or is not, among the recommendations of a request.

The request is answered once more with every step looked at: exact search, the index without and
with filters, the cells that it looked into, the filters one by one, the ranker with every feature
occluded. What is found stands in an `Explanation`.

Shape letters: N rows of the catalogue, K candidates, D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.item_lists import ItemLists
from twotower.data.schema import RETRIEVAL_RANK, RETRIEVAL_SCORE
from twotower.index.allowed import AllowedRows
from twotower.index.base import NO_ITEM
from twotower.index.cells import Probe
from twotower.index.delta import DeltaIndex
from twotower.index.filtered import FilteredIndex
from twotower.index.row_search import num_before
from twotower.serving.asked import Asked
from twotower.serving.contributions import Pair, contributions
from twotower.serving.explanation import Contribution, Explanation, Places
from twotower.serving.filters import search_filtered
from twotower.serving.ids import ItemId
from twotower.serving.models import score_candidates
from twotower.serving.recommender import Ranked, Recommender
from twotower.serving.requests import Request, RequestError
from twotower.serving.verdict import Verdict, left_out, verdict

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A request that the models answer, and an item.

    Args:
        recommender: Answers it.
        asked: The request.
        row: The item.
        query: (1, D) vector of the request.
        score: Of the retrieval.
        seen: Items that are not shown because the user has taken them.
        allowed: Items that may be shown, seen ones among them; None for all.
        others: Rows of all items that may be shown, without the item itself.
        rank: Place by exact score among these, whether it may be shown or not.
        ranked: All candidates, in the order of the retrieval and in that of the ranker.
        shown: (k,) rows of the answer; with a screen before the ranker not always its first.
    """

    recommender: Recommender
    asked: Asked
    row: int
    query: npt.NDArray[np.float32]
    score: float
    seen: Rows
    allowed: AllowedRows | None
    others: Rows
    rank: int
    ranked: Ranked
    shown: Rows

    @property
    def candidates(self) -> Rows:
        """(K,) rows of the candidates, best first."""
        rows = self.ranked.candidates.rows[0]
        return np.asarray(rows[rows != NO_ITEM], np.int64)


def explain(recommender: Recommender, request: Request, item: ItemId) -> Explanation:
    """Where an item was won or lost.

    Args:
        recommender: Answers the request.
        request: The request.
        item: External id.

    Raises:
        RequestError: When the request cannot be answered or the item is unknown.
    """
    items = recommender.items
    (row,) = items.find([item]).tolist()
    if row < 0:
        some = ", ".join(map(str, items.ids[:3].to_pylist()))
        raise RequestError(
            "item", f"{item!r} is unknown; known are {len(items)} items such as {some}"
        )
    asked = recommender.encoder.asked(0, request)
    parts: list[Contribution] = []
    if asked is None:
        places, (outcome, sentence) = _popular(recommender, request, row)
    else:
        case = _case(recommender, asked, row)
        places = _places(case)
        outcome, sentence = left_out(items, request, row, case.seen) or verdict(
            places, request.k, has_ranker=recommender.ranker is not None
        )
        parts, logit = contributions(recommender, _pair(case, places))
        places = replace(places, logit=logit)
    return Explanation(
        item_id=items.ids[row].as_py(),
        title=items.title(row),
        version=recommender.bundle.manifest.version,
        k=request.k,
        outcome=outcome,
        sentence=sentence,
        places=places,
        contributions=parts,
    )


def _popular(recommender: Recommender, request: Request, row: int) -> tuple[Places, Verdict]:
    """Nothing is known of the user, who is shown popular items."""
    (answer,) = recommender.answer([request])
    if isinstance(answer, RequestError):
        raise answer
    items = recommender.items
    shown = [one.item_id for one in answer.items]
    item = items.ids[row].as_py()
    place = shown.index(item) + 1 if item in shown else None
    every, allowed = items.allowed(()), items.allowed(request.filters)
    places = Places(
        num_items=len(items) if every is None else every.count,
        num_allowed=len(items) if allowed is None else allowed.count,
        num_candidates=0,
        place=place,
    )
    unknown = "nothing is known of the user, and popular items are shown"
    if place is not None:
        return places, ("shown", f"Shown at place {place:,} of {request.k:,}: {unknown}.")
    reason = left_out(items, request, row, np.empty(0, np.int64))
    return places, reason or ("not_popular", f"Not popular enough: {unknown}.")


def _case(recommender: Recommender, asked: Asked, row: int) -> _Case:
    items = recommender.items
    allowed = items.allowed(asked.request.filters)
    seen = asked.events if recommender.bundle.manifest.remove_seen else np.empty(0, np.int64)
    mask = np.ones(len(items), bool) if allowed is None else allowed.mask
    mask[seen] = False
    mask[row] = False
    others = np.flatnonzero(mask)
    query = recommender.embed(asked.columns)
    excluded = ItemLists(offsets=np.array([0, len(seen)]), item_rows=seen)
    k = asked.request.k
    ranked, answer = (
        recommender.rank(asked.columns, length, excluded, allowed=[allowed])
        for length in (max(k, recommender.num_candidates), k)
    )
    return _Case(
        recommender=recommender,
        asked=asked,
        row=row,
        query=query,
        score=float(np.asarray(items.vectors[np.array([row])])[0] @ query[0]),
        seen=seen,
        allowed=allowed,
        others=others,
        rank=num_before(items.vectors, others, query[0], row) + 1,
        ranked=ranked,
        shown=answer.rows[0],
    )


def _places(case: _Case) -> Places:
    """Where the item stands after every step."""
    items, row, query = case.recommender.items, case.row, case.query[0]
    every = items.allowed(())
    all_rows = np.arange(len(items)) if every is None else every.rows
    allowed = case.allowed is None or bool(case.allowed.contains(np.array([row]))[0])
    may_be_shown = allowed and row not in case.seen
    wanted = case.ranked.candidates.rows.shape[1]
    unfiltered = search_filtered(case.recommender.index, case.query, wanted, None, [every])
    candidate = _place_of(row, case.candidates)
    final = _place_of(row, case.ranked.rows[0])
    ranker_rank, probability = _of_ranker(case, candidate, final)
    return Places(
        num_items=len(all_rows),
        num_allowed=len(case.others) + int(may_be_shown),
        num_candidates=len(case.candidates),
        score=case.score,
        exact_rank=num_before(items.vectors, all_rows, query, row) + 1,
        index_rank=_place_of(row, unfiltered.rows[0]),
        allowed_rank=case.rank if may_be_shown else None,
        candidate_rank=candidate,
        probe=_probe(case),
        ranker_rank=ranker_rank,
        probability=probability,
        place=_place_of(row, case.shown),
    )


def _place_of(row: int, rows: Rows) -> int | None:
    found = np.flatnonzero(rows == row)
    return int(found[0]) + 1 if len(found) else None


def _of_ranker(
    case: _Case, candidate: int | None, final: int | None
) -> tuple[int | None, float | None]:
    """The ranker's place among the candidates and its probability; None without a ranker."""
    ranker, probabilities = case.recommender.ranker, case.ranked.probabilities
    if ranker is None or probabilities is None:
        return None, None
    if candidate is not None:
        return final, float(probabilities[0, candidate - 1])
    extra = {
        RETRIEVAL_SCORE: np.array([[case.score]], np.float32),
        RETRIEVAL_RANK: np.array([[case.rank]], np.float32),
    }
    columns, rows = case.recommender.items.columns, np.array([[case.row]])
    found = score_candidates(ranker.model, case.asked.columns, columns, rows, extra)
    probability = float(found[0, 0])
    return int(np.count_nonzero(probabilities[0] > probability)) + 1, probability


def _probe(case: _Case) -> Probe | None:
    """The item's cell, if the index that was built has it and has cells."""
    index, allowed = case.recommender.index, case.allowed
    if isinstance(index, DeltaIndex):
        if case.row >= index.main.num_items or case.row in index.hidden:
            return None
        allowed = index.in_main(allowed)
        index = index.main
    if not isinstance(index, FilteredIndex) or index.index.cells is None:
        return None
    wanted = case.ranked.candidates.rows.shape[1]
    (num_probes,) = index.num_probes(case.query, wanted, allowed).tolist()
    return index.index.cells.probe(case.query, case.row, num_probes)


def _pair(case: _Case, places: Places) -> Pair:
    rank = places.candidate_rank or case.rank
    own = {RETRIEVAL_SCORE: case.score, RETRIEVAL_RANK: float(rank)}
    usual, num_candidates = own, len(case.candidates)
    if num_candidates:
        scores = case.ranked.candidates.scores[0, :num_candidates]
        middle = (num_candidates + 1) / 2
        usual = {RETRIEVAL_SCORE: float(np.median(scores)), RETRIEVAL_RANK: middle}
    return Pair(asked=case.asked, row=case.row, retrieval=own, usual=usual)
