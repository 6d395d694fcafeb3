"""Dot products of queries with their targets and with the candidates, in full precision.

Shapes: B queries, N targets, C candidates of all, S queries with H candidates of their own, D
width of the vectors.
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

    @staticmethod
    def of(queries: Tensor, targets: Tensor, candidates: Tensor, owners: Tensor | None) -> Scores:
        """Score targets ``(N, D)`` with queries ``(B, D)``, beside `candidates` ``(B, C)``."""
        found = target_scores(queries, targets, owners)
        return Scores(targets=found, candidates=candidates, owners=owners)

    def per_target(self, of_queries: Tensor) -> Tensor:
        """What belongs to queries ``(B, ...)``, for each of their targets ``(N, ...)``."""
        return of_queries if self.owners is None else of_queries[self.owners]


def target_scores(queries: Tensor, targets: Tensor, owners: Tensor | None) -> Tensor:
    """Scores ``(N,)`` of targets ``(N, D)`` with their queries.

    Args:
        queries: ``(B, D)``.
        targets: ``(N, D)``.
        owners: Query of every target ``(N,)``; None where every query has the one of its place.
    """
    own = queries if owners is None else queries[owners]  # (N, D)
    return paired_products(own, targets)


def dot_products(queries: Tensor, candidates: Tensor) -> Tensor:
    """Score all pairs.

    Half-precision vectors are widened first, autocast or not: a logit of 20 in bfloat16 is off by
    up to 0.06.

    Args:
        queries: ``(B, D)``.
        candidates: ``(C, D)``.

    Returns:
        ``(B, C)`` in float32, or in float64 for float64 vectors.
    """
    with torch.autocast(device_type=queries.device.type, enabled=False):
        return widened(queries) @ widened(candidates).T  # (B, C)


def paired_products(queries: Tensor, vectors: Tensor) -> Tensor:
    """Score each query with its own vectors, in the precision of `dot_products`.

    Args:
        queries: ``(S, D)``.
        vectors: ``(S, D)``, or ``(S, H, D)`` for several of each query.

    Returns:
        ``(S,)``, or ``(S, H)``.
    """
    queries = widened(queries)
    if vectors.dim() > queries.dim():
        queries = queries.unsqueeze(1)  # (S, 1, D)
    return (queries * widened(vectors)).sum(dim=-1)


def widened(vectors: Tensor) -> Tensor:
    """Half-precision vectors ``(..., D)`` in float32, others as they are."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
