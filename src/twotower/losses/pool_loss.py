"""What all losses of the retrieval stage share: a target against a pool of candidates.

Shapes: B queries, N targets, C candidates, D width of the vectors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from twotower.losses.negatives import Pool
from twotower.losses.reduction import weighted_mean
from twotower.losses.scores import Scores, pool_scores


def check_temperature(temperature: float) -> float:
    """The temperature, if scores can be divided by it.

    Raises:
        ValueError: When it is not a number above 0.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` must be a number above 0, got {temperature}")
    return temperature


class PoolLoss(nn.Module, ABC):
    """Scores queries against their targets and the pool; a subclass says what a query loses."""

    @abstractmethod
    def losses(self, scores: Scores, pool: Pool, masked: Tensor) -> Tensor:
        """Loss of every target.

        Args:
            scores: Scores of targets and candidates.
            pool: The candidates.
            masked: ``(B, C)`` bool, True where a candidate must not stand against the query.

        Returns:
            ``(N,)``.
        """

    def forward(
        self,
        queries: Tensor,
        targets: Tensor,
        pool: Pool,
        masked: Tensor,
        weights: Tensor | None = None,
        owners: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            queries: ``(B, D)``.
            targets: Vectors of the targets, ``(N, D)``.
            pool: The candidates.
            masked: ``(B, C)`` bool, True for the target and other positives of the query's user.
            weights: Weights of the targets ``(N,)``, or None.
            owners: Query of every target ``(N,)``; None where every query has the one of its place.

        Returns:
            A scalar, the weighted mean.
        """
        scores = pool_scores(queries, targets, pool.vectors, owners)
        return weighted_mean(self.losses(scores, pool, masked), weights)
