"""A plain multi-layer perceptron: linear, batch norm if asked for, ReLU, dropout, repeated."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class MLP(nn.Module):
    """Hidden layers with ReLU, then, if asked for, one linear layer without.

    Args:
        input_width: Width of the input.
        hidden: Widths of the hidden layers; may be empty.
        dropout: Share of every hidden layer's outputs that is dropped in training.
        output_width: Width of a last linear layer; None ends with the last hidden layer.
        batch_norm: Whether hidden layers are normalised over the batch before the ReLU (Ioffe and
            Szegedy 2015, "Batch Normalization").

    Raises:
        ValueError: When a layer would have no outputs.
    """

    def __init__(
        self,
        *,
        input_width: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
        output_width: int | None = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = [*hidden, *([] if output_width is None else [output_width])]
        if min(widths, default=1) < 1:
            raise ValueError(f"layers of a model must be at least 1 wide, got {widths}")
        layers: list[nn.Module] = []
        width = input_width
        for hidden_width in hidden:
            layers.append(nn.Linear(width, hidden_width))
            if batch_norm:
                layers.append(_BatchNorm(hidden_width))
            layers += [nn.ReLU(), nn.Dropout(dropout)]
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


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm; a batch of one row, which has no variance, is normalised as in evaluation."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(B, H)`` to ``(B, H)``."""
        if self.training and len(inputs) == 1:
            mean, variance = self.running_mean, self.running_var
            return functional.batch_norm(
                inputs, mean, variance, self.weight, self.bias, eps=self.eps
            )
        return super().forward(inputs)
