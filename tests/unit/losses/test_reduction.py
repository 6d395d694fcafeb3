"""The weighted mean by hand."""

from __future__ import annotations

import torch

from twotower.losses.reduction import weighted_mean


def test_equal_weights() -> None:
    assert weighted_mean(torch.tensor([1.0, 2.0, 6.0]), None).item() == 3


def test_weights_by_hand_and_their_scale_does_not_matter() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0])
    # Weights 1 and 3: 19 / 4.
    assert weighted_mean(losses, torch.tensor([1.0, 0.0, 3.0])).item() == 4.75
    assert weighted_mean(losses, torch.tensor([2, 0, 6])).item() == 4.75


def test_no_weight_at_all_gives_zero_and_no_gradient() -> None:
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = weighted_mean(losses, torch.zeros(2))
    mean.backward()
    assert mean.item() == 0
    assert losses.grad is not None
    assert losses.grad.tolist() == [0, 0]
