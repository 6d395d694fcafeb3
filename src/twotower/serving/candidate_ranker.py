"""Candidates in the order of the ranker, screened first where the bundle has what screens.

Shape letters: Q queries, K candidates, F finalists, k items shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.schema import RETRIEVAL_RANK, RETRIEVAL_SCORE
from twotower.export.screening import best, finalists, num_finalists
from twotower.index.base import SearchResult
from twotower.serving.models import OnnxModel, score_candidates

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What the ranker makes of candidates.

    Args:
        probabilities: (Q, K), NaN where padded; where candidates were screened, those that are no
            finalists have the estimate that they were screened by.
        places: (Q, k) places of the best among the candidates, best first.
    """

    probabilities: Array
    places: npt.NDArray[np.int64]


class CandidateRanker:
    """Scores and orders candidates.

    Args:
        ranker: The ranker.
        screen: What screens candidates for it, or None.
        num_threads: Threads that a model uses in one call; 0 for one a core.
    """

    def __init__(self, ranker: Path, screen: Path | None, *, num_threads: int = 0) -> None:
        self.model = OnnxModel(ranker, num_threads=num_threads)
        self._screen = None if screen is None else OnnxModel(screen, num_threads=num_threads)

    def rank(
        self,
        queries: Mapping[str, Array],
        item_columns: Mapping[str, Array],
        found: SearchResult,
        k: int,
    ) -> Ranking:
        """Order the candidates of some queries.

        Args:
            queries: Encoded query columns, (Q, ...) each.
            item_columns: Encoded item columns, (C, ...) each.
            found: The candidates (Q, K).
            k: How many are shown.
        """
        ranks = np.arange(1, found.rows.shape[1] + 1, dtype=np.float32)
        pairs = {
            RETRIEVAL_SCORE: found.scores,
            RETRIEVAL_RANK: np.broadcast_to(ranks, found.rows.shape),
        }
        if self._screen is None or found.rows.shape[1] <= num_finalists(k):
            scores = score_candidates(self.model, queries, item_columns, found.rows, pairs)
            return Ranking(probabilities=scores, places=best(scores, k))
        scores = score_candidates(self._screen, queries, item_columns, found.rows, pairs)
        passed = finalists(scores, k)  # (Q, F)
        rows = np.take_along_axis(found.rows, passed, axis=1)
        pairs = {name: np.take_along_axis(v, passed, axis=1) for name, v in pairs.items()}
        exact = score_candidates(self.model, queries, item_columns, rows, pairs)
        np.put_along_axis(scores, passed, exact, axis=1)
        places = np.take_along_axis(passed, best(exact, k), axis=1)
        return Ranking(probabilities=scores, places=places)
