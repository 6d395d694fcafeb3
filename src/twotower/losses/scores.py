"""Dot products of queries with their targets and with the candidates, in full precision.

Shapes: B queries, C candidates, D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Dot products.

    Args:
        targets: Of every query with its target, ``(B,)``.
        candidates: Of every query with every candidate, ``(B, C)``.
    """

    targets: Tensor
    candidates: Tensor


def pool_scores(queries: Tensor, targets: Tensor, candidates: Tensor) -> Scores:
    """Score targets and candidates.

    Half-precision vectors are widened first, autocast or not: a logit of 20 in bfloat16 is off by
    up to 0.06.

    Args:
        queries: ``(B, D)``.
        targets: ``(B, D)``.
        candidates: ``(C, D)``.

    Returns:
        Scores in float32, or in float64 for float64 vectors.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(device_type=queries.device.type, enabled=False):
        queries, targets, candidates = queries.to(dtype), targets.to(dtype), candidates.to(dtype)
        return Scores(
            targets=(queries * targets).sum(dim=-1),  # (B,)
            candidates=queries @ candidates.T,  # (B, C)
        )
