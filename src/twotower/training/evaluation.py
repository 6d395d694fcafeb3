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
from twotower.index.exact import exact_ranks, exact_search
from twotower.losses.ranks import OneRank, Ranks, blocks_of_share, share
from twotower.metrics.top_k import Relevant, mean_over_queries, metrics_of_ranks, top_k_metrics
from twotower.models.two_tower import TwoTower
from twotower.training.retrieval import embed_catalogue
from twotower.training.task import evaluating

Array = npt.NDArray[Any]

QUERY_BLOCK = 1024
# Right answers a query, on average, up to which they are counted sooner than lists are made.
MOST_TARGETS = 4
HISTORY_BLOCK = 2**18  # events of histories that are embedded at a time


def query_batch(columns: Columns, queries: Queries, chosen: Array, length: int) -> Batch:
    """Features of some evaluation queries: user, context, and the history at the cut.

    Args:
        columns: Where features come from.
        queries: All queries.
        chosen: (B,) those that are asked for.
        length: Events of the history.
    """

    def tensor(values: Array) -> Tensor:
        return torch.from_numpy(np.asarray(values[chosen])).to(columns.device)

    users = tensor(queries.user_rows)
    history = columns.history(users, tensor(queries.history_end), length)
    return columns.context(tensor(queries.interactions)) | columns.users(users) | history


@torch.no_grad()
def embed_queries(
    model: TwoTower, columns: Columns, queries: Queries, ranks: Ranks | None = None
) -> Tensor:
    """Vectors (Q, D) of evaluation queries, float32, in blocks.

    Of several processes each embeds its share, and has only those.

    Where the model allows it, histories of similar length are embedded together, without the
    padding that the longest of all would need.
    """
    ranks, num_queries = ranks or OneRank(), len(queries)
    part = share(ranks, num_queries)
    queries = queries.between(part.start, part.stop)
    longest = columns.names.history_length
    lengths = np.full(len(queries), longest)
    if model.any_length:
        lengths = np.clip(queries.seen.counts, 1, longest)
    order = np.argsort(lengths, kind="stable")
    size = min(QUERY_BLOCK, max(1, HISTORY_BLOCK // max(1, longest)))
    with evaluating(model):
        parts = [
            model.embed_queries(
                query_batch(columns, queries, order[block], _longest(lengths[order[block]]))
            ).float()
            for block in blocks_of_share(ranks, num_queries, size)
        ]
    back = torch.from_numpy(np.argsort(order)).to(columns.device)
    return torch.cat(parts)[back]


def _longest(lengths: Array) -> int:
    """Of a block, which may be empty where there are more processes than queries."""
    return int(lengths.max(initial=1))


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
    ranks: Ranks | None = None,
) -> Array:
    """The exact top `k` of the catalogue for every query.

    Of several processes each ranks for a share of the queries, and all get all; all must call it.

    Returns:
        Item rows (Q, k) int64, best first, padded with -1.
    """
    ranks = ranks or OneRank()
    own, items, vectors = _embedded(model, columns, queries, num_catalogue, ranks)
    found = np.zeros((0, k), np.int64)
    if len(own):
        left_out = excluded(own, remove_seen=remove_seen, num_catalogue=num_catalogue)
        found = exact_search(vectors, items, k, left_out).rows
    return ranks.gather(torch.from_numpy(found)).numpy()


def catalogue_metrics(
    model: TwoTower,
    columns: Columns,
    queries: Queries,
    ks: Sequence[int],
    *,
    num_catalogue: int,
    remove_seen: bool,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Means over queries of all top-k metrics on the whole catalogue, exactly, without lists.

    The items that stand before a right answer are counted; where queries have many right answers,
    lists are made after all, as `rank_catalogue` does. Of several processes each looks at a share
    of the queries, and all get the means over all; all must call it.
    """
    if len(queries.truth.item_rows) > MOST_TARGETS * len(queries):
        ranked = rank_catalogue(
            model,
            columns,
            queries,
            num_catalogue=num_catalogue,
            k=max(ks),
            remove_seen=remove_seen,
            ranks=ranks,
        )
        return mean_metrics(ranked, queries, ks)
    ranks = ranks or OneRank()
    own, items, vectors = _embedded(model, columns, queries, num_catalogue, ranks)
    places = np.zeros(0, np.int64)
    if len(own):
        left_out = excluded(own, remove_seen=remove_seen, num_catalogue=num_catalogue)
        reachable = own.truth.item_rows < num_catalogue
        places = np.full(len(reachable), num_catalogue)
        places[reachable] = exact_ranks(vectors, items, own.truth.where(reachable), left_out)
        places[places >= num_catalogue] = max(num_catalogue, *ks)  # no list is that long
    of_all = ranks.gather(torch.from_numpy(places)).numpy()  # (R,)
    return mean_over_queries(metrics_of_ranks(of_all, relevant(queries), ks))


def _embedded(
    model: TwoTower, columns: Columns, queries: Queries, num_catalogue: int, ranks: Ranks
) -> tuple[Queries, Tensor, Tensor]:
    """A process's share of the queries, vectors of all items (C, D), and of the share (Q, D)."""
    items = embed_catalogue(model, columns, num_catalogue, ranks=ranks)  # (C, D)
    part = share(ranks, len(queries))
    vectors = embed_queries(model, columns, queries, ranks) if len(queries) else items[:0]
    return queries.between(part.start, part.stop), items, vectors


def mean_metrics(ranked: Array, queries: Queries, ks: Sequence[int]) -> dict[str, float]:
    """Means over queries of all top-k metrics of lists (Q, K)."""
    return mean_over_queries(top_k_metrics(ranked, relevant(queries), ks))
