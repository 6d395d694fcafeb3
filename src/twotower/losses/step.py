"""A batch as an objective sees it; of several processes, the share of one.

Shapes: B queries, T targets, C candidates, N items, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from twotower.losses.masks import PositiveMask
from twotower.losses.ranks import OneRank, Ranks


@dataclass(frozen=True, kw_only=True)
class Step:
    """A batch; an objective asks it for the vectors that it needs.

    Args:
        target_rows: Item rows of the targets, ``(T,)``.
        weights: Weights of the targets, ``(T,)``.
        mask: What must not stand against the queries.
        item_probability: Share of the training events that an item is the target of, ``(N,)``.
        embed_queries: Gives the query vectors ``(B, D)``.
        embed_items: Gives the vectors ``(C, D)`` of item rows ``(C,)``.
        embed_catalogue: Gives the vectors ``(N, D)`` of all items as in evaluation, without
            gradient.
        owners: Query of every target, ``(T,)``; None where every query has the one of its place.
        ranks: The processes that hold the other shares of the batch.
        merge_copies: Whether an item that is there repeatedly may be embedded once, with one draw
            of what dropout drops, and not where something counts its copies, as a batch norm does.
    """

    target_rows: Tensor
    weights: Tensor
    mask: PositiveMask
    item_probability: Tensor
    embed_queries: Callable[[], Tensor]
    embed_items: Callable[[Tensor], Tensor]
    embed_catalogue: Callable[[], Tensor]
    owners: Tensor | None = None
    ranks: Ranks = field(default_factory=OneRank)
    merge_copies: bool = False

    def without_queries(self) -> Step:
        """The step of a process that has no share in a batch smaller than there are processes.

        It still embeds queries that another process has too, so that every weight has a gradient,
        zero, and takes part in what all processes do.
        """
        nothing = self.target_rows[:0]
        return replace(
            self,
            target_rows=nothing,
            weights=self.weights[:0],
            mask=self.mask.of_queries(nothing),
            embed_queries=lambda: self.embed_queries()[:0],
            owners=None if self.owners is None else nothing,
        )
