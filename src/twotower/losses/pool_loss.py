"""What all losses of the retrieval stage share: a target against a pool of candidates.

Shapes: B queries, N targets, C candidates of all, S queries with H candidates of their own, D
width of the vectors. A loss sees C + H candidates of every query as C.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from twotower.losses.masks import CandidateMask
from twotower.losses.negatives import Pool
from twotower.losses.reduction import weighted_mean
from twotower.losses.scores import Scores, dot_products, paired_products


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
        masked: CandidateMask,
        weights: Tensor | None = None,
        owners: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            queries: ``(B, D)``.
            targets: Vectors of the targets, ``(N, D)``.
            pool: The candidates.
            masked: Which candidates must not stand against which queries.
            weights: Weights of the targets ``(N,)``, or None.
            owners: Query of every target ``(N,)``; None where every query has the one of its place.

        Returns:
            A scalar, the weighted mean.
        """
        candidates = dot_products(queries, pool.vectors)  # (B, C)
        out = masked[0 : len(queries)]  # (B, C)
        if pool.own is not None:
            own = paired_products(queries[pool.own.queries], pool.own.vectors)  # (S, H)
            # A query without candidates of its own has them masked.
            all_own = own.new_zeros(len(queries), own.shape[1])  # (B, H)
            all_own = all_own.index_copy(0, pool.own.queries, own)
            absent = torch.ones_like(all_own, dtype=torch.bool)
            absent[pool.own.queries] = pool.own.absent
            candidates = torch.cat([candidates, all_own], dim=1)  # (B, C + H)
            out = torch.cat([out, absent], dim=1)
            certain = pool.log_expected_count.new_zeros(own.shape[1])  # (H,)
            counts = torch.cat([pool.log_expected_count, certain])
            pool = replace(pool, log_expected_count=counts, own=None)
        scores = Scores.of(queries, targets, candidates, owners)
        return weighted_mean(self.losses(scores, pool, out), weights)
