"""From a request to a ranked list: query tower, index, filter, ranker, top k.

One object for the command line, for evaluation and for whatever serves. It reads a bundle and needs
neither torch nor Lightning.

Shape letters: Q queries, K candidates, k items shown.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twotower.data.item_lists import ItemLists
from twotower.export.bundle import Bundle
from twotower.export.screening import best, num_finalists
from twotower.index.allowed import AllowedRows
from twotower.index.base import SearchResult
from twotower.index.filtered import FilteredIndex
from twotower.serving.asked import Asked, RequestEncoder
from twotower.serving.candidate_ranker import CandidateRanker
from twotower.serving.catalogue import BundleItems, Catalogue
from twotower.serving.filters import SelectiveIndex, first_allowed, search_filtered
from twotower.serving.ids import ItemId
from twotower.serving.models import OnnxModel, as_models_take
from twotower.serving.recommended import popular, recommended
from twotower.serving.requests import Answer, Filter, Recommendation, Request, RequestError, Source
from twotower.serving.space import check_space

if TYPE_CHECKING:
    from twotower.serving.fresh_items import FreshItems

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Lists for Q queries.

    Args:
        candidates: Item rows (Q, K) and retrieval scores from the index, seen items removed.
        probabilities: (Q, K) of the ranker, NaN where padded, and of what screens for it where one
            does and a candidate did not pass; None without a ranker.
        rows: (Q, k) item rows in final order, padded with -1.
        places: (Q, k) their place among the candidates.
    """

    candidates: SearchResult
    probabilities: Array | None
    rows: Array
    places: Array


# Q requests that were asked, and the item rows (Q, k) that were found for them.
Observe = Callable[[Sequence[Asked], Array], None]


class _Stages:
    """How long every stage took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def ends(self, stage: str) -> None:
        """What passed since the last stage ended was this one."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


class Recommender:
    """Answers requests out of a bundle.

    Args:
        bundle: An opened bundle with both towers; a ranker is optional.
        num_threads: Threads that a model uses in one call; 0 for one a core. Where several requests
            are answered at the same time, one is best.

    Raises:
        ValueError: When the bundle has no retrieval stage.
    """

    def __init__(self, bundle: Bundle, *, num_threads: int = 0) -> None:
        if bundle.query_tower is None or bundle.items is None:
            raise ValueError(
                f"{bundle.folder}: holds no retrieval stage, so it can rank but not recommend; "
                "train with stages=[retrieval,ranking]"
            )
        self.bundle = bundle
        index = bundle.load_index()
        self.items: Catalogue = BundleItems(bundle, bundle.items)
        self._built_index = FilteredIndex(index, self.items.vectors)
        self.index: SelectiveIndex = self._built_index
        self.num_candidates = min(bundle.manifest.num_candidates or 0, len(self.items))
        self.encoder = RequestEncoder(bundle, self.items)
        self.observe: Observe | None = None  # is told of every answer that the models gave
        self._num_threads = num_threads
        self.query_tower = OnnxModel(bundle.query_tower, num_threads=num_threads)
        self.ranker: CandidateRanker | None = None
        if bundle.ranker is not None:
            self.ranker = CandidateRanker(bundle.ranker, bundle.screen, num_threads=num_threads)

    @cached_property
    def item_tower(self) -> OnnxModel:
        """The item tower, opened when it is first asked for: no request needs it.

        Raises:
            ValueError: When the bundle has none.
        """
        if self.bundle.item_tower is None:
            raise ValueError(f"{self.bundle.folder}: holds no item tower")
        return OnnxModel(self.bundle.item_tower, num_threads=self._num_threads)

    def with_items(self, items: FreshItems) -> Recommender:
        """The same models with the items as they are now.

        Args:
            items: The bundle's items with what has changed.

        Raises:
            ValueError: When their vectors lie in another space than those of the towers.
        """
        check_space(items.base.space, self.bundle, "the items")
        other = copy.copy(self)
        other.items, other.index = items, items.index(self._built_index)
        other.encoder = RequestEncoder(self.bundle, items)
        return other

    def embed(self, queries: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """Vectors (Q, D) of encoded queries."""
        return np.asarray(self.query_tower.run(queries), np.float32)

    def rank(
        self,
        queries: Mapping[str, Array],
        k: int,
        excluded: ItemLists | None,
        clock: _Stages | None = None,
        allowed: Sequence[AllowedRows | None] | None = None,
    ) -> Ranked:
        """Lists for encoded queries.

        Args:
            queries: Encoded user, context and history columns, (Q, ...) each.
            k: Length of the final lists.
            excluded: Items that a query may not show, or None.
            clock: Told when a stage ends.
            allowed: (Q,) items that a query may show, None for all.
        """
        clock = clock or _Stages()
        wanted = max(k, self.num_candidates)
        queries = as_models_take(queries)
        vectors = self.embed(queries)
        clock.ends("query_tower")
        among = [None] * len(vectors) if allowed is None else allowed
        found = search_filtered(self.index, vectors, wanted, excluded, among)
        clock.ends("index")
        if self.ranker is None:
            probabilities, places = None, best(found.scores, k)
        else:
            ranking = self.ranker.rank(queries, self.items.columns, found, k)
            probabilities, places = ranking.probabilities, ranking.places
        rows = found.rows[np.arange(len(places))[:, None], places]
        clock.ends("ranker")
        return Ranked(candidates=found, probabilities=probabilities, rows=rows, places=places)

    def recommend(
        self,
        *,
        user: ItemId | None = None,
        history: Sequence[ItemId] = (),
        user_features: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        k: int = 10,
        filters: Sequence[Filter] = (),
        seconds: float | None = None,
    ) -> list[Recommendation]:
        """Recommend items to one user; the arguments are those of `Request`.

        Returns:
            At most `k` items, best first; popular ones where nothing is known of the user.

        Raises:
            RequestError: When the bundle does not know the user, an item of the history or what a
                filter asks for, or `k` is below 1.
        """
        request = Request(
            user=user,
            history=history,
            user_features=user_features or {},
            context=context or {},
            k=k,
            filters=filters,
            seconds=seconds,
        )
        (answer,) = self.answer([request])
        if isinstance(answer, RequestError):
            raise answer
        return list(answer.items)

    def answer(self, requests: Sequence[Request]) -> list[Answer | RequestError]:
        """Answer some requests, those in one pass that rank equally many candidates.

        Args:
            requests: Any number, each with its own k and filters.

        Returns:
            As many answers in the same order, errors in the place of those that have none.
        """
        clock = _Stages()
        answers: list[Answer | RequestError | None] = [None] * len(requests)
        asked: list[Asked] = []
        allowed: list[AllowedRows | None] = []
        for place, request in enumerate(requests):
            try:
                one = self.encoder.asked(place, request)
                among = self.items.allowed(request.filters)
            except RequestError as error:
                answers[place] = error
                continue
            if one is None:
                items = self._popular(request.k, among)
                answers[place] = self._answer(request, items, "popular", clock)
            else:
                asked.append(one)
                allowed.append(among)
        clock.ends("features")
        # No list may depend on whose request came at the same time.
        depths = [self._depth(one.request.k) for one in asked]
        for depth in dict.fromkeys(depths):
            group = [n for n, own in enumerate(depths) if own == depth]
            lists = self._ranked([asked[n] for n in group], [allowed[n] for n in group], clock)
            for n, items in zip(group, lists, strict=True):
                answers[asked[n].place] = self._answer(asked[n].request, items, "model", clock)
        return [answer for answer in answers if answer is not None]

    def _depth(self, k: int) -> tuple[int, int]:
        """How many candidates a list of `k` items is ranked from, and how many pass a screen."""
        return max(k, self.num_candidates), num_finalists(k)

    def _answer(
        self, request: Request, items: Sequence[Recommendation], source: Source, clock: _Stages
    ) -> Answer:
        return Answer(
            items=items,
            version=self.bundle.manifest.version,
            source=source,
            missing=request.k - len(items),
            seconds=clock.seconds,
        )

    def _ranked(
        self, asked: Sequence[Asked], allowed: Sequence[AllowedRows | None], clock: _Stages
    ) -> list[list[Recommendation]]:
        """Lists of items for requests."""
        queries: Mapping[str, Array] = asked[0].columns
        if len(asked) > 1:
            queries = {n: np.concatenate([one.columns[n] for one in asked]) for n in queries}
        excluded = None
        if self.bundle.manifest.remove_seen:
            counts = [len(one.events) for one in asked]
            excluded = ItemLists(
                offsets=np.concatenate([[0], np.cumsum(counts)]),
                item_rows=np.concatenate([one.events for one in asked]),
            )
        k = max(one.request.k for one in asked)
        ranked = self.rank(queries, k, excluded, clock, allowed)
        if self.observe is not None:
            self.observe(asked, ranked.rows)
        scores, probabilities = ranked.candidates.scores, ranked.probabilities
        lists = [
            recommended(
                self.items,
                ranked.rows[query, : one.request.k],
                ranked.places[query, : one.request.k],
                scores[query],
                None if probabilities is None else probabilities[query],
                one.events,
            )
            for query, one in enumerate(asked)
        ]
        clock.ends("describe")
        return lists

    def _popular(self, k: int, allowed: AllowedRows | None) -> list[Recommendation]:
        rows = self.bundle.popular
        return [] if rows is None else popular(self.items, first_allowed(rows, k, allowed))

    def title(self, row: int) -> str:
        """Title of an item row, or its id where it has none."""
        return self.items.title(row)
