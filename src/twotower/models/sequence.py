"""What encoders that read histories in order share.

Shapes: B queries, L events, H width of a state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where events go when the padding is moved from the left to the right.

    Args:
        order: ``(B, L)`` column of the event that comes to stand in each column.
        inverse: ``(B, L)`` column that each event has gone to.
    """

    order: Tensor
    inverse: Tensor


def left_aligned(mask: Tensor) -> Places:
    """Move the padding behind the events.

    Args:
        mask: ``(B, L)`` bool, True where there is an event; padding stands on the left.
    """
    length = mask.shape[1]
    columns = torch.arange(length, device=mask.device)  # (L,)
    padding = length - mask.sum(dim=1, keepdim=True)  # (B, 1)
    return Places(order=(columns + padding) % length, inverse=(columns - padding) % length)


def positions(mask: Tensor) -> Tensor:
    """``(B, L)`` number of events before each one, 0 at the padding.

    Counted from the oldest event of the history, so that a history that is cut behind an event
    leaves its position as it was.
    """
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def causal_mask(mask: Tensor) -> Tensor:
    """``(B, L, L)`` bool, True where the event of a row may look at the event of a column.

    An event sees itself and earlier ones. Padding sees itself, so that no row is empty; nothing
    else sees it.
    """
    length = mask.shape[1]
    columns = torch.arange(length, device=mask.device)
    earlier = columns.unsqueeze(1) >= columns  # (L, L)
    itself = columns.unsqueeze(1) == columns  # (L, L)
    return (earlier & mask.unsqueeze(1)) | itself


def latest(states: Tensor) -> Tensor:
    """State ``(B, H)`` after the latest event, which stands in the last column of ``(B, L, H)``."""
    return states[:, -1]
