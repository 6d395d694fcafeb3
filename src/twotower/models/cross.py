"""Cross layers of DCN-v2: explicit products of features, one degree more with every layer.

With x_0 the input, x_l the output of layer l, * the elementwise product:

* full rank:   x_{l+1} = x_0 * (W x_l + b) + x_l
* low rank:    x_{l+1} = x_0 * (U (V^T x_l) + b) + x_l
* mixture:     x_{l+1} = sum_i G_i(x_l) [x_0 * (U_i tanh(C_i tanh(V_i^T x_l)) + b)] + x_l,
  where G is a softmax over the experts i of a linear map of x_l.

A layer computes what is added to x_l. With gates that is multiplied by sigmoid(W_g x_l), so that
every layer chooses which of its products go on; with full-rank layers this is the gated cross
network: x_{l+1} = x_0 * (W x_l + b) * sigmoid(W_g x_l) + x_l.

Wang et al. 2021, "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale
Learning to Rank Systems", equations 1 to 4. Wang et al. 2023, "Towards Deeper, Lighter and
Interpretable Cross Network for CTR Prediction", equation 1 (the gates).

Shapes: B rows, W width of the input, R rank, K experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from twotower.models.fused_cross import full_rank_stack


def full_rank_cross(x0: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a full-rank cross layer adds.

    Args:
        x0: Input of the network, ``(B, W)``.
        x: Output of the layer before, ``(B, W)``.
        weight: ``(W, W)``.
        bias: ``(W,)``.

    Returns:
        ``(B, W)``.
    """
    return x0 * (x @ weight.T + bias)  # (B, W)


def low_rank_cross(x0: Tensor, x: Tensor, u: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """What a low-rank cross layer adds.

    Args:
        x0: Input of the network, ``(B, W)``.
        x: Output of the layer before, ``(B, W)``.
        u: ``(W, R)``.
        v: ``(W, R)``.
        bias: ``(W,)``.

    Returns:
        ``(B, W)``.
    """
    projected = x @ v  # (B, R)
    return x0 * (projected @ u.T + bias)  # (B, W)


def mixture_cross(
    x0: Tensor, x: Tensor, u: Tensor, c: Tensor, v: Tensor, bias: Tensor, gate: Tensor
) -> Tensor:
    """What a cross layer of low-rank experts adds, all experts at once.

    The gates sum to one and x_0 and the bias are common to the experts, so they are applied once,
    after the weighted sum. Experts stand side by side in one matrix of what goes in and one of what
    comes out, so that each is one product.

    Args:
        x0: Input of the network, ``(B, W)``.
        x: Output of the layer before, ``(B, W)``.
        u: ``(K, W, R)``.
        c: ``(K, R, R)``.
        v: ``(K, W, R)``.
        bias: ``(W,)``.
        gate: ``(K, W)``.

    Returns:
        ``(B, W)``.
    """
    num_experts, width, rank = v.shape
    share = torch.softmax(x @ gate.T, dim=-1)  # (B, K)
    projected = x @ v.transpose(0, 1).reshape(width, num_experts * rank)  # (B, K R)
    inner = torch.tanh(projected.reshape(-1, num_experts, rank))  # (B, K, R)
    inner = torch.tanh(torch.einsum("bkr,ksr->bks", inner, c))  # (B, K, R)
    weighed = (share.unsqueeze(-1) * inner).flatten(start_dim=1)  # (B, K R)
    mixed = weighed @ u.transpose(1, 2).reshape(num_experts * rank, width)  # (B, W)
    return x0 * (mixed + bias)  # (B, W)


class FullRankCross(nn.Module):
    """A full-rank cross layer: W^2 + W parameters.

    Args:
        width: Width W of the input.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = _xavier(width, width)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """What is added to ``x`` ``(B, W)`` for ``x0`` ``(B, W)``: ``(B, W)``."""
        return full_rank_cross(x0, x, self.weight, self.bias)


class LowRankCross(nn.Module):
    """A low-rank cross layer: 2 W R + W parameters.

    Args:
        width: Width W of the input.
        rank: Rank R of the product; a quarter of the width is where the paper saw no loss.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.u = _xavier(width, rank)
        self.v = _xavier(width, rank)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """What is added to ``x`` ``(B, W)`` for ``x0`` ``(B, W)``: ``(B, W)``."""
        return low_rank_cross(x0, x, self.u, self.v, self.bias)


class MixtureCross(nn.Module):
    """A cross layer of gated low-rank experts: K (2 W R + R^2 + W) + W parameters.

    Args:
        width: Width W of the input.
        rank: Rank R of an expert.
        num_experts: How many experts K.
    """

    def __init__(self, width: int, rank: int, num_experts: int) -> None:
        super().__init__()
        self.u = _stacked_xavier(num_experts, width, rank)
        self.c = _stacked_xavier(num_experts, rank, rank)
        self.v = _stacked_xavier(num_experts, width, rank)
        self.gate = _xavier(num_experts, width)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """What is added to ``x`` ``(B, W)`` for ``x0`` ``(B, W)``: ``(B, W)``."""
        return mixture_cross(x0, x, self.u, self.c, self.v, self.bias, self.gate)


class Gate(nn.Module):
    """Which of a cross layer's products go on: W^2 parameters.

    Args:
        width: Width W of the input.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = _xavier(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shares ``(B, W)`` in (0, 1) for ``(B, W)``."""
        return torch.sigmoid(x @ self.weight.T)  # (B, W)


class CrossNetwork(nn.Module):
    """Cross layers one after the other; the degree of the products grows by one with each.

    Args:
        layers: Modules ``(x0, x)`` to what is added to ``x``.
        gates: One module ``x`` to a factor of that for each layer; none for no gates.
    """

    def __init__(self, *, layers: Sequence[nn.Module], gates: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.gates = nn.ModuleList(gates)

    def forward(self, x0: Tensor) -> Tensor:
        """Cross ``(B, W)`` inputs with themselves to ``(B, W)``."""
        full_rank = [layer for layer in self.layers if isinstance(layer, FullRankCross)]
        if len(full_rank) == len(self.layers) and not self.gates and _is_trained(x0):
            weights, biases = zip(*((layer.weight, layer.bias) for layer in full_rank), strict=True)
            return full_rank_stack(x0, weights, biases)
        x = x0
        for number, layer in enumerate(self.layers):
            added = layer(x0, x)  # (B, W)
            x = x + (added * self.gates[number](x) if self.gates else added)
        return x


def full_rank(width: int, *, num_layers: int, gated: bool = False) -> CrossNetwork:
    """A network of `FullRankCross` layers for inputs of a width; with gates or without."""
    return _network(width, lambda: FullRankCross(width), num_layers, gated)


def low_rank(width: int, *, num_layers: int, rank: int, gated: bool = False) -> CrossNetwork:
    """A network of `LowRankCross` layers for inputs of a width; with gates or without."""
    return _network(width, lambda: LowRankCross(width, rank), num_layers, gated)


def mixture(
    width: int, *, num_layers: int, rank: int, num_experts: int, gated: bool = False
) -> CrossNetwork:
    """A network of `MixtureCross` layers for inputs of a width; with gates or without."""
    return _network(width, lambda: MixtureCross(width, rank, num_experts), num_layers, gated)


def _network(
    width: int, layer: Callable[[], nn.Module], num_layers: int, gated: bool
) -> CrossNetwork:
    layers = [layer() for _ in range(num_layers)]
    return CrossNetwork(layers=layers, gates=[Gate(width) for _ in layers] if gated else ())


def _is_trained(x0: Tensor) -> bool:
    """Whether a gradient is wanted, in the precision of the inputs."""
    return torch.is_grad_enabled() and not torch.is_autocast_enabled(x0.device.type)


def _xavier(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, columns)))


def _stacked_xavier(num_experts: int, rows: int, columns: int) -> nn.Parameter:
    # Expert by expert: of a three-dimensional tensor Xavier would take the wrong fans.
    return nn.Parameter(torch.stack([_xavier(rows, columns).data for _ in range(num_experts)]))
