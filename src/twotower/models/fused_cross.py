"""A stack of full-rank cross layers as one function, with its gradient written out.

With h_l = W_l x_l + b_l, x_{l+1} = x_l + x_0 * h_l, g the gradient of x_{l+1} and d = g * x_0:

    dW_l = d^T x_l,    db_l = sum d,    dx_l = g + d W_l,    dx_0 += g * h_l.

The gradient of x_0 is a sum over all layers and that of x_l has g added to a product: both are
summed in place here, where derivatives layer by layer carry each term through memory by itself. A
third of the passes over (B, W) matrices are left out; the products are the same.

Rows that do not begin where cache lines do make products slower, on a CPU by 7 %, so they are
filled up. That leaves room for the biases: with a one behind x_0, b_l behind the columns of W_l and
no further rows in it, h_l has its bias, and is zero in the further columns, so that the one is
there in every x_l. The gradient of b_l is a column of that of W_l then.

Shapes: B rows, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

LINE = 16  # float32 numbers of a cache line


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


def _filled(
    x0: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor | None]]:
    """Inputs ``(B, W)``, weights ``(W, W)`` and biases ``(W,)``, of a width of whole cache lines.

    Biases that found room are None. What is exported keeps its width.
    """
    rows, width = x0.shape
    more = -width % LINE
    if not more or torch.compiler.is_exporting():
        return x0, weights, biases
    one, zeros = x0.new_ones(rows, 1), x0.new_zeros(rows, more - 1)
    pairs = zip(weights, biases, strict=True)
    wider = [torch.cat([weight, bias.unsqueeze(1)], dim=1) for weight, bias in pairs]
    filled = [functional.pad(weight, (0, more - 1, 0, more)) for weight in wider]
    return torch.cat([x0, one, zeros], dim=1), filled, [None] * len(biases)


class _FullRankStack(torch.autograd.Function):
    """Forward and backward through all layers."""

    @staticmethod
    def forward(ctx: Any, x0: Tensor, *parameters: Tensor) -> Tensor:  # noqa: ANN401
        """``(B, W)`` inputs through all layers; the parameters are all weights, then all biases."""
        num_layers, width = len(parameters) // 2, x0.shape[1]
        x0, weights, biases = _filled(x0, parameters[:num_layers], parameters[num_layers:])
        inputs: list[Tensor] = [x0]
        linear: list[Tensor] = []
        for weight, bias in zip(weights, biases, strict=True):
            if linear:
                inputs.append(torch.addcmul(inputs[-1], x0, linear[-1]))
            x, turned = inputs[-1], weight.T
            linear.append(torch.mm(x, turned) if bias is None else torch.addmm(bias, x, turned))
        ctx.save_for_backward(*weights, *inputs, *linear)
        ctx.width = width
        return torch.addcmul(*(part[:, :width] for part in (inputs[-1], x0, linear[-1])))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        """Gradients of the inputs, all weights and all biases."""
        num_layers, width = len(ctx.saved_tensors) // 3, ctx.width
        weights = ctx.saved_tensors[:num_layers]
        inputs = ctx.saved_tensors[num_layers : 2 * num_layers]
        linear = [part[:, :width] for part in ctx.saved_tensors[2 * num_layers :]]
        of_weights, of_biases = [], []
        of_x0 = torch.mul(gradient, linear[-1])  # (B, W)
        own = gradient  # (B, W)
        filled = torch.empty_like(inputs[0])
        filled[:, width:] = 0
        of_linear = filled[:, :width]  # (B, W), d
        for weight, x, h in zip(reversed(weights), reversed(inputs), reversed(linear), strict=True):
            torch.mul(own, inputs[0][:, :width], out=of_linear)
            if h is not linear[-1]:
                of_x0.addcmul_(own, h)
            of_weight = torch.mm(filled.T, x)
            of_weights.append(of_weight[:width, :width].contiguous())
            has_bias = len(of_weight) > width
            of_bias = of_weight[:width, width].contiguous() if has_bias else of_linear.sum(dim=0)
            of_biases.append(of_bias)  # (W,)
            # Products that are added to what is there are slower than both by themselves.
            own = torch.mm(filled, weight)[:, :width].add_(own)  # (B, W)
        return of_x0.add_(own), *reversed(of_weights), *reversed(of_biases)
