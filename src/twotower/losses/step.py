"""A batch as an objective sees it.

Shapes: B queries, T targets, C candidates, N items, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from twotower.losses.masks import PositiveMask


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
    """

    target_rows: Tensor
    weights: Tensor
    mask: PositiveMask
    item_probability: Tensor
    embed_queries: Callable[[], Tensor]
    embed_items: Callable[[Tensor], Tensor]
    embed_catalogue: Callable[[], Tensor]
    owners: Tensor | None = None
