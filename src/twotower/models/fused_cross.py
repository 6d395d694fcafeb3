"""A stack of full-rank cross layers as one function, with its gradient written out.

With h_l = W_l x_l + b_l, x_{l+1} = x_l + x_0 * h_l, g the gradient of x_{l+1} and d = g * x_0:

    dW_l = d^T x_l,    db_l = sum d,    dx_l = g + d W_l,    dx_0 += g * h_l.

The gradient of x_0 is a sum over all layers and that of x_l has g added to a product: both are
summed in place here, where derivatives layer by layer carry each term through memory by itself. A
third of the passes over (B, W) matrices are left out; the products are the same.

Shapes: B rows, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def full_rank_stack(x0: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Cross inputs with themselves; see `twotower.models.cross.full_rank_cross`.

    Args:
        x0: ``(B, W)``.
        weights: ``(W, W)`` of every layer, at least one.
        biases: ``(W,)`` of every layer.

    Returns:
        ``(B, W)``, differentiable once.
    """
    crossed: Tensor = _FullRankStack.apply(x0, *weights, *biases)  # type: ignore[no-untyped-call]
    return crossed


class _FullRankStack(torch.autograd.Function):
    """Forward and backward through all layers."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, *parameters: Tensor) -> Tensor:  # noqa: ANN401
        """``(B, W)`` inputs through all layers; the parameters are all weights, then all biases."""
        num_layers = len(parameters) // 2
        weights, biases = parameters[:num_layers], parameters[num_layers:]
        inputs, linear = [x0], []
        for weight, bias in zip(weights, biases, strict=True):
            linear.append(torch.addmm(bias, inputs[-1], weight.T))  # (B, W)
            inputs.append(torch.addcmul(inputs[-1], x0, linear[-1]))  # (B, W)
        ctx.save_for_backward(*weights, *inputs[:-1], *linear)
        return inputs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        """Gradients of the inputs, all weights and all biases."""
        num_layers = len(ctx.saved_tensors) // 3
        weights = ctx.saved_tensors[:num_layers]
        inputs = ctx.saved_tensors[num_layers : 2 * num_layers]
        linear = ctx.saved_tensors[2 * num_layers :]
        of_weights, of_biases = [], []
        of_x0 = torch.mul(gradient, linear[-1])  # (B, W)
        own = gradient  # (B, W)
        for weight, x, h in zip(reversed(weights), reversed(inputs), reversed(linear), strict=True):
            of_linear = own * inputs[0]  # (B, W)
            if h is not linear[-1]:
                of_x0.addcmul_(own, h)
            of_weights.append(torch.mm(of_linear.T, x))  # (W, W)
            of_biases.append(of_linear.sum(dim=0))
            # Products that are added to what is there are slower than both by themselves.
            own = torch.mm(of_linear, weight).add_(own)  # (B, W)
        return of_x0.add_(own), *reversed(of_weights), *reversed(of_biases)
