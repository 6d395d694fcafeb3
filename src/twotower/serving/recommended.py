"""Item rows as recommendations: ids, titles, scores, and why.

Shape letters: K candidates, k items shown, E events of a history, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.index.base import NO_ITEM
from twotower.serving.catalogue import Catalogue
from twotower.serving.requests import Recommendation

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

LATEST_EVENTS = 100  # of a history that may be the reason


def recommended(
    items: Catalogue,
    rows: Rows,
    places: Array,
    scores: Array,
    probabilities: Array | None,
    events: Rows,
) -> list[Recommendation]:
    """The list of one request.

    Args:
        items: The catalogue.
        rows: (k,) item rows, best first, padded with -1.
        places: (k,) their place among the candidates.
        scores: (K,) of the candidates.
        probabilities: (K,) of the ranker, or None.
        events: (E,) item rows of the history.
    """
    rows, places = rows[rows != NO_ITEM], places[rows != NO_ITEM]
    return [
        Recommendation(
            item_id=items.ids[row].as_py(),
            title=items.title(row),
            probability=None if probabilities is None else float(probabilities[place]),
            retrieval_score=float(scores[place]),
            retrieval_rank=place + 1,
            reason=reason,
        )
        for row, place, reason in zip(
            rows.tolist(), places.tolist(), _reasons(items, rows, events), strict=True
        )
    ]


def popular(items: Catalogue, rows: Rows) -> list[Recommendation]:
    """The list of somebody of whom nothing is known.

    Args:
        items: The catalogue.
        rows: (k,) popular items, most popular first.
    """
    return [
        Recommendation(
            item_id=items.ids[row].as_py(),
            title=items.title(row),
            probability=None,
            retrieval_score=None,
            retrieval_rank=None,
            reason="popular: nothing is known of the user",
        )
        for row in rows.tolist()
    ]


def _reasons(items: Catalogue, rows: Rows, events: Rows) -> Sequence[str]:
    """For every item row (k,) the event of the history whose vector is most like the item's."""
    if not len(events):
        return ["fits the profile"] * len(rows)
    latest = events[-LATEST_EVENTS:]
    cosines = _unit(items.vectors[rows]) @ _unit(items.vectors[latest]).T  # (k, E)
    best = cosines.argmax(axis=1).tolist()
    return [
        f"like {items.title(int(latest[event]))} ({cosines[at, event]:.2f})"
        for at, event in enumerate(best)
    ]


def _unit(vectors: Array) -> Array:
    """Vectors (n, D) of length 1; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms == 0, 1, norms))
