"""A mask as a list of pairs: on a CPU most of a matrix of masked candidates is never looked at.

Shapes: B queries, C candidates, P pairs that are looked up, M pairs that are masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A table by item may be this many times as long as the candidates and pairs that are looked up.
TABLE_SHARE = 16


@dataclass(frozen=True, kw_only=True)
class MaskedPairs:
    """A mask as the pairs of a query and a candidate that it holds.

    Args:
        queries: ``(M,)`` ascending.
        columns: Candidate of each pair, ``(M,)``.
        starts: Where the pairs of each query begin, B + 1 numbers.
        never: Candidates that stand against no query, or None.
        num_candidates: C.
    """

    queries: Tensor
    columns: Tensor
    starts: list[int]
    never: Tensor | None
    num_candidates: int

    def __getitem__(self, queries: slice) -> Tensor:
        start, stop, _ = queries.indices(len(self.starts) - 1)
        marked = torch.zeros(stop - start, self.num_candidates, dtype=torch.bool)
        self.hide_(marked, start, True)
        return marked

    def hide_(self, logits: Tensor, start: int, value: float) -> None:
        """Put a value in the place of the masked logits ``(b, C)`` of queries from `start` on.

        Rows of the logits may lie apart, not their columns.
        """
        if not logits.numel():
            return
        pairs, apart = slice(self.starts[start], self.starts[start + len(logits)]), logits.stride(0)
        places = (self.queries[pairs] - start) * apart + self.columns[pairs]
        flat = logits.as_strided(((len(logits) - 1) * apart + self.num_candidates,), (1,))
        flat.index_fill_(0, places, value)
        if self.never is not None:
            logits.index_fill_(1, self.never, value)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Candidates by item.

    Args:
        ordered: Item rows of the candidates, ascending, ``(C,)``.
        order: Which candidate each of them is, ``(C,)``.
    """

    ordered: Tensor
    order: Tensor

    @staticmethod
    def of(pool_rows: Tensor) -> Matches:
        """Of some candidates ``(C,)``."""
        ordered, order = pool_rows.sort(stable=True)
        return Matches(ordered=ordered, order=order)

    def find(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where the candidates of items ``(P,)`` begin in `order`, and how many there are."""
        if not len(self.ordered):
            return torch.zeros_like(rows), torch.zeros_like(rows)
        low, high = int(self.ordered[0]), int(self.ordered[-1])
        size = high - low + 1
        if size <= TABLE_SHARE * (len(self.ordered) + len(rows)):
            # A table with a place below and one above, in which no candidate stands.
            counts = torch.bincount(self.ordered - low + 1, minlength=size + 2)
            ends, at = counts.cumsum(0), (rows - low + 1).clamp(0, size + 1)
            return (ends - counts)[at], counts[at]
        first = torch.searchsorted(self.ordered, rows)
        return first, torch.searchsorted(self.ordered, rows, right=True) - first


def expanded(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """All n places of ranges ``(R,)``: ``(n,)`` which range each is of, ``(n,)`` the place."""
    device = counts.device
    ranges = torch.arange(len(counts), device=device).repeat_interleave(counts)
    shift = first - (counts.cumsum(0) - counts)
    return ranges, shift[ranges] + torch.arange(len(ranges), device=device)
