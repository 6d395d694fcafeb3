"""Which candidates must not stand against a query: its target and what else its user took.

Shapes: B queries, C candidates, P pairs of a query and a known positive.
"""

from __future__ import annotations

import torch
from torch import Tensor


def known_positive_mask(
    pool_rows: Tensor, target_rows: Tensor, known_queries: Tensor, known_rows: Tensor
) -> Tensor:
    """Mark the candidates that are the target of a query or another positive of it.

    Args:
        pool_rows: Item rows of the candidates, ``(C,)`` int64; an item may be there repeatedly.
        target_rows: Item row of every query's target, ``(B,)`` int64.
        known_queries: Index in 0..B-1 of the query that a known positive belongs to, ``(P,)``.
        known_rows: Item rows of the known positives, ``(P,)``; in any order, repeats allowed.

    Returns:
        ``(B, C)`` bool, True where the candidate is the target or a known positive.
    """
    own = torch.arange(target_rows.numel(), device=target_rows.device)  # (B,)
    queries = torch.cat([known_queries, own])  # (P + B,)
    rows = torch.cat([known_rows, target_rows])  # (P + B,)
    return positive_mask(pool_rows, queries, rows, target_rows.numel())


def positive_mask(pool_rows: Tensor, queries: Tensor, rows: Tensor, num_queries: int) -> Tensor:
    """Mark the candidates that stand in pairs of a query and an item.

    Sorts the candidates and looks the P pairs up, O((P + C) log C + B C); no step waits for the
    device.

    Args:
        pool_rows: Item rows of the candidates, ``(C,)`` int64; an item may be there repeatedly.
        queries: Query of every pair, an index in 0..B-1, ``(P,)``.
        rows: Item row of every pair, ``(P,)``; in any order, repeats allowed.
        num_queries: B.

    Returns:
        ``(B, C)`` bool.
    """
    num_candidates, device = pool_rows.numel(), pool_rows.device
    if num_candidates == 0:
        return torch.zeros(num_queries, 0, dtype=torch.bool, device=device)
    ordered = pool_rows.sort().values  # (C,)
    # An item is represented by the first place at which it stands among the sorted candidates.
    place = torch.searchsorted(ordered, rows).clamp(max=num_candidates - 1)  # (P,)
    nowhere = num_candidates
    place = torch.where(ordered[place] == rows, place, nowhere)
    marked = torch.zeros(num_queries, num_candidates + 1, dtype=torch.bool, device=device)
    marked[queries, place] = True
    return marked.index_select(1, torch.searchsorted(ordered, pool_rows))  # (B, C)
