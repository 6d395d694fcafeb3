"""From one loss a query or row to the loss of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of the losses of a batch.

    Args:
        losses: ``(B,)``.
        weights: ``(B,)`` non-negative, or None for equal weights.

    Returns:
        A scalar; zero when all weights are zero.
    """
    if weights is None:
        return losses.mean()
    weights = weights.to(losses.dtype)
    return (losses * weights).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)
