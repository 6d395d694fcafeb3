"""Top-k metrics on ranked lists of item rows.

Metrics look at ranked rows and never at scores, so negative scores and score ties cannot matter.
With ``h_i`` = 1 where the item at place ``i`` is relevant and ``R`` the number of relevant items:

- hit_rate@k = 1 if any h_i, i <= k
- recall@k = sum_{i<=k} h_i / R
- precision@k = sum_{i<=k} h_i / k, also when the list is shorter than k
- ndcg@k = sum_{i<=k} h_i / log2(i + 1), divided by its largest value, that of min(k, R) hits on top
  (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002; binary gain)
- mrr@k = 1 / place of the first hit among the first k, 0 without one
- map@k = sum_{i<=k} h_i precision@i / min(k, R)

Letters: ``Q`` queries, ``K`` columns of a ranked list, ``R`` relevant (query, item) pairs in all,
``B`` queries of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.item_lists import ItemLists

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float64]

NO_ITEM = -1
# Places of the lists looked at together: a few temporary arrays of 32 MB.
BLOCK_PLACES = 2**22


@dataclass(frozen=True, kw_only=True)
class Relevant(ItemLists):
    """The items that a good list contains, by query; item rows rise strictly within a query.

    Raises:
        ValueError: When the offsets do not describe the item rows, or these do not rise strictly.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        same_query = np.diff(self.query_index) == 0
        rising = np.diff(self.item_rows.astype(np.int64)) > 0
        if bool((same_query & ~rising).any()) or bool((self.item_rows < 0).any()):
            raise ValueError(
                "relevant: `item_rows` must be at least 0 and rise strictly within a query, got "
                f"{np.array2string(self.item_rows, threshold=6)}; `Relevant.from_pairs` sorts and "
                "drops duplicates"
            )

    @classmethod
    def from_pairs(cls, query_index: IntArray, item_rows: IntArray, num_queries: int) -> Relevant:
        """Collect (query, item) pairs in any order; a pair named twice counts once.

        Args:
            query_index: (P,) queries 0..num_queries - 1.
            item_rows: (P,) item rows.
            num_queries: ``Q``; queries without a pair have no relevant items.

        Raises:
            ValueError: When the arrays differ in length or hold values out of range.
        """
        queries, rows = np.asarray(query_index, np.int64), np.asarray(item_rows, np.int64)
        if queries.shape != rows.shape or queries.ndim != 1:
            raise ValueError(
                "relevant: `query_index` and `item_rows` must have the same shape (P,), got "
                f"{queries.shape} and {rows.shape}"
            )
        if len(queries) and (queries.min() < 0 or queries.max() >= num_queries):
            raise ValueError(
                f"relevant: `query_index` must be 0..{num_queries - 1}, got "
                f"{queries.min()}..{queries.max()}"
            )
        order = np.lexsort((rows, queries))
        queries, rows = queries[order], rows[order]
        first = np.ones(len(rows), bool)
        first[1:] = (np.diff(queries) != 0) | (np.diff(rows) != 0)
        counts = np.bincount(queries[first], minlength=num_queries)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(offsets=offsets, item_rows=rows[first])

    @classmethod
    def of(cls, lists: ItemLists) -> Relevant:
        """Lists that already rise strictly."""
        return cls(offsets=lists.offsets, item_rows=lists.item_rows)


def top_k_metrics(ranked: IntArray, relevant: Relevant, ks: Sequence[int]) -> dict[str, FloatArray]:
    """All metrics of this module, by query.

    Args:
        ranked: (Q, K) item rows, best first; lists shorter than ``K`` end in -1.
        relevant: The relevant items of the same queries.
        ks: List lengths, each 1..K.

    Returns:
        Arrays (Q,) by name, such as ``recall@20``; NaN where a query has no relevant items, as no
        list could be right.

    Raises:
        ValueError: When the arguments do not fit together, an item stands twice in a list, or
            something follows the padding.
    """
    _check(ranked, relevant)
    num_queries, width = ranked.shape
    if not ks or min(ks) < 1 or max(ks) > width:
        raise ValueError(f"ks must be at least 1 and at most {width}, the columns, got {list(ks)}")
    metrics = {name: np.full(num_queries, np.nan) for name in metric_names(ks)}
    for start, stop in _blocks(num_queries, width):
        hits = _match(ranked, relevant, start, stop)[0]
        _fill(metrics, slice(start, stop), hits, relevant.counts[start:stop], ks)
    return metrics


def metrics_of_ranks(
    ranks: IntArray, relevant: Relevant, ks: Sequence[int]
) -> dict[str, FloatArray]:
    """All metrics of this module, by query, where the lists were never made.

    Args:
        ranks: (R,) how many items stand before each relevant item, in the order of
            `relevant.item_rows`; different for those of one query.
        relevant: The relevant items.
        ks: List lengths, each at least 1.

    Returns:
        What `top_k_metrics` gives for lists with the items at these places.

    Raises:
        ValueError: When the arguments do not fit together.
    """
    if ranks.shape != relevant.item_rows.shape:
        raise ValueError(
            f"ranks must have shape {relevant.item_rows.shape}, one of every relevant item, got "
            f"{ranks.shape}"
        )
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be at least 1, got {list(ks)}")
    num_queries, width = len(relevant), max(ks)
    metrics = {name: np.full(num_queries, np.nan) for name in metric_names(ks)}
    for start, stop in _blocks(num_queries, width):
        first, last = relevant.offsets[start], relevant.offsets[stop]
        counts = relevant.counts[start:stop]
        owners = np.repeat(np.arange(stop - start), counts)
        places = ranks[first:last]
        hits = np.zeros((stop - start, width), bool)  # (B, K)
        inside = places < width
        hits[owners[inside], places[inside]] = True
        _fill(metrics, slice(start, stop), hits, counts, ks)
    return metrics


def metric_names(ks: Sequence[int]) -> list[str]:
    """Names of all metrics of this module for lists of some lengths.

    Example:
        >>> metric_names([10])
        ['recall@10', 'precision@10', 'hit_rate@10', 'ndcg@10', 'mrr@10', 'map@10']
    """
    names = ("recall", "precision", "hit_rate", "ndcg", "mrr", "map")
    return [f"{name}@{k}" for k in ks for name in names]


def mean_over_queries(metrics: Mapping[str, FloatArray]) -> dict[str, float]:
    """Means over the queries that have relevant items.

    Args:
        metrics: Arrays (Q,) by name, NaN where a query does not count.

    Raises:
        ValueError: When no query counts.
    """
    empty = [name for name, values in metrics.items() if bool(np.isnan(values).all())]
    if empty:
        raise ValueError(
            f"no query has relevant items, so {', '.join(empty)} cannot be averaged; at least one "
            "query must have one"
        )
    return {name: float(np.nanmean(values)) for name, values in metrics.items()}


def contains(ranked: IntArray, relevant: Relevant) -> NDArray[np.bool_]:
    """Which relevant items stand in the list of their query.

    Args:
        ranked: (Q, K) item rows; lists shorter than ``K`` end in -1.
        relevant: The relevant items of the same queries.

    Returns:
        (R,) bool, in the order of `relevant.item_rows`.

    Raises:
        ValueError: As `top_k_metrics`.
    """
    _check(ranked, relevant)
    found = np.zeros(len(relevant.item_rows), bool)
    for start, stop in _blocks(*ranked.shape):
        hits, places = _match(ranked, relevant, start, stop)
        found[places[hits]] = True
    return found


def _metrics_at(hits: NDArray[np.bool_], counts: IntArray, k: int) -> dict[str, FloatArray]:
    """Metrics (B,) of hits (B, K) for queries with counts (B,) > 0 relevant items."""
    top = hits[:, :k]  # (B, k)
    place = np.arange(1, k + 1)
    discount = 1 / np.log2(place + 1)
    num_hits = top.cumsum(axis=1)  # (B, k)
    found = num_hits[:, -1]
    reachable = np.minimum(counts, k)
    return {
        "recall": found / counts,
        "precision": found / k,
        "hit_rate": (found > 0).astype(np.float64),
        "ndcg": top @ discount / discount.cumsum()[reachable - 1],
        "mrr": np.where(found > 0, 1 / (top.argmax(axis=1) + 1), 0.0),
        "map": (top * num_hits / place).sum(axis=1) / reachable,
    }


def _fill(
    metrics: Mapping[str, FloatArray],
    block: slice,
    hits: NDArray[np.bool_],
    counts: IntArray,
    ks: Sequence[int],
) -> None:
    """Put the metrics of a block of queries, with hits (B, K), where they belong."""
    asked = counts > 0
    for k in ks:
        for name, values in _metrics_at(hits[asked], counts[asked], k).items():
            metrics[f"{name}@{k}"][block][asked] = values


def _blocks(num_queries: int, width: int) -> list[tuple[int, int]]:
    """(start, stop) of blocks of queries with lists of a width."""
    size = max(BLOCK_PLACES // max(width, 1), 1)
    return [(start, min(start + size, num_queries)) for start in range(0, num_queries, size)]


def _match(
    ranked: IntArray, relevant: Relevant, start: int, stop: int
) -> tuple[NDArray[np.bool_], IntArray]:
    """Hits (B, K), and where they are: positions (B, K) in `relevant.item_rows`."""
    block = ranked[start:stop].astype(np.int64)
    _check_lists(block, start)
    first, last = relevant.offsets[start], relevant.offsets[stop]
    rows = relevant.item_rows[first:last].astype(np.int64)
    owner = np.repeat(np.arange(stop - start), relevant.counts[start:stop])
    span = max(int(block.max(initial=0)), int(rows.max(initial=0))) + 1
    wanted = owner * span + rows  # sorted, as rows rise within a query
    keys = np.arange(stop - start)[:, None] * span + block  # (B, K)
    places = np.searchsorted(wanted, keys)  # (B, K)
    ends = np.append(wanted, -1)
    return (ends[places] == keys) & (block != NO_ITEM), places + first


def _check(ranked: IntArray, relevant: Relevant) -> None:
    if ranked.ndim != 2 or not np.issubdtype(ranked.dtype, np.integer):
        raise ValueError(
            f"ranked must be integers of shape (Q, K), got {ranked.dtype} of shape {ranked.shape}"
        )
    if len(ranked) != len(relevant):
        raise ValueError(
            f"ranked and relevant must have the same queries, got {len(ranked)} and {len(relevant)}"
        )


def _check_lists(block: NDArray[np.int64], start: int) -> None:
    """Refuse lists with an item named twice, rows below -1, or items after the padding."""
    ordered = np.sort(block, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ITEM)).any(axis=1)
    after = ((block[:, :-1] == NO_ITEM) & (block[:, 1:] != NO_ITEM)).any(axis=1)
    below = (block < NO_ITEM).any(axis=1)
    problems = [
        f"ranked: {what} in {wrong.sum()} lists, first in queries "
        f"{np.flatnonzero(wrong)[:5] + start}; {allowed}"
        for wrong, what, allowed in (
            (twice, "an item stands twice", "a list names an item once"),
            (after, "an item follows the padding", "-1 may stand at the end only"),
            (below, "rows below -1", "item rows are at least 0, and -1 is padding"),
        )
        if bool(wrong.any())
    ]
    if problems:
        raise ValueError("\n".join(problems))
