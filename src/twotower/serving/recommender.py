"""From a request to a ranked list: query tower, index, filter, ranker, top k.

One object for the command line, for evaluation and for whatever serves. It reads a bundle and needs
neither torch nor Lightning.

Shape letters: Q queries, K candidates, k items shown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.item_lists import ItemLists
from twotower.data.schema import RETRIEVAL_RANK, RETRIEVAL_SCORE, TITLE
from twotower.export.bundle import Bundle
from twotower.index.base import NO_ITEM, SearchResult
from twotower.serving.filters import search_allowed
from twotower.serving.ids import ItemId, find_rows
from twotower.serving.models import OnnxModel, score_candidates
from twotower.serving.queries import Columns, encode_context, encode_user, history_columns

Array = npt.NDArray[Any]


class UnknownUser(ValueError):  # noqa: N818 - what it is, in a user's words
    """The bundle does not know the user."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Lists for Q queries.

    Args:
        candidates: Item rows (Q, K) and retrieval scores from the index, seen items removed.
        probabilities: (Q, K) of the ranker, NaN where padded; None without a ranker.
        rows: (Q, k) item rows in final order, padded with -1.
        places: (Q, k) their place among the candidates.
    """

    candidates: SearchResult
    probabilities: Array | None
    rows: Array
    places: Array


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended item.

    Args:
        item_id: External id.
        title: The item's title, or its id where it has none.
        probability: Of the ranker; None without one.
        retrieval_score: Of the two towers; None for popular items.
        retrieval_rank: Place among the candidates, 1 at the top; None for popular items.
        reason: Why it is shown, in words.
    """

    item_id: ItemId
    title: str
    probability: float | None
    retrieval_score: float | None
    retrieval_rank: int | None
    reason: str


class Recommender:
    """Answers requests out of a bundle.

    Args:
        bundle: An opened bundle with both towers; a ranker is optional.

    Raises:
        ValueError: When the bundle has no retrieval stage.
    """

    def __init__(self, bundle: Bundle) -> None:
        if bundle.query_tower is None or bundle.items is None:
            raise ValueError(
                f"{bundle.folder}: holds no retrieval stage, so it can rank but not recommend; "
                "train with stages=[retrieval,ranking]"
            )
        self.bundle = bundle
        self.items = bundle.items
        self.index = bundle.load_index()
        self.num_candidates = min(bundle.manifest.num_candidates or 0, len(self.items))
        self._query_tower = OnnxModel(bundle.query_tower)
        self._ranker = None if bundle.ranker is None else OnnxModel(bundle.ranker)

    def embed(self, queries: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """Vectors (Q, D) of encoded queries."""
        return np.asarray(self._query_tower.run(queries), np.float32)

    def rank(self, queries: Mapping[str, Array], k: int, excluded: ItemLists | None) -> Ranked:
        """Lists for encoded queries.

        Args:
            queries: Encoded user, context and history columns, (Q, ...) each.
            k: Length of the final lists.
            excluded: Items that a query may not show, or None.
        """
        wanted = max(k, self.num_candidates)
        found = search_allowed(self.index, self.embed(queries), wanted, excluded)
        probabilities = None
        order_by = found.scores
        if self._ranker is not None:
            ranks = np.ones(found.rows.shape, np.float32).cumsum(axis=1)
            extra = {RETRIEVAL_SCORE: found.scores, RETRIEVAL_RANK: ranks}
            probabilities = score_candidates(
                self._ranker, queries, self.items.columns, found.rows, extra
            )
            order_by = np.where(np.isnan(probabilities), -np.inf, probabilities)
        places = np.argsort(-order_by, axis=1, kind="stable")[:, :k]
        rows = np.take_along_axis(found.rows, places, axis=1)
        return Ranked(candidates=found, probabilities=probabilities, rows=rows, places=places)

    def recommend(
        self,
        *,
        user: ItemId | None = None,
        history: Sequence[ItemId] = (),
        user_features: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        k: int = 10,
        seconds: float | None = None,
    ) -> list[Recommendation]:
        """Recommend items to one user.

        Args:
            user: Id of a known user, or None.
            history: Ids of items, oldest first, that stand in for or follow the known history; for
                a model that reads times they happen at the time of the request.
            user_features: Values by column for a user whom the bundle does not know.
            context: Values of context columns by name.
            k: How many items.
            seconds: Time of the request, seconds since 1970 UTC; now by default.

        Returns:
            At most `k` items, best first; popular ones where nothing is known of the user.

        Raises:
            UnknownUser: When the bundle does not know the user.
            ValueError: When an item of the history is unknown or `k` is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        user_row = None if user is None else self._user_row(user)
        events = self._events(user_row, history)
        if user_row is None and not len(events) and not user_features:
            return self._popular(k)
        queries = self._columns(user_row, events, user_features or {}, context or {}, seconds)
        excluded = None
        if self.bundle.manifest.remove_seen and len(events):
            excluded = ItemLists(offsets=np.array([0, len(events)]), item_rows=events)
        ranked = self.rank(queries, k, excluded)
        return self._describe(ranked, events)

    def _user_row(self, user: ItemId) -> int:
        users = self.bundle.users
        ids = pa.array([], pa.string()) if users is None else users.ids
        row = find_rows(ids, [user])[0]
        if row < 0:
            some = ", ".join(map(str, ids[:3].to_pylist()))
            raise UnknownUser(
                f"unknown user {user!r}; known are {len(ids)} users such as {some}. For somebody "
                "new give user=null and history=[<item ids>]"
            )
        return int(row)

    def _events(self, user_row: int | None, history: Sequence[ItemId]) -> npt.NDArray[np.int64]:
        offsets, item_rows = self.bundle.offsets, self.bundle.item_rows
        known = np.zeros(0, np.int64)
        if user_row is not None and offsets is not None and item_rows is not None:
            known = np.asarray(item_rows[offsets[user_row] : offsets[user_row + 1]], np.int64)
        given = find_rows(self.items.ids, history)
        unknown = [str(item) for item, row in zip(history, given, strict=True) if row < 0]
        if unknown:
            raise ValueError(f"history: unknown items {', '.join(unknown)}")
        return np.concatenate([known, given])

    def _columns(
        self,
        user_row: int | None,
        events: npt.NDArray[np.int64],
        user_features: Mapping[str, Any],
        context: Mapping[str, Any],
        seconds: float | None,
    ) -> Columns:
        pipeline, users = self.bundle.pipeline, self.bundle.users
        now = time.time() if seconds is None else seconds
        columns = encode_context(pipeline, context, seconds=now)
        if user_row is None or users is None:
            columns |= encode_user(pipeline, user_features)
        else:
            columns |= {n: c[user_row : user_row + 1] for n, c in users.columns.items()}
        names, length = pipeline.spec.history.features, pipeline.spec.history.length
        times = self._times(user_row, len(events), int(now))
        starts, ends = np.zeros(1, np.int64), np.array([len(events)])
        return columns | history_columns(
            events, times, starts, ends, self.items.columns, names, length
        )

    def _times(self, user_row: int | None, num_events: int, now: int) -> npt.NDArray[np.int64]:
        """When events happened, seconds since 1970; now, where it is not known."""
        offsets, known = self.bundle.offsets, self.bundle.event_times
        times = np.full(num_events, now, np.int64)
        if user_row is not None and offsets is not None and known is not None:
            own = known[offsets[user_row] : offsets[user_row + 1]]
            times[: len(own)] = own
        return times

    def _describe(self, ranked: Ranked, events: npt.NDArray[np.int64]) -> list[Recommendation]:
        found = ranked.candidates
        return [
            Recommendation(
                item_id=self.items.ids[int(row)].as_py(),
                title=self.title(int(row)),
                probability=None
                if ranked.probabilities is None
                else float(ranked.probabilities[0, place]),
                retrieval_score=float(found.scores[0, place]),
                retrieval_rank=int(place) + 1,
                reason=self._reason(int(row), events),
            )
            for row, place in zip(ranked.rows[0], ranked.places[0], strict=True)
            if row != NO_ITEM
        ]

    def _reason(self, row: int, events: npt.NDArray[np.int64]) -> str:
        """The event of the history whose vector is most like the item's."""
        vectors = self.bundle.item_vectors
        if not len(events) or vectors is None:
            return "fits the profile"
        latest = events[-100:]
        history, item = np.asarray(vectors[latest]), np.asarray(vectors[row])
        norms = np.linalg.norm(history, axis=1) * np.linalg.norm(item)
        cosines = history @ item / np.where(norms == 0, 1, norms)
        best = int(cosines.argmax())
        return f"like {self.title(int(latest[best]))} ({cosines[best]:.2f})"

    def _popular(self, k: int) -> list[Recommendation]:
        popular = self.bundle.popular
        return [
            Recommendation(
                item_id=self.items.ids[int(row)].as_py(),
                title=self.title(int(row)),
                probability=None,
                retrieval_score=None,
                retrieval_rank=None,
                reason="popular: nothing is known of the user",
            )
            for row in ([] if popular is None else popular[:k])
        ]

    def title(self, row: int) -> str:
        """Title of an item row, or its id where it has none."""
        table = self.items.table
        title = table.column(TITLE)[row].as_py() if TITLE in table.column_names else None
        return str(self.items.ids[row].as_py() if title is None else title)
