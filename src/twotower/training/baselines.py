"""Popularity and item-kNN on the split and queries of a run: what a learned retriever has to beat.

They are fitted on everything before the evaluated part, the validation part included, which is more
than the models are trained on; see `twotower.models.baselines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from twotower.data.item_lists import ItemLists
from twotower.data.prepared import Prepared, history_before
from twotower.data.queries import Queries
from twotower.models.baselines import ItemKNN, Popularity

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
    users = ItemLists.cut(events.item_rows, starts, ends).below(num_items)
    histories = queries.seen.below(num_items)
    removed = histories if remove_seen else None
    lists = {}
    for name, model in (
        (POPULARITY, Popularity()),
        (ITEM_KNN, ItemKNN(num_neighbours=num_neighbours)),
    ):
        model.fit(users, num_items)
        lists[name] = model.rank(histories, k, removed)
    return lists
