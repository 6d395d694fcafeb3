"""Which candidates must not stand against a query: its target and what else its user took.

Shapes: B queries, C candidates, P pairs of a query and a known positive.
"""

from __future__ import annotations

import torch
from torch import Tensor


def known_positive_mask(
    pool_rows: Tensor, target_rows: Tensor, known_queries: Tensor, known_rows: Tensor
) -> Tensor:
    """Mark the candidates that are positives of a query.

    Sorts the candidates and looks the P + B positives up, O((P + C) log C + B C); no step waits
    for the device.

    Args:
        pool_rows: Item rows of the candidates, ``(C,)`` int64; an item may be there repeatedly.
        target_rows: Item row of every query's target, ``(B,)`` int64.
        known_queries: Index in 0..B-1 of the query that a known positive belongs to, ``(P,)``.
        known_rows: Item rows of the known positives, ``(P,)``; in any order, repeats allowed.

    Returns:
        ``(B, C)`` bool, True where the candidate is the target or a known positive.
    """
    num_queries, num_candidates = target_rows.numel(), pool_rows.numel()
    device = target_rows.device
    queries = torch.cat([known_queries, torch.arange(num_queries, device=device)])  # (P + B,)
    rows = torch.cat([known_rows, target_rows])  # (P + B,)
    if num_candidates == 0:
        return torch.zeros(num_queries, 0, dtype=torch.bool, device=device)
    ordered = pool_rows.sort().values  # (C,)
    # An item is represented by the first place at which it stands among the sorted candidates.
    place = torch.searchsorted(ordered, rows).clamp(max=num_candidates - 1)  # (P + B,)
    nowhere = num_candidates
    place = torch.where(ordered[place] == rows, place, nowhere)
    marked = torch.zeros(num_queries, num_candidates + 1, dtype=torch.bool, device=device)
    marked[queries, place] = True
    return marked.index_select(1, torch.searchsorted(ordered, pool_rows))  # (B, C)
