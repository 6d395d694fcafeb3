"""What a retrieval model minimises: a loss, and the candidates that it is computed on.

Shapes: B queries, T targets, C candidates, N items, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from twotower.losses.masks import PositiveMask
from twotower.losses.negatives import Negatives, Pool


@dataclass(frozen=True, kw_only=True)
class Step:
    """A batch as an objective sees it; it asks for the vectors that it needs.

    Args:
        target_rows: Item rows of the targets, ``(T,)``.
        weights: Weights of the targets, ``(T,)``.
        mask: What must not stand against the queries.
        item_probability: Share of the training events that an item is the target of, ``(N,)``.
        embed_queries: Gives the query vectors ``(B, D)``.
        embed_items: Gives the vectors ``(C, D)`` of item rows ``(C,)``.
        owners: Query of every target, ``(T,)``; None where every query has the one of its place.
    """

    target_rows: Tensor
    weights: Tensor
    mask: PositiveMask
    item_probability: Tensor
    embed_queries: Callable[[], Tensor]
    embed_items: Callable[[Tensor], Tensor]
    owners: Tensor | None = None


class RetrievalObjective(Protocol):
    """Computes the loss of a step.

    What it remembers from step to step is in its state as a module, to be saved and restored.
    """

    mask_known: bool

    def __call__(self, step: Step) -> Tensor:
        """Scalar loss of a batch."""


class RetrievalLoss(Protocol):
    """A loss over targets and a pool of candidates that all queries share."""

    def __call__(
        self,
        queries: Tensor,
        targets: Tensor,
        pool: Pool,
        masked: Tensor,
        weights: Tensor | None = None,
        owners: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss of a batch; see `twotower.losses.sampled_softmax.SampledSoftmax`."""


class Objective(nn.Module):
    """A loss with its negatives.

    Args:
        loss: Computed on targets and candidates.
        negatives: Draws the candidates.
        mask_known: Whether a user's other training positives are kept out of the candidates that
            stand against it; its target always is. With them, a query learns what its user takes at
            some time; against them, what it takes next.
    """

    def __init__(
        self, *, loss: RetrievalLoss, negatives: Negatives, mask_known: bool = True
    ) -> None:
        super().__init__()
        self.loss = loss
        self.negatives = negatives
        self.mask_known = mask_known

    def forward(self, step: Step) -> Tensor:
        """Scalar loss of a batch."""
        drawn = self.negatives.draw(step.target_rows, step.item_probability, None)
        queries = step.embed_queries()  # (B, D)
        vectors = step.embed_items(drawn.to_embed)
        if drawn.num_in_batch:
            targets = vectors[: drawn.num_in_batch]
        else:
            targets = step.embed_items(step.target_rows)  # (T, D)
        if drawn.queued is not None:
            vectors = torch.cat([vectors, drawn.queued])  # (C, D)
        pool = Pool(vectors=vectors, rows=drawn.rows, log_expected_count=drawn.log_expected_count)
        self.negatives.remember(step.target_rows, targets)
        return self.loss(queries, targets, pool, step.mask.of(pool.rows), step.weights, step.owners)
