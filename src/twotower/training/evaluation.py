"""What validation and test look at: the whole catalogue ranked for every query, exactly.

Shape letters: Q queries, C items that may be recommended, D width of the vectors, K list length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.batches import Batch, Columns
from twotower.data.item_lists import ItemLists
from twotower.data.queries import Queries
from twotower.index.exact import exact_search
from twotower.metrics.top_k import Relevant, mean_over_queries, top_k_metrics
from twotower.models.two_tower import TwoTower
from twotower.training.retrieval import embed_catalogue
from twotower.training.task import evaluating

Array = npt.NDArray[Any]

QUERY_BLOCK = 4096
HISTORY_BLOCK = 2**18  # events of histories that are embedded at a time


def query_batch(columns: Columns, queries: Queries, start: int, stop: int) -> Batch:
    """Features of some evaluation queries: user, context, and the history at the cut."""
    rows = torch.from_numpy(queries.interactions[start:stop]).to(columns.device)
    user_rows = torch.from_numpy(np.asarray(queries.user_rows[start:stop])).to(columns.device)
    ends = torch.from_numpy(np.asarray(queries.history_end[start:stop])).to(columns.device)
    users, history = columns.users(user_rows), columns.history(user_rows, ends)
    return columns.context(rows) | users | history


@torch.no_grad()
def embed_queries(model: TwoTower, columns: Columns, queries: Queries) -> Tensor:
    """Vectors (Q, D) of evaluation queries, float32, in blocks."""
    with evaluating(model):
        size = min(QUERY_BLOCK, max(1, HISTORY_BLOCK // max(1, columns.names.history_length)))
        blocks = (
            query_batch(columns, queries, start, start + size)
            for start in range(0, len(queries), size)
        )
        return torch.cat([model.embed_queries(block).float() for block in blocks])


def relevant(queries: Queries) -> Relevant:
    """The truth of evaluation queries in the form that metrics take."""
    return Relevant.of(queries.truth)


def excluded(queries: Queries, *, remove_seen: bool, num_catalogue: int) -> ItemLists | None:
    """The seen items of evaluation queries that could be recommended, or None when they may be."""
    if not remove_seen:
        return None
    return queries.seen.below(num_catalogue)


def rank_catalogue(
    model: TwoTower,
    columns: Columns,
    queries: Queries,
    *,
    num_catalogue: int,
    k: int,
    remove_seen: bool,
) -> Array:
    """The exact top `k` of the catalogue for every query.

    Returns:
        Item rows (Q, k) int64, best first, padded with -1.
    """
    items = embed_catalogue(model, columns, num_catalogue)  # (C, D)
    vectors = embed_queries(model, columns, queries)  # (Q, D)
    left_out = excluded(queries, remove_seen=remove_seen, num_catalogue=num_catalogue)
    return exact_search(vectors, items, k, left_out).rows


def mean_metrics(ranked: Array, queries: Queries, ks: Sequence[int]) -> dict[str, float]:
    """Means over queries of all top-k metrics."""
    return mean_over_queries(top_k_metrics(ranked, relevant(queries), ks))
