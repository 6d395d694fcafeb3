"""A recurrent network over the history.

Hidasi et al. 2016, "Session-based recommendations with recurrent neural networks".

Shapes: B queries, L events, W width of one embedded event, H width of the state.
"""

from __future__ import annotations

from torch import Tensor, nn

from twotower.models.sequence import latest, left_aligned


class GRU(nn.Module):
    """The state of a gated recurrent unit after the latest event; zeros for an empty history.

    Args:
        input_width: Width W of an embedded event.
        hidden: Width H of the state.
        num_layers: Layers on top of each other.
        dropout: Share of the inputs, and of the outputs between layers, dropped in training.

    Raises:
        ValueError: When a number is below 1.
    """

    def __init__(
        self, *, input_width: int, hidden: int = 64, num_layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if min(hidden, num_layers) < 1:
            raise ValueError(
                f"GRU: `hidden` and `num_layers` must be at least 1, got {hidden} and {num_layers}"
            )
        self.width = hidden
        self.dropout = nn.Dropout(dropout)
        between = dropout if num_layers > 1 else 0.0
        self.layers = nn.GRU(
            input_width, hidden, num_layers=num_layers, dropout=between, batch_first=True
        )

    def every(self, events: Tensor, mask: Tensor) -> Tensor:
        """States ``(B, L, H)`` after every event; zeros at the padding."""
        places = left_aligned(mask)  # (B, L)
        states: Tensor = self.layers(self.dropout(places.aligned(events)))[0]  # (B, L, H)
        return places.back(states) * mask.unsqueeze(-1)

    def forward(self, events: Tensor, mask: Tensor) -> Tensor:
        """Encode ``(B, L, W)`` events with a ``(B, L)`` mask to ``(B, H)``."""
        return latest(self.every(events, mask))
