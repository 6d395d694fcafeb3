"""Attention over the history that depends on the candidate: what of the past speaks for this item?

    weight of event l = v . prelu(A [e_l, t, e_l - t, e_l * t] + a) + b
    output            = sum over l of weight_l e_l

with e_l an event and t the candidate, embedded by the same features. The weights are not normalised
by a softmax, so that a history full of what is like the candidate says more than one that has a
single such event. Order does not matter.

Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction", section 4.3.

Shapes: B pairs of a query and a candidate, L events, W width of one embedded event, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TargetAttention(nn.Module):
    """A sum of the events, each weighed by a small network that also sees the candidate.

    Args:
        input_width: Width W of an embedded event, and of the candidate.
        hidden: Width H of the layer that weights come from; the paper has 36.

    Raises:
        ValueError: When `hidden` is below 1.
    """

    def __init__(self, *, input_width: int, hidden: int = 36) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"target attention: `hidden` must be at least 1, got {hidden}")
        self.width = input_width
        self.weight = nn.Sequential(
            nn.Linear(4 * input_width, hidden), nn.PReLU(), nn.Linear(hidden, 1)
        )

    def attend(self, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Sum the events up.

        Args:
            events: ``(B, L, W)``.
            mask: ``(B, L)`` bool, True where there is an event.
            target: The candidates ``(B, W)``.

        Returns:
            ``(B, W)``; zeros for an empty history.
        """
        targets = target.unsqueeze(1).expand_as(events)  # (B, L, W)
        pairs = torch.cat([events, targets, events - targets, events * targets], dim=-1)
        weights: Tensor = self.weight(pairs) * mask.unsqueeze(-1)  # (B, L, 1)
        return (events * weights).sum(dim=1)  # (B, W)
