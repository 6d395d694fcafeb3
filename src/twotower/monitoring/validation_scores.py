"""Scores of a bundle's ranker on rows of the validation part: what is normal when it is new.

Shape letters: S rows that are scored, Q of a block, N items, D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.prepared import Prepared
from twotower.data.schema import RETRIEVAL_RANK, RETRIEVAL_SCORE, VALIDATION
from twotower.export import manifest as names
from twotower.features.pipeline import FeaturePipeline
from twotower.serving.models import OnnxModel, score_candidates
from twotower.serving.queries import Columns, history_columns

Array = npt.NDArray[Any]

MAX_SCORED = 20_000
BLOCK = 4096
PLACES_OF_A_BLOCK = 1 << 24  # scores of all items that are held at once: 64 MB
SEED = 20_260


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of a model on some rows.

    Args:
        rows: (S,) rows of the interactions, ascending.
        scores: (S,) float32.
    """

    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


def score_validation(
    folder: Path, prepared: Prepared, pipeline: FeaturePipeline, max_rows: int = MAX_SCORED
) -> Scored | None:
    """Score rows of the validation part, drawn with a fixed seed; None without a ranker.

    Args:
        folder: Of the bundle, whose models are written.
        prepared: The data set, with the events of the catalogue alone.
        pipeline: Its features.
        max_rows: Of at most so many rows.
    """
    if not (folder / names.RANKER).is_file():
        return None
    log = prepared.interactions
    inside = np.asarray(log.split) == VALIDATION
    if log.item_rows is not None:
        inside &= np.asarray(log.item_rows) < prepared.num_catalogue
    rows = np.flatnonzero(inside)
    if len(rows) > max_rows:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, max_rows, replace=False))
    scorer = _Scorer(folder, prepared, pipeline)
    blocks = [scorer.scores(rows[start : start + BLOCK]) for start in range(0, len(rows), BLOCK)]
    return Scored(rows=rows, scores=np.concatenate([np.empty(0, np.float32), *blocks]))


class _Scorer:
    def __init__(self, folder: Path, prepared: Prepared, pipeline: FeaturePipeline) -> None:
        self._prepared = prepared
        self._history = pipeline.spec.history
        self._ranker = OnnxModel(folder / names.RANKER)
        self._tower: OnnxModel | None = None
        if {RETRIEVAL_SCORE, RETRIEVAL_RANK} & self._ranker.inputs.keys():
            self._tower = OnnxModel(folder / names.QUERY_TOWER)
            self._vectors: Array = np.load(folder / names.ITEM_VECTORS, mmap_mode="r")

    def scores(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Probabilities (Q,) of some rows."""
        log, items = self._prepared.interactions, self._prepared.items
        queries = self._queries(rows)
        shown = np.zeros((len(rows), 1), np.int64)  # of no meaning in a flat click table
        columns: Columns = {}
        if items is not None and log.item_rows is not None:
            shown = np.asarray(log.item_rows[rows], np.int64)[:, None]
            columns = dict(items.columns)
        pairs = {} if self._tower is None else self._retrieval(self._tower, queries, shown)
        found = score_candidates(self._ranker, queries, columns, shown, pairs)
        return np.asarray(found[:, 0], np.float32)

    def _queries(self, rows: npt.NDArray[np.int64]) -> Columns:
        prepared = self._prepared
        log, events = prepared.interactions, prepared.events
        queries: Columns = {name: np.asarray(c[rows]) for name, c in log.context.items()}
        if log.user_rows is None or prepared.users is None:
            return queries
        users = np.asarray(log.user_rows[rows], np.int64)
        queries |= {name: np.asarray(c[users]) for name, c in prepared.users.columns.items()}
        if events is None or prepared.items is None:
            return queries
        return queries | history_columns(
            events.item_rows,
            prepared.event_times,
            np.asarray(events.offsets[users], np.int64),
            np.asarray(log.history_end[rows], np.int64),
            prepared.items.columns,
            self._history.features,
            self._history.length,
        )

    def _retrieval(
        self, tower: OnnxModel, queries: Columns, shown: npt.NDArray[np.int64]
    ) -> Columns:
        """What the retrieval says of the item (Q, 1) that was shown: its score and rank."""
        vectors = np.asarray(tower.run(queries), np.float32)  # (Q, D)
        scores = np.einsum("qd,qd->q", vectors, self._vectors[shown[:, 0]])  # (Q,)
        pairs: Columns = {RETRIEVAL_SCORE: scores.astype(np.float32)[:, None]}
        if RETRIEVAL_RANK not in self._ranker.inputs:
            return pairs
        ranks = np.empty(len(scores), np.float32)
        size = max(1, PLACES_OF_A_BLOCK // len(self._vectors))
        for start in range(0, len(scores), size):
            block = slice(start, start + size)
            every = vectors[block] @ self._vectors.T  # (q, N)
            ranks[block] = 1 + np.count_nonzero(every > scores[block, None], axis=1)
        return pairs | {RETRIEVAL_RANK: ranks[:, None]}
