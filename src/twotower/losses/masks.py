"""Which candidates must not stand against a query: its target and what else its user took.

Where a query is a moment, what its user took before it and what it took later are not the same. The
earlier ones are left out of the list when seen items are; against the later ones a query learns
what comes next.

Shapes: B queries, C candidates, N items, U users, P pairs of a user and a known positive.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from twotower.losses.mask_tiles import Known, MaskTiles, Pieces
from twotower.losses.masked_pairs import TABLE_SHARE, MaskedPairs, Matches, expanded

# A mask with more than this part of all pairs is made as a matrix.
PAIR_SHARE = 16


class CandidateMask(Protocol):
    """Says which candidates must not stand against some queries; a matrix ``(B, C)`` is one."""

    def __getitem__(self, queries: slice) -> Tensor:
        """``(b, C)`` bool of the queries of a slice, True where a candidate must not stand."""


@dataclass(frozen=True, kw_only=True)
class PositiveMask:
    """The positives of a batch, kept as pairs; matrices are made for the candidates asked for.

    Args:
        target_rows: Item row of every query's target, ``(B,)`` int64; None where all targets of
            a query are known positives.
        users: Index in 0..U-1 of the user of every query, ``(B,)``.
        num_users: U.
        known_users: User of every known positive, an index in 0..U-1, ``(P,)``, ascending.
        known_rows: Item rows of the known positives, ``(P,)``; repeats allowed.
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
        return self.on(pool_rows)[0 : len(self.users)]

    def on(self, pool_rows: Tensor) -> CandidateMask:
        """The same for some queries at a time; with known positives a device is waited for.

        On a CPU it is a list of pairs where these are few.

        Args:
            pool_rows: Item rows of some candidates, ``(C,)`` int64; repeats allowed.
        """
        pairs = self._pairs(pool_rows) if pool_rows.device.type == "cpu" else None
        return pairs or OnCandidates(self, pool_rows)

    def _pairs(self, pool_rows: Tensor) -> MaskedPairs | None:
        """The mask as pairs; None where they are so many that a matrix is made sooner."""
        matches = Matches.of(pool_rows)
        num_queries, num_candidates = len(self.users), len(pool_rows)
        most = num_queries * num_candidates // PAIR_SHARE
        pieces = [(self.users[:0], self.users[:0], self.users[:0])]
        if self.target_rows is not None:
            first, counts = matches.find(self.target_rows)
            pieces.append((torch.arange(num_queries), first, counts))
        if self.known_rows.numel():
            starts = self._starts()
            if int(starts.diff()[self.users].sum()) > most:
                return None
            pieces.append(self._runs(matches, starts))
        queries, first, counts = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        if int(counts.sum()) > most:
            return None
        queries, order = queries.sort(stable=True)
        of_pair, places = expanded(first[order], counts[order])
        queries = queries[of_pair]
        never = None if self.never is None else self.never[pool_rows].nonzero().squeeze(1)
        return MaskedPairs(
            queries=queries,
            columns=matches.order[places],
            starts=[0, *torch.bincount(queries, minlength=num_queries).cumsum(0).tolist()],
            never=never,
            num_candidates=num_candidates,
        )

    def tiles(self, pool_rows: Tensor) -> MaskTiles:
        """The same as `on`, for kernels; with known positives a device is waited for.

        Args:
            pool_rows: Item rows of some candidates, ``(C,)`` int64; repeats allowed.
        """
        known = None
        if self.known_rows.numel():
            matches, sizes = Matches.of(pool_rows), (len(self.users), len(pool_rows))
            pieces = Pieces.of(*self._runs(matches, self._starts()), sizes)
            known = Known(matches=matches, pieces=pieces)
        return MaskTiles.of(pool_rows, self.target_rows, self.never, known)

    def _starts(self) -> Tensor:
        """Where the known positives of each user begin, ``(U + 1,)``."""
        edges = torch.arange(self.num_users + 1, device=self.known_users.device)
        return torch.searchsorted(self.known_users, edges)

    def _runs(self, matches: Matches, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query of each pair with a known positive ``(R,)``, its first match, and how many."""
        first, counts = matches.find(self.known_rows)
        queries, known = expanded(starts[self.users], starts.diff()[self.users])
        kept = counts[known] > 0
        if self.known_places is not None and self.num_seen is not None:
            kept &= self.known_places[known] < self.num_seen[queries]
        queries, known = queries[kept], known[kept]
        return queries, first[known], counts[known]

    def block(self, pool_rows: Tensor, queries: slice) -> Tensor:
        """The same ``(b, C)`` for a slice of the queries."""
        if not len(self.users[queries]):
            return torch.zeros(0, len(pool_rows), dtype=torch.bool, device=pool_rows.device)
        parts = []
        if self.target_rows is not None:
            parts.append(pool_rows == self.target_rows[queries].unsqueeze(1))  # (b, C)
        if self.known_rows.numel():
            parts.append(self._known(pool_rows, queries))  # (b, C)
        if self.never is not None:
            parts.append(self.never[pool_rows].expand(len(self.users[queries]), -1))  # (b, C)
        return functools.reduce(torch.logical_or, parts)

    def _known(self, pool_rows: Tensor, queries: slice) -> Tensor:
        """The part ``(b, C)`` that comes from known positives, of whose pairs a slice is read."""
        users = self.users[queries]
        low, high = (int(end) for end in users.aminmax())
        ends = torch.tensor([low, high + 1], device=users.device)
        first, last = torch.searchsorted(self.known_users, ends).tolist()
        owners, rows = self.known_users[first:last] - low, self.known_rows[first:last]
        num_owners, users = high - low + 1, users - low
        if self.known_places is None or self.num_seen is None:
            return positive_mask(pool_rows, owners, rows, num_owners).index_select(0, users)
        places = self.known_places[first:last]
        earliest = first_places(pool_rows, owners, rows, places, num_owners=num_owners)
        seen = self.num_seen[queries].to(earliest.dtype).unsqueeze(1)  # (b, 1)
        return earliest.index_select(0, users) < seen


@dataclass(frozen=True)
class OnCandidates:
    """A mask on some candidates; see `PositiveMask.on`."""

    mask: PositiveMask
    pool_rows: Tensor

    def __getitem__(self, queries: slice) -> Tensor:
        return self.mask.block(self.pool_rows, queries)

    def tiles(self) -> MaskTiles:
        """The same for kernels."""
        return self.mask.tiles(self.pool_rows)


def hide_(logits: Tensor, masked: CandidateMask, start: int, value: float) -> None:
    """Put a value in the place of masked logits.

    Args:
        logits: ``(b, C)``, changed.
        masked: Which candidates must not stand against which queries.
        start: The first of the queries.
        value: What stands there afterwards.
    """
    if isinstance(masked, MaskedPairs):
        masked.hide_(logits, start, value)
    else:
        logits.masked_fill_(masked[start : start + len(logits)], value)


def tiles_of(masked: CandidateMask) -> MaskTiles | None:
    """A mask for kernels; None where it is a matrix or has mined candidates."""
    return masked.tiles() if isinstance(masked, OnCandidates) else None


def positive_mask(pool_rows: Tensor, owners: Tensor, rows: Tensor, num_owners: int) -> Tensor:
    """Mark the candidates that stand in pairs of an owner and an item.

    Looks the P pairs up among the candidates, at most O((P + C) log C + U C); no device is waited
    for.

    Args:
        pool_rows: Item rows of the candidates, ``(C,)`` int64; an item may be there repeatedly.
        owners: User or query of every pair, an index in 0..U-1, ``(P,)``.
        rows: Item row of every pair, ``(P,)``; in any order, repeats allowed.
        num_owners: U.

    Returns:
        ``(U, C)`` bool.
    """
    columns, place = _columns_of(pool_rows, rows)
    shape = num_owners, pool_rows.numel() + 1
    marked = torch.zeros(shape, dtype=torch.bool, device=pool_rows.device)
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
    candidates, -1 among them, stand in column C. A CPU looks them up in a table by item where that
    is short; a device, which must not be waited for, sorts the candidates.
    """
    num_candidates = pool_rows.numel()
    if num_candidates == 0:
        return pool_rows, torch.zeros_like(rows)
    if pool_rows.device.type == "cpu":
        low, high = (int(end) for end in pool_rows.aminmax())
        size = high - low + 1
        if size <= TABLE_SHARE * (num_candidates + len(rows)):
            column = torch.full((size + 2,), num_candidates)  # ends with what lies above and below
            column[pool_rows - low] = torch.arange(num_candidates)
            return column[pool_rows - low], column[(rows - low).clamp(-1, size)]
    ordered = pool_rows.sort().values  # (C,)
    place = torch.searchsorted(ordered, rows).clamp(max=num_candidates - 1)  # (P,)
    place = torch.where(ordered[place] == rows, place, num_candidates)
    return torch.searchsorted(ordered, pool_rows), place


def check_masks(*, known: bool, later: bool) -> None:
    """Refuse to tell later positives from earlier ones where neither are masked.

    Raises:
        ValueError: When `later` is False without `known`.
    """
    if not known and not later:
        raise ValueError(
            "`mask_later`=False leaves later positives unmasked, but with `mask_known`=False none "
            "are masked; set mask_later=true beside mask_known=false"
        )
