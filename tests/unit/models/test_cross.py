"""Cross layers against loops over the paper's formulas in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from twotower.models.cross import (
    CrossNetwork,
    FullRankCross,
    LowRankCross,
    MixtureCross,
    full_rank,
    low_rank,
    mixture,
)

WIDTH, RANK, NUM_EXPERTS = 5, 3, 4

Vector = list[float]
Matrix = list[Vector]


def product(matrix: Matrix, vector: Vector) -> Vector:
    return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def full_rank_by_loop(layer: dict[str, list], x0: Vector, x: Vector) -> Vector:
    linear = product(layer["weight"], x)
    return [x0[i] * (linear[i] + layer["bias"][i]) for i in range(len(x))]


def low_rank_by_loop(layer: dict[str, list], x0: Vector, x: Vector) -> Vector:
    linear = product(layer["u"], product(transposed(layer["v"]), x))
    return [x0[i] * (linear[i] + layer["bias"][i]) for i in range(len(x))]


def mixture_by_loop(layer: dict[str, list], x0: Vector, x: Vector) -> Vector:
    gates = [math.exp(g) for g in product(layer["gate"], x)]
    result = [0.0] * len(x)
    for expert in range(len(gates)):
        inner = [math.tanh(z) for z in product(transposed(layer["v"][expert]), x)]
        inner = [math.tanh(z) for z in product(layer["c"][expert], inner)]
        linear = product(layer["u"][expert], inner)
        for i in range(len(x)):
            value = x0[i] * (linear[i] + layer["bias"][i])
            result[i] += gates[expert] / sum(gates) * value
    return result


LAYERS = {
    "full": (lambda: FullRankCross(WIDTH), full_rank_by_loop),
    "low": (lambda: LowRankCross(WIDTH, RANK), low_rank_by_loop),
    "mixture": (lambda: MixtureCross(WIDTH, RANK, NUM_EXPERTS), mixture_by_loop),
}
NETWORKS = {
    "full": partial(full_rank, num_layers=3),
    "low": partial(low_rank, num_layers=3, rank=RANK),
    "mixture": partial(mixture, num_layers=3, rank=RANK, num_experts=NUM_EXPERTS),
}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters drawn anew, biases too, in float64."""
    state = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=state, dtype=torch.float64))
    return module


def inputs(num_rows: int, seed: int = 1) -> Tensor:
    state = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, WIDTH, generator=state, dtype=torch.float64)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("num_rows", [1, 7])
def test_layer_against_the_loop(kind: str, num_rows: int) -> None:
    build, by_loop = LAYERS[kind]
    layer = randomised(build())
    plain = {name: parameter.tolist() for name, parameter in layer.named_parameters()}
    x0, x = inputs(num_rows, seed=1), inputs(num_rows, seed=2)
    expected = [by_loop(plain, *rows) for rows in zip(x0.tolist(), x.tolist(), strict=True)]
    outputs = layer(x0, x)
    assert outputs.shape == (num_rows, WIDTH)
    torch.testing.assert_close(
        outputs, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_network_against_the_loop(kind: str, gated: bool) -> None:
    network = randomised(NETWORKS[kind](WIDTH, gated=gated))
    assert isinstance(network, CrossNetwork)
    by_loop = LAYERS[kind][1]
    x0 = inputs(4)
    expected = []
    for row in x0.tolist():
        x = row
        for number, layer in enumerate(network.layers):
            added = by_loop({n: p.tolist() for n, p in layer.named_parameters()}, row, x)
            gates = [1.0] * WIDTH
            if gated:
                linear = product(network.gates[number].weight.tolist(), x)
                gates = [1 / (1 + math.exp(-z)) for z in linear]
            x = [x[i] + added[i] * gates[i] for i in range(WIDTH)]
        expected.append(x)
    assert len(network.layers) == 3
    torch.testing.assert_close(
        network(x0), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_batch_of_one_is_a_row_of_a_batch(kind: str, gated: bool) -> None:
    network = randomised(NETWORKS[kind](WIDTH, gated=gated))
    x0 = inputs(6)
    together = network(x0)
    for row in range(6):
        alone = network(x0[row : row + 1])
        assert alone.shape == (1, WIDTH)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_gets_a_gradient(kind: str, gated: bool) -> None:
    network = NETWORKS[kind](WIDTH, gated=gated)
    network(inputs(16).float()).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).all(), name


def test_low_rank_with_full_rank_is_full() -> None:
    low, full = randomised(LowRankCross(WIDTH, WIDTH)), FullRankCross(WIDTH).double()
    with torch.no_grad():
        full.weight.copy_(low.u @ low.v.T)
        full.bias.copy_(low.bias)
    x0, x = inputs(8, seed=1), inputs(8, seed=2)
    torch.testing.assert_close(low(x0, x), full(x0, x), rtol=1e-12, atol=1e-12)

    # And the other way: any full matrix is U V^T with U the matrix and V the identity.
    full = randomised(FullRankCross(WIDTH), seed=5)
    with torch.no_grad():
        low.u.copy_(full.weight)
        low.v.copy_(torch.eye(WIDTH))
        low.bias.copy_(full.bias)
    torch.testing.assert_close(low(x0, x), full(x0, x), rtol=1e-12, atol=1e-12)


def test_a_gated_layer_by_hand() -> None:
    """x0 = x = (1, 2): W x + b = (4, 1), times x0 is (4, 2); the gates are 3/4 and 1/2."""
    network = full_rank(2, num_layers=1, gated=True).double()
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
        network.layers[0].bias.copy_(torch.tensor([1.0, 0.0]))
        gate = [[math.log(3), 0.0], [2.0, -1.0]]
        network.gates[0].weight.copy_(torch.tensor(gate, dtype=torch.float64))
    x0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    expected = torch.tensor([[1 + 4 * 0.75, 2 + 2 * 0.5]], dtype=torch.float64)
    torch.testing.assert_close(network(x0), expected, rtol=1e-12, atol=1e-12)


def test_the_order_of_the_experts_does_not_matter() -> None:
    layer = randomised(MixtureCross(WIDTH, RANK, NUM_EXPERTS))
    x0, x = inputs(3, seed=1), inputs(3, seed=2)
    before = layer(x0, x)
    with torch.no_grad():
        for parameter in (layer.u, layer.c, layer.v, layer.gate):
            parameter.copy_(parameter[[2, 0, 3, 1]].clone())
    torch.testing.assert_close(layer(x0, x), before, rtol=1e-12, atol=1e-12)


def test_number_of_parameters() -> None:
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(FullRankCross(10)) == 10 * 10 + 10
    assert count(LowRankCross(10, 3)) == 2 * 10 * 3 + 10
    assert count(MixtureCross(10, 3, 2)) == 2 * (2 * 10 * 3 + 3 * 3 + 10) + 10


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_fresh_layers_keep_the_scale_of_wide_inputs(kind: str, gated: bool) -> None:
    # Weights drawn from N(0, 1) would blow inputs of this width up four-fold in three layers.
    torch.manual_seed(0)
    x0 = 0.05 * torch.randn(64, 624)
    assert NETWORKS[kind](624, gated=gated)(x0).std().item() == pytest.approx(0.05, rel=0.1)


def test_experts_start_apart_and_each_as_xavier_draws_one() -> None:
    torch.manual_seed(0)
    layer = MixtureCross(300, 50, 3)
    assert not torch.equal(layer.u[0], layer.u[1])
    for expert in layer.u:
        # Uniform Xavier: variance 2 / (300 + 50).
        assert expert.std().item() == pytest.approx(math.sqrt(2 / 350), rel=0.03)
