"""Heads by hand, against a loop in float64, and at the end of the ranker."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.unit.models.test_dcn import CROSSES, INPUTS, STRUCTURES, batch
from twotower.models.dcn import DCNv2
from twotower.models.history import MeanPooling
from twotower.models.mlp import MLP
from twotower.models.multitask import MMoE, SharedBottom

HEADS = {"shared": SharedBottom, "mmoe": partial(MMoE, num_experts=3, expert_width=4)}


def test_shared_bottom_by_hand() -> None:
    heads = SharedBottom(input_width=2, num_tasks=2)
    with torch.no_grad():
        heads.logits.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.5]]))
        heads.logits.bias.copy_(torch.tensor([0.5, 0.0]))
    assert heads(torch.tensor([[3.0, 4.0]])).tolist() == [[11.5, -1.0]]


def test_experts_by_hand() -> None:
    """x = 2. Experts relu(2), relu(-2), so 2 and 0. The gates of the first task are equal, those of
    the second 3 to 1: the tasks see 1 and 1.5, which their towers double and negate.
    """
    heads = MMoE(input_width=1, num_tasks=2, num_experts=2, expert_width=1)
    with torch.no_grad():
        heads.experts.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        heads.experts.bias.zero_()
        heads.gates.weight.copy_(torch.tensor([[0.0], [0.0], [math.log(3) / 2], [0.0]]))
        for tower, weight in zip(heads.towers, (2.0, -1.0), strict=True):
            tower.weight.fill_(weight)
            tower.bias.zero_()
    torch.testing.assert_close(heads(torch.tensor([[2.0]])), torch.tensor([[2.0, -1.5]]))


def experts_by_loop(heads: MMoE, x: list[float], num_tasks: int, width: int) -> list[float]:
    def linear(weight: Tensor, bias: Tensor | None, given: list[float]) -> list[float]:
        rows = weight.tolist()
        shift = [0.0] * len(rows) if bias is None else bias.tolist()
        return [
            sum(w * g for w, g in zip(row, given, strict=True)) + b
            for row, b in zip(rows, shift, strict=True)
        ]

    count = heads.num_experts
    flat = [max(v, 0.0) for v in linear(heads.experts.weight, heads.experts.bias, x)]
    experts = [flat[k * width : (k + 1) * width] for k in range(count)]
    gates = linear(heads.gates.weight, None, x)
    logits = []
    for task in range(num_tasks):
        shares = [math.exp(g) for g in gates[task * count : (task + 1) * count]]
        mixed = [
            sum(s / sum(shares) * e[i] for s, e in zip(shares, experts, strict=True))
            for i in range(width)
        ]
        logits += linear(heads.towers[task].weight, heads.towers[task].bias, mixed)
    return logits


@pytest.mark.parametrize("num_rows", [1, 5])
def test_experts_against_the_loop(num_rows: int) -> None:
    torch.manual_seed(0)
    heads = MMoE(input_width=6, num_tasks=2, num_experts=3, expert_width=4).double()
    x = torch.randn(num_rows, 6, dtype=torch.float64)
    expected = [experts_by_loop(heads, row, num_tasks=2, width=4) for row in x.tolist()]
    expected_logits = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(heads(x), expected_logits, rtol=1e-10, atol=1e-10)


def ranker(structure: str, heads: str, tasks: tuple[str, ...]) -> DCNv2:
    torch.manual_seed(0)
    return DCNv2(
        inputs=replace(INPUTS, tasks=tasks),
        embedding_dim=4,
        structure=partial(STRUCTURES[structure], heads=HEADS[heads]),
        cross=CROSSES["full"],
        deep=partial(MLP, hidden=[16, 8]),
        history=MeanPooling,
        retrieval_score=True,
    )


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("heads", HEADS)
def test_a_logit_a_task_and_the_first_is_ranked_by(structure: str, heads: str) -> None:
    model, columns = ranker(structure, heads, ("bought", "liked")), batch(6)
    logits = model.logits(columns)
    assert logits.shape == (6, 3)
    assert torch.equal(model(columns), logits[:, 0])
    assert (logits[:, 0] != logits[:, 1]).all()
    assert ranker(structure, heads, ()).logits(columns).shape == (6, 1)


@pytest.mark.parametrize("heads", HEADS)
def test_every_parameter_gets_a_gradient(heads: str) -> None:
    model = ranker("parallel", heads, ("bought",))
    model.logits(batch(64)).square().sum().backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.to_dense().any()
    ]
    assert without == []


def test_the_task_that_is_ranked_by_does_not_move_the_heads_of_others() -> None:
    model = ranker("stacked", "shared", ("bought",))
    model(batch(8)).sum().backward()
    gradient = model.body.heads.logits.weight.grad
    assert gradient[0].any()
    assert not gradient[1].any()


@pytest.mark.parametrize("name", ["num_experts", "expert_width"])
def test_no_experts_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"mixture of experts: `{name}` must be at least 1, got 0"):
        MMoE(input_width=3, num_tasks=1, **{name: 0})
