"""What a retrieval model minimises: a loss, and the candidates that it is computed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from twotower.losses.negatives import Negatives, Pool


class RetrievalLoss(Protocol):
    """A loss over targets and a pool of candidates that all queries share."""

    def __call__(
        self,
        queries: Tensor,
        targets: Tensor,
        pool: Pool,
        masked: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss of a batch; see `twotower.losses.sampled_softmax.SampledSoftmax`."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss with its negatives.

    Args:
        loss: Computed on targets and candidates.
        negatives: Draws the candidates.
        mask_known: Whether a user's other training positives are kept out of the candidates that
            stand against it; its target always is. With them, a query learns what its user takes at
            some time; against them, what it takes next.
    """

    loss: RetrievalLoss
    negatives: Negatives
    mask_known: bool = True
