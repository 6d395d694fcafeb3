"""What the users of a window were shown, and how the ranker of a bundle orders it.

Clicks among what was shown are many more than hits in lists of ten, and a ranker orders all of
them: what it has unlearned shows here first.

Shapes: Q queries, S impressions of all of them, K of one, N items of the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.item_lists import ItemLists
from twotower.data.prepared import Prepared
from twotower.data.queries import Queries
from twotower.data.schema import RETRIEVAL_RANK, RETRIEVAL_SCORE, TEST
from twotower.index.base import NO_ITEM
from twotower.metrics.click import auc_by_group
from twotower.serving.models import OnnxModel, as_models_take, score_candidates
from twotower.serving.recommender import Ranked, Recommender

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Impressions of the test part.

    Args:
        items: Item rows of the window by query.
        taken: (S,) bool, in that order.
    """

    items: ItemLists
    taken: Array

    @staticmethod
    def of(prepared: Prepared, queries: Queries, known: Array) -> Shown:
        """The impressions of users who are asked for.

        Args:
            prepared: The window.
            queries: One of each user.
            known: (N,) bool, which items count.
        """
        log = prepared.interactions
        _, users, _ = prepared.require_events()
        rows = np.flatnonzero(log.split == TEST)
        query_of = np.full(len(users), -1)
        query_of[queries.user_rows] = np.arange(len(queries))
        user_rows, item_rows = np.asarray(log.user_rows)[rows], np.asarray(log.item_rows)[rows]
        owners, items = query_of[user_rows], np.asarray(item_rows, np.int64)
        counts = (owners >= 0) & known[items]
        rows, owners, items = rows[counts], owners[counts], items[counts]
        order = np.argsort(owners, kind="stable")
        sizes = np.bincount(owners, minlength=len(queries))
        return Shown(
            items=ItemLists(
                offsets=np.concatenate([[0], np.cumsum(sizes)]),
                item_rows=items[order],
            ),
            taken=np.asarray(log.positive[rows[order]]),
        )

    def scores(
        self,
        recommender: Recommender,
        ranker: OnnxModel,
        to_bundle: Array,
        columns: Mapping[str, Array],
        ranked: Ranked,
        start: int,
    ) -> Array:
        """What a bundle's ranker gives the impressions of some queries.

        The place among all items, where a ranker reads it, is that among the candidates; beyond
        them, the one after the last.

        Args:
            recommender: Of the bundle.
            ranker: Its ranker.
            to_bundle: (N,) rows of the window's items there.
            columns: Of the queries.
            ranked: Its answer to them.
            start: The first of the queries.

        Returns:
            (S',) probabilities of the impressions of these queries.
        """
        found = ranked.candidates
        items = self.items.between(start, start + len(found.rows))
        owners, counts = items.query_index, items.counts
        places = np.arange(len(owners)) - np.repeat(items.offsets[:-1], counts)
        rows = np.full((len(items), int(counts.max(initial=0))), NO_ITEM)
        rows[owners, places] = to_bundle[items.item_rows]
        queries = as_models_take(columns)
        vectors = np.asarray(recommender.bundle.item_vectors)[rows[owners, places]]  # (S', D)
        own = np.einsum("sd,sd->s", vectors, recommender.embed(queries)[owners])
        before = [
            np.searchsorted(-found.scores[query], -own[slice(*items.offsets[query : query + 2])])
            for query in range(len(items))
        ]
        pairs = {
            name: np.zeros(rows.shape, np.float32) for name in (RETRIEVAL_SCORE, RETRIEVAL_RANK)
        }
        pairs[RETRIEVAL_SCORE][owners, places] = own
        pairs[RETRIEVAL_RANK][owners, places] = 1 + np.concatenate(before)
        scores = score_candidates(ranker, queries, recommender.items.columns, rows, pairs)
        return np.asarray(scores[owners, places])

    def auc_by_query(self, scores: Array) -> npt.NDArray[np.float64]:
        """AUC within each query (Q,) of scores (S,); NaN where not some are taken and some not."""
        found = np.full(len(self.items), np.nan)
        if len(scores):
            of_some = auc_by_group(self.taken, scores, self.items.query_index)
            found[: len(of_some)] = of_some
        return found
