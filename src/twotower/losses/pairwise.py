"""Bayesian personalised ranking: the target shall score above every candidate, one by one.

    loss = mean over candidates c not masked of log(1 + exp((s_c - s_t) / T))

Rendle et al. 2009, "BPR: Bayesian Personalized Ranking from Implicit Feedback", where candidates
are drawn uniformly and T is 1. Candidates count as they were drawn: with targets of the batch as
candidates popular items are pushed down more often, which this loss does not correct.

Shapes: B queries, N targets, C candidates, D width of the vectors.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from twotower.losses.negatives import Pool
from twotower.losses.pool_loss import PoolLoss, check_temperature
from twotower.losses.scores import Scores


def bayesian_personalised_ranking(scores: Scores, masked: Tensor, temperature: float) -> Tensor:
    """Loss of every target; see the formula of this module.

    Args:
        scores: Scores of targets and candidates.
        masked: ``(B, C)`` bool, True where a candidate must not stand against the query.
        temperature: T, above 0.

    Returns:
        ``(N,)``; 0 for a query without candidates.
    """
    candidates, masked = scores.per_target(scores.candidates), scores.per_target(masked)  # (N, C)
    gaps = (candidates - scores.targets.unsqueeze(1)) / temperature  # (N, C)
    losses = functional.softplus(gaps.masked_fill(masked, -math.inf))  # (N, C)
    num_candidates = (~masked).sum(dim=1)  # (N,)
    return losses.sum(dim=1) / num_candidates.clamp(min=1)


class BPR(PoolLoss):
    """Bayesian personalised ranking.

    Args:
        temperature: Divides the scores; 1 for dot products. Cosines differ by 2 at most, with 1
            they could never be told apart well.

    Raises:
        ValueError: When the temperature is not above 0.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def losses(self, scores: Scores, pool: Pool, masked: Tensor) -> Tensor:
        """Loss of every target (N,); expected counts are not looked at."""
        return bayesian_personalised_ranking(scores, masked, self.temperature)
