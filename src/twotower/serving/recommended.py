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
SHORTEST = 1e-30  # a vector of zeros stays one


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
    vectors = np.asarray(items.vectors[np.concatenate([rows, latest])])  # (k + E, D)
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    vectors = vectors / np.maximum(lengths, SHORTEST)[:, None]
    cosines = vectors[: len(rows)] @ vectors[len(rows) :].T  # (k, E)
    titles = [items.title(row) for row in latest[cosines.argmax(axis=1)].tolist()]
    return [
        f"like {title} ({cosine:.2f})"
        for title, cosine in zip(titles, cosines.max(axis=1).tolist(), strict=True)
    ]
