"""Which candidates must not stand against a query: its target and what else its user took.

Shapes: B queries, C candidates, N items, U users, P pairs of a user and a known positive.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PositiveMask:
    """The positives of a batch, kept as pairs; matrices are made for the candidates asked for.

    Args:
        target_rows: Item row of every query's target, ``(B,)`` int64; None where all targets of
            a query are known positives.
        users: Index in 0..U-1 of the user of every query, ``(B,)``.
        num_users: U.
        known_users: User of every known positive, an index in 0..U-1, ``(P,)``.
        known_rows: Item rows of the known positives, ``(P,)``; in any order, repeats allowed.
        never: ``(N,)`` bool, items that stand against no query, or None.
    """

    target_rows: Tensor | None
    users: Tensor
    num_users: int
    known_users: Tensor
    known_rows: Tensor
    never: Tensor | None = None

    def of(self, pool_rows: Tensor) -> Tensor:
        """Mark the candidates that must not stand against each query.

        Args:
            pool_rows: Item rows of some candidates, ``(C,)`` int64; repeats allowed.

        Returns:
            ``(B, C)`` bool.
        """
        parts = []
        if self.target_rows is not None:
            parts.append(pool_rows == self.target_rows.unsqueeze(1))  # (B, C)
        if self.known_rows.numel():
            known = positive_mask(pool_rows, self.known_users, self.known_rows, self.num_users)
            parts.append(known.index_select(0, self.users))  # (U, C) to (B, C)
        if self.never is not None:
            parts.append(self.never[pool_rows].expand(len(self.users), -1))  # (B, C)
        return functools.reduce(torch.logical_or, parts)


def positive_mask(pool_rows: Tensor, owners: Tensor, rows: Tensor, num_owners: int) -> Tensor:
    """Mark the candidates that stand in pairs of an owner and an item.

    Sorts the candidates and looks the P pairs up, O((P + C) log C + U C); no step waits for the
    device.

    Args:
        pool_rows: Item rows of the candidates, ``(C,)`` int64; an item may be there repeatedly.
        owners: User or query of every pair, an index in 0..U-1, ``(P,)``.
        rows: Item row of every pair, ``(P,)``; in any order, repeats allowed.
        num_owners: U.

    Returns:
        ``(U, C)`` bool.
    """
    num_candidates, device = pool_rows.numel(), pool_rows.device
    if num_candidates == 0:
        return torch.zeros(num_owners, 0, dtype=torch.bool, device=device)
    ordered = pool_rows.sort().values  # (C,)
    # An item is represented by the first place at which it stands among the sorted candidates.
    place = torch.searchsorted(ordered, rows).clamp(max=num_candidates - 1)  # (P,)
    nowhere = num_candidates
    place = torch.where(ordered[place] == rows, place, nowhere)
    marked = torch.zeros(num_owners, num_candidates + 1, dtype=torch.bool, device=device)
    marked[owners, place] = True
    return marked.index_select(1, torch.searchsorted(ordered, pool_rows))  # (U, C)
