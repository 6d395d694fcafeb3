"""What the lists do to the catalogue: how much of it they show, how obvious they are.

- coverage: share of the catalogue that stands in at least one list.
- novelty: mean of -log2 p(item) over a list, ``p`` the item's share of the training interactions
  (self-information; Zhou et al., "Solving the apparent diversity-accuracy dilemma of recommender
  systems", PNAS 2010).
- popularity lift: mean popularity of a list over that of the items the user chose, less one
  (Abdollahpouri et al., "The unfairness of popularity bias in recommendation", 2019, by user).
- popularity deciles: ten groups of equally many items, the least popular first.
- concentration: Gini coefficient of how often items are shown, and the share that the most shown
  ones have.

Letters: ``Q`` queries, ``K`` columns of a ranked list, ``N`` items.
"""

from __future__ import annotations

import numpy as np

from twotower.metrics.top_k import NO_ITEM, FloatArray, IntArray, Relevant

NUM_DECILES = 10


def catalogue_coverage(ranked: IntArray, num_items: int) -> float:
    """Share of the catalogue that stands in at least one list.

    Args:
        ranked: (Q, K) item rows, padded with -1.
        num_items: ``N``.

    Raises:
        ValueError: When a row lies outside the catalogue or the catalogue is empty.
    """
    if num_items < 1:
        raise ValueError(f"num_items must be at least 1, got {num_items}")
    _check_rows("ranked", ranked, num_items)
    shown = np.zeros(num_items, bool)
    shown[ranked[ranked != NO_ITEM]] = True
    return float(shown.mean())


def novelty(ranked: IntArray, item_counts: IntArray) -> FloatArray:
    """Mean information of the items of each list, in bits.

    One is added to every count, so that an item never seen in training has a finite value.

    Args:
        ranked: (Q, K) item rows, padded with -1.
        item_counts: (N,) training interactions of each item.

    Returns:
        (Q,); NaN for an empty list.

    Raises:
        ValueError: When a row lies outside the catalogue or a count is negative.
    """
    _check_counts(ranked, item_counts)
    counts = item_counts + 1.0
    return _list_means(ranked, -np.log2(counts / counts.sum()))


def popularity_lift(ranked: IntArray, chosen: Relevant, item_counts: IntArray) -> FloatArray:
    """By how much more popular a list is than what its user chose; 0 is as popular.

    Args:
        ranked: (Q, K) item rows, padded with -1.
        chosen: Items that the user of each query chose: its history, or the relevant items.
        item_counts: (N,) training interactions of each item.

    Returns:
        (Q,), at least -1; NaN where the list or the choice is empty, or no chosen item has a count.

    Raises:
        ValueError: When the arguments do not fit together, a row lies outside the catalogue, or a
            count is negative.
    """
    _check_counts(ranked, item_counts)
    _check_rows("chosen", chosen.item_rows, len(item_counts))
    if len(ranked) != len(chosen):
        raise ValueError(
            f"ranked and chosen must have the same queries, got {len(ranked)} and {len(chosen)}"
        )
    popularity = item_counts.astype(np.float64)
    totals = np.bincount(chosen.query_index, popularity[chosen.item_rows], len(ranked))
    usual = _ratio(totals.astype(np.float64), chosen.counts)
    return _ratio(_list_means(ranked, popularity), usual) - 1


def popularity_deciles(item_counts: IntArray) -> IntArray:
    """The decile (N,) of every item by its count (N,): 0 the least popular tenth, 9 the most.

    Groups differ by one item at most; of equal counts the later item counts as more popular.

    >>> popularity_deciles(np.array([7, 0, 3, 3, 9])).tolist()
    [6, 0, 2, 4, 8]
    """
    deciles = np.empty(len(item_counts), np.int64)
    order = np.argsort(item_counts, kind="stable")
    deciles[order] = np.arange(len(item_counts)) * NUM_DECILES // max(len(item_counts), 1)
    return deciles


def gini(counts: IntArray) -> float:
    """Gini coefficient of counts (N,): 0 when all are the same, near 1 when one has all.

    >>> gini(np.array([5, 5, 5])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ordered = np.sort(counts).astype(np.float64)
    total = ordered.sum()
    if not total:
        return 0.0
    places = np.arange(1, len(ordered) + 1)
    return float(
        2 * (places @ ordered) / (len(ordered) * total) - (len(ordered) + 1) / len(ordered)
    )


def top_share(counts: IntArray, share: float = 0.01) -> float:
    """Share of all that the largest counts (N,) have, of a share of the items, at least one."""
    most = np.sort(counts)[::-1][: max(1, round(share * len(counts)))]
    return float(most.sum() / max(counts.sum(), 1))


def _list_means(ranked: IntArray, values: FloatArray) -> FloatArray:
    """Mean (Q,) of the values (N,) of each list's items."""
    kept = ranked != NO_ITEM
    return _ratio((values[ranked] * kept).sum(axis=1), kept.sum(axis=1))


def _ratio(numerator: FloatArray, denominator: IntArray | FloatArray) -> FloatArray:
    """Quotient (Q,), NaN where the denominator is zero."""
    quotient = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


def _check_counts(ranked: IntArray, item_counts: IntArray) -> None:
    if item_counts.ndim != 1 or bool((item_counts < 0).any()):
        raise ValueError(
            "item_counts must have shape (N,) and be at least 0, got "
            f"{np.array2string(item_counts, threshold=6)}"
        )
    _check_rows("ranked", ranked, len(item_counts))


def _check_rows(name: str, rows: IntArray, num_items: int) -> None:
    if rows.size and (rows.min() < NO_ITEM or rows.max() >= num_items):
        raise ValueError(
            f"{name} must hold item rows 0..{num_items - 1}, or -1 as padding, got "
            f"{rows.min()}..{rows.max()}"
        )
