"""Dot products of queries with their targets and with the candidates, in full precision.

Shapes: B queries, N targets, C candidates, D width of the vectors. A query has one target, N = B,
or several, and then every target names its owner.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Dot products.

    Args:
        targets: Of every target with its query, ``(N,)``.
        candidates: Of every query with every candidate, ``(B, C)``.
        owners: Query of every target, ``(N,)``; None where every query has the one of its place.
    """

    targets: Tensor
    candidates: Tensor
    owners: Tensor | None = None

    def per_target(self, of_queries: Tensor) -> Tensor:
        """What belongs to queries ``(B, ...)``, for each of their targets ``(N, ...)``."""
        return of_queries if self.owners is None else of_queries[self.owners]


def pool_scores(
    queries: Tensor, targets: Tensor, candidates: Tensor, owners: Tensor | None = None
) -> Scores:
    """Score targets and candidates.

    Half-precision vectors are widened first, autocast or not: a logit of 20 in bfloat16 is off by
    up to 0.06.

    Args:
        queries: ``(B, D)``.
        targets: ``(N, D)``.
        candidates: ``(C, D)``.
        owners: Query of every target, ``(N,)``, or None.

    Returns:
        Scores in float32, or in float64 for float64 vectors.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(device_type=queries.device.type, enabled=False):
        queries, targets, candidates = queries.to(dtype), targets.to(dtype), candidates.to(dtype)
        own = queries if owners is None else queries[owners]  # (N, D)
        return Scores(
            targets=(own * targets).sum(dim=-1),  # (N,)
            candidates=queries @ candidates.T,  # (B, C)
            owners=owners,
        )
