"""Popularity and item-kNN on the split and queries of a run: what a learned retriever has to beat.

They are fitted on everything before the evaluated part, the validation part included, which is more
than the models are trained on; see `twotower.models.baselines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.prepared import Prepared, history_before
from twotower.data.queries import Queries, slices
from twotower.models.baselines import ItemKNN, ItemLists, Popularity
from twotower.training.evaluation import excluded

POPULARITY, ITEM_KNN = "popularity", "item_knn"


def rank_baselines(
    prepared: Prepared, queries: Queries, *, k: int, remove_seen: bool, num_neighbours: int = 100
) -> Mapping[str, npt.NDArray[Any]]:
    """Lists (Q, k) of both baselines by name, item rows padded with -1.

    Args:
        prepared: The data set.
        queries: Evaluation queries.
        k: Length of the lists.
        remove_seen: Whether seen items are kept out.
        num_neighbours: Of item-kNN.
    """
    events, _, _ = prepared.require_events()
    num_items = prepared.num_catalogue
    starts, ends = events.offsets[:-1], history_before(prepared, queries.part)
    offsets, item_rows = _catalogue_only(*slices(events.item_rows, starts, ends), num_items)
    histories = ItemLists(
        **dict(
            zip(
                ("offsets", "item_rows"),
                _catalogue_only(queries.seen_offsets, queries.seen_items, num_items),
                strict=True,
            )
        )
    )
    left_out = excluded(queries, remove_seen=remove_seen, num_catalogue=num_items)
    removed = None
    if left_out is not None:
        removed = ItemLists(offsets=left_out.offsets, item_rows=left_out.item_rows)
    lists = {}
    for name, model in (
        (POPULARITY, Popularity()),
        (ITEM_KNN, ItemKNN(num_neighbours=num_neighbours)),
    ):
        model.fit(offsets, item_rows, num_items)
        lists[name] = model.rank(histories, k, removed)
    return lists


def _catalogue_only(
    offsets: npt.NDArray[Any], item_rows: npt.NDArray[Any], num_items: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    kept = item_rows < num_items
    return np.concatenate([[0], np.cumsum(kept)])[offsets], item_rows[kept]
