"""A weighted mean of the history: the model learns which events count.

    weight of event l = softmax over l of v . tanh(W e_l + b),    output = sum of weight_l e_l

Order does not matter. The additive form is that of Bahdanau et al. 2015, "Neural machine
translation by jointly learning to align and translate"; pooling with a learned v is in Yang et al.
2016, "Hierarchical attention networks for document classification".

Shapes: B queries, L events, W width of one embedded event, H hidden width.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


class AttentionPooling(nn.Module):
    """Attention of one learned query over the events; zeros for an empty history.

    Args:
        input_width: Width W of an embedded event.
        hidden: Width H of the layer that weights come from.

    Raises:
        ValueError: When `hidden` is below 1.
    """

    def __init__(self, *, input_width: int, hidden: int = 64) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"attention pooling: `hidden` must be at least 1, got {hidden}")
        self.width = input_width
        self.weight = nn.Sequential(
            nn.Linear(input_width, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False)
        )

    def forward(self, events: Tensor, mask: Tensor) -> Tensor:
        """Encode ``(B, L, W)`` events with a ``(B, L)`` mask to ``(B, W)``."""
        logits = self.weight(events).squeeze(-1).float()  # (B, L)
        logits = logits.masked_fill(~mask, -math.inf)
        logits = logits.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)  # nothing to weigh
        weights = logits.softmax(dim=1) * mask  # (B, L)
        pooled: Tensor = (events * weights.unsqueeze(-1).to(events.dtype)).sum(dim=1)
        return pooled
