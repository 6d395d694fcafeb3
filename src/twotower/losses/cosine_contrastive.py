"""Cosine contrastive loss: targets are drawn near, candidates pushed below a margin.

    loss = (1 - s_t) + weight * mean over candidates c not masked of max(0, s_c - margin)

Candidates below the margin have no gradient, so that a large sample pushes only the hard ones. Mao
et al. 2021, "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", where scores are
cosines and candidates are drawn uniformly. They count as they were drawn: targets of the batch as
candidates push popular items down more often, which this loss does not correct.

Shapes: B queries, N targets, C candidates.
"""

from __future__ import annotations

import math

from torch import Tensor

from twotower.losses.negatives import Pool
from twotower.losses.pool_loss import PoolLoss
from twotower.losses.scores import Scores


def cosine_contrastive(scores: Scores, masked: Tensor, *, weight: float, margin: float) -> Tensor:
    """Loss of every target; see the formula of this module.

    Args:
        scores: Cosines of targets and candidates.
        masked: ``(B, C)`` bool, True where a candidate must not stand against the query.
        weight: What all candidates together weigh against the target.
        margin: Cosine below which a candidate costs nothing.

    Returns:
        ``(N,)``; only the target's part for a query without candidates.
    """
    excess = (scores.candidates - margin).clamp(min=0).masked_fill(masked, 0)  # (B, C)
    num_candidates = (~masked).sum(dim=1)  # (B,)
    of_candidates = weight * excess.sum(dim=1) / num_candidates.clamp(min=1)  # (B,)
    return 1 - scores.targets + scores.per_target(of_candidates)


class CosineContrastive(PoolLoss):
    """Cosine contrastive loss, for towers that are compared by cosine.

    Dot products have no largest value: the target's part would fall without end.

    Args:
        weight: What all candidates together weigh against the target, at least 0; 50 to 250 with a
            thousand of them.
        margin: Cosine below which a candidate costs nothing, in [-1, 1); 0.4 to 0.9 is common.

    Raises:
        ValueError: When weight or margin is out of range.
    """

    def __init__(self, *, weight: float, margin: float) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ValueError(f"`weight` must be a number of at least 0, got {weight}")
        if not -1 <= margin < 1:
            raise ValueError(f"`margin` must be a cosine in [-1, 1), got {margin}")
        self.weight = weight
        self.margin = margin

    def losses(self, scores: Scores, pool: Pool, masked: Tensor) -> Tensor:
        """Loss of every target (N,); expected counts are not looked at."""
        return cosine_contrastive(scores, masked, weight=self.weight, margin=self.margin)
