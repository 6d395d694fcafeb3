"""A plain multi-layer perceptron: linear, ReLU, dropout, over and over."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Hidden layers with ReLU, then, if asked for, one linear layer without.

    Args:
        input_width: Width of the input.
        hidden: Widths of the hidden layers; may be empty.
        dropout: Share of every hidden layer's outputs that is dropped in training.
        output_width: Width of a last linear layer; None ends with the last hidden layer.
    """

    def __init__(
        self,
        *,
        input_width: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
        output_width: int | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = input_width
        for hidden_width in hidden:
            layers += [nn.Linear(width, hidden_width), nn.ReLU(), nn.Dropout(dropout)]
            width = hidden_width
        if output_width is not None:
            layers.append(nn.Linear(width, output_width))
            width = output_width
        self.width = width
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(B, input_width)`` to ``(B, width)``."""
        outputs: Tensor = self.layers(inputs)
        return outputs
