"""Vectors of unit length, with a gradient in three passes over them instead of eight.

With u = v / |v| and g the gradient of u, that of v is (g - u (u g)) / |v|.

Shapes: D width of the vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_NORM = 1e-6


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale ``(..., D)`` vectors to unit length; what is shorter than 1e-6 is divided by that."""
    if not vectors.requires_grad or torch.compiler.is_exporting():
        return functional.normalize(vectors, dim=-1, eps=SMALLEST_NORM)
    unit: Tensor = _Unit.apply(vectors)  # type: ignore[no-untyped-call]
    return unit


class _Unit(torch.autograd.Function):
    """The same with the gradient of this module."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:  # noqa: ANN401 - torch's own context
        """Scale ``(..., D)``."""
        unit = vectors / _lengths(vectors).clamp_min(SMALLEST_NORM)
        ctx.save_for_backward(vectors, unit)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        """Take off what points along a vector; of one that is too short nothing is taken off."""
        vectors, unit = ctx.saved_tensors
        lengths = _lengths(vectors)
        along = (gradient * unit).sum(dim=-1, keepdim=True) * (lengths >= SMALLEST_NORM)
        across = torch.addcmul(gradient, unit, along, value=-1)
        return across / lengths.clamp_min(SMALLEST_NORM)


def _lengths(vectors: Tensor) -> Tensor:
    """``(..., 1)`` of ``(..., D)``."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return lengths
