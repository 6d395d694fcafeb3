"""The ranker's loss and the undoing of negative sampling."""

from __future__ import annotations

import math

import pytest
import torch

from twotower.losses.ranking import BinaryLogLoss, undo_sampling


def test_log_loss_by_hand() -> None:
    # sigmoid(ln 3) = 3/4: -ln 0.75 for the positive, -ln 0.25 for the negative.
    logits = torch.full((2,), math.log(3))
    loss = BinaryLogLoss()(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((-math.log(0.75) - math.log(0.25)) / 2)


def test_weights() -> None:
    logits = torch.full((2,), math.log(3))
    loss = BinaryLogLoss()(logits, torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx((-3 * math.log(0.75) - math.log(0.25)) / 4)


def test_large_logits_and_half_precision_stay_exact() -> None:
    logits = torch.tensor([100.0, -100.0, 20.0], dtype=torch.bfloat16)
    losses = [
        BinaryLogLoss()(logits[i : i + 1], label).item()
        for i, label in enumerate(torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.bfloat16))
    ]
    assert losses[:2] == [100, 100]
    assert losses[2] == pytest.approx(math.log1p(math.exp(-20)), rel=1e-4)


def test_gradient_is_probability_minus_label() -> None:
    logits = torch.tensor([math.log(3), 0.0], requires_grad=True)
    BinaryLogLoss()(logits, torch.tensor([1.0, 0.0])).backward()
    assert logits.grad is not None
    # Half of 3/4 - 1, half of 1/2 - 0.
    assert logits.grad.tolist() == pytest.approx([-0.125, 0.25])


@pytest.mark.parametrize("rate", [1.0, 0.1, 0.003])
@pytest.mark.parametrize("probability", [0.5, 0.02, 1e-5])
def test_undoing_gives_the_probability_before_sampling(probability: float, rate: float) -> None:
    # Bayes: of 1 event, p positives and (1 - p) r negatives are left.
    among_sampled = probability / (probability + (1 - probability) * rate)
    logit = torch.tensor(math.log(among_sampled / (1 - among_sampled)), dtype=torch.float64)
    assert undo_sampling(logit, rate).sigmoid().item() == pytest.approx(probability, rel=1e-9)


def test_undoing_keeps_the_order() -> None:
    logits = torch.tensor([[0.3, -2.0], [5.0, 0.1]])
    undone = undo_sampling(logits, 0.01)
    assert undone.shape == logits.shape
    assert torch.equal(undone.flatten().argsort(), logits.flatten().argsort())


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.01, math.nan])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"`negative_rate` must lie in \(0, 1\], got"):
        undo_sampling(torch.zeros(1), rate)
