"""Which candidates must not stand against a query: its target and what else its user took.

Where a query is a moment, what its user took before it and what it took later are not the same. The
earlier ones are left out of the list when seen items are; against the later ones a query learns
what comes next.

Shapes: B queries, C candidates, N items, U users, P pairs of a user and a known positive.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LONGEST_TABLE = 2**22


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
        known_places: Which event of its user each known positive is, ``(P,)`` int32; with
            `num_seen`, without which all known positives are masked.
        num_seen: How many events of its user lie before each query, ``(B,)``: known positives at
            these places are masked, later ones are not.
        never: ``(N,)`` bool, items that stand against no query, or None.
    """

    target_rows: Tensor | None
    users: Tensor
    num_users: int
    known_users: Tensor
    known_rows: Tensor
    known_places: Tensor | None = None
    num_seen: Tensor | None = None
    never: Tensor | None = None

    def of_queries(self, chosen: Tensor) -> PositiveMask:
        """The mask of some of the queries ``(S,)``."""
        targets, num_seen = self.target_rows, self.num_seen
        return replace(
            self,
            target_rows=None if targets is None else targets[chosen],
            users=self.users[chosen],
            num_seen=None if num_seen is None else num_seen[chosen],
        )

    def of(self, pool_rows: Tensor) -> Tensor:
        """Mark the candidates that must not stand against each query.

        Args:
            pool_rows: Item rows of some candidates, ``(C,)`` int64; repeats allowed.

        Returns:
            ``(B, C)`` bool.
        """
        return self.blocks(pool_rows)(0, len(self.users))

    def blocks(self, pool_rows: Tensor) -> Callable[[int, int], Tensor]:
        """The same for some queries at a time.

        Args:
            pool_rows: Item rows of some candidates, ``(C,)`` int64; repeats allowed.

        Returns:
            Gives ``(b, C)`` bool for the queries from a first one up to another.
        """
        known = self._known(pool_rows) if self.known_rows.numel() else None

        def block(start: int, stop: int) -> Tensor:
            parts = []
            users = self.users[start:stop]
            if self.target_rows is not None:
                parts.append(pool_rows == self.target_rows[start:stop].unsqueeze(1))  # (b, C)
            if known is not None:
                parts.append(known(start, stop))  # (b, C)
            if self.never is not None:
                parts.append(self.never[pool_rows].expand(len(users), -1))  # (b, C)
            return functools.reduce(torch.logical_or, parts)

        return block

    def _known(self, pool_rows: Tensor) -> Callable[[int, int], Tensor]:
        """The part of the mask that comes from known positives."""
        places, num_seen = self.known_places, self.num_seen
        if places is None or num_seen is None:
            marked = positive_mask(pool_rows, self.known_users, self.known_rows, self.num_users)
            return lambda start, stop: marked.index_select(0, self.users[start:stop])
        first = first_places(
            pool_rows, self.known_users, self.known_rows, places, num_owners=self.num_users
        )  # (U, C)
        seen = num_seen.to(first.dtype).unsqueeze(1)  # (B, 1)
        return lambda start, stop: first.index_select(0, self.users[start:stop]) < seen[start:stop]


def positive_mask(pool_rows: Tensor, owners: Tensor, rows: Tensor, num_owners: int) -> Tensor:
    """Mark the candidates that stand in pairs of an owner and an item.

    Looks the P pairs up among the candidates, at most O((P + C) log C + U C); no step waits for a
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
    columns, place = _columns_of(pool_rows, rows)
    marked = torch.zeros(num_owners, num_candidates + 1, dtype=torch.bool, device=device)
    marked[owners, place] = True
    return marked.index_select(1, columns)  # (U, C)


def first_places(
    pool_rows: Tensor, owners: Tensor, rows: Tensor, places: Tensor, *, num_owners: int
) -> Tensor:
    """The first place at which each candidate stands among the pairs of each owner.

    Args:
        pool_rows: Item rows of the candidates, ``(C,)`` int64; an item may be there repeatedly.
        owners: User of every pair, an index in 0..U-1, ``(P,)``.
        rows: Item row of every pair, ``(P,)``; in any order, repeats allowed.
        places: Where each pair stands, ``(P,)`` int32.
        num_owners: U.

    Returns:
        ``(U, C)`` int32; the largest number there is where a candidate is in no pair.
    """
    nowhere = torch.iinfo(places.dtype).max
    columns, place = _columns_of(pool_rows, rows)
    width = pool_rows.numel() + 1
    first = places.new_full((num_owners * width,), nowhere)
    first.scatter_reduce_(0, owners * width + place, places, "amin")
    return first.view(num_owners, width).index_select(1, columns)


def _columns_of(pool_rows: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Columns in which the candidates ``(C,)`` and the pairs ``(P,)`` stand.

    Of an item that is there repeatedly one column represents all; pairs of items that are no
    candidates stand in column C. A CPU looks them up in a table by item where that is short; a
    device, which must not be waited for, sorts the candidates.
    """
    num_candidates = pool_rows.numel()
    if pool_rows.device.type == "cpu" and (size := int(pool_rows.max()) + 1) <= LONGEST_TABLE:
        column = torch.full((size + 1,), num_candidates)  # the last one is for what comes behind
        column[pool_rows] = torch.arange(num_candidates)
        return column[pool_rows], column[rows.clamp(max=size)]
    ordered = pool_rows.sort().values  # (C,)
    place = torch.searchsorted(ordered, rows).clamp(max=num_candidates - 1)  # (P,)
    place = torch.where(ordered[place] == rows, place, num_candidates)
    return torch.searchsorted(ordered, pool_rows), place
