"""Recall of cold items, which no training event was of, beside that of warm ones.

The lists are the same and hold both kinds of items; only the right answers are parted. So a cold
item has to stand against all warm ones, as it has where lists are served.

Letters: ``Q`` queries, ``K`` columns of a ranked list, ``R`` relevant (query, item) pairs in all,
``C`` items that may be recommended.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twotower.data.item_lists import ItemLists
from twotower.metrics.bootstrap import bootstrap_mean
from twotower.metrics.top_k import IntArray, Relevant, top_k_metrics


def cold_start(
    ranked: IntArray,
    relevant: ItemLists,
    item_counts: IntArray,
    ks: Sequence[int],
    *,
    num_resamples: int = 1000,
) -> dict[str, float]:
    """Recall of cold and of warm right answers, each over the queries that have any.

    Args:
        ranked: (Q, K) item rows, best first; lists shorter than ``K`` end in -1.
        relevant: The right answers, rising within a query.
        item_counts: (C,) training events of every item; an item from row ``C`` on has none, and is
            in no list.
        ks: List lengths, each 1..K.
        num_resamples: Bootstrap resamples behind every interval.

    Returns:
        For cold items ``cold_recall@<k>`` with the ends of its interval, the number of right
        answers ``cold_positives`` and of items in the catalogue ``cold_items``, and the same for
        warm ones; nothing at all where no right answer is cold.
    """
    known = np.append(item_counts, 0)  # (C + 1,)
    is_cold = known[np.minimum(relevant.item_rows, len(item_counts))] == 0  # (R,)
    figures: dict[str, float] = {}
    if not is_cold.any():
        return figures
    for name, kept, num_items in (
        ("cold", is_cold, (item_counts == 0).sum()),
        ("warm", ~is_cold, (item_counts > 0).sum()),
    ):
        figures[f"{name}_items"] = float(num_items)
        figures[f"{name}_positives"] = float(kept.sum())
        if not kept.any():
            continue
        values = top_k_metrics(ranked, Relevant.of(relevant.where(kept)), ks)
        for k in ks:
            interval = bootstrap_mean(values[f"recall@{k}"], num_resamples=num_resamples)
            figures |= interval.entries(f"{name}_recall@{k}")
    return figures
