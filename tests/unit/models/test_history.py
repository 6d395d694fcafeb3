"""History encoders by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from twotower.models.history import MeanPooling, RecentAndMean

EVENTS = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]]]).repeat(3, 1, 1)
MASK = torch.tensor([[True, True, True], [False, False, True], [False, False, False]])


def test_mean_by_hand() -> None:
    encoder = MeanPooling(input_width=2)
    assert encoder.width == 2
    assert encoder(EVENTS, MASK).tolist() == [[3, 30], [6, 60], [0, 0]]


def test_recent_and_mean_by_hand() -> None:
    encoder = RecentAndMean(input_width=2, num_recent=2)
    assert encoder.width == 6
    assert encoder(EVENTS, MASK).tolist() == [
        [2, 20, 6, 60, 3, 30],
        [0, 0, 6, 60, 6, 60],
        [0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    "encoder", [MeanPooling(input_width=2), RecentAndMean(input_width=2, num_recent=2)]
)
def test_what_stands_in_the_padding_does_not_matter(encoder: nn.Module) -> None:
    other = torch.where(MASK.unsqueeze(-1), EVENTS, 77.0)
    assert torch.equal(encoder(other, MASK), encoder(EVENTS, MASK))
    longer = torch.cat([torch.full((3, 4, 2), 5.0), EVENTS], dim=1)
    longer_mask = torch.cat([torch.zeros(3, 4, dtype=torch.bool), MASK], dim=1)
    assert torch.equal(encoder(longer, longer_mask), encoder(EVENTS, MASK))


@pytest.mark.parametrize(
    "encoder", [MeanPooling(input_width=2), RecentAndMean(input_width=2, num_recent=1)]
)
def test_padding_has_no_gradient(encoder: nn.Module) -> None:
    events = EVENTS.clone().requires_grad_()
    encoder(events, MASK).sum().backward()
    assert events.grad is not None
    assert (events.grad[~MASK] == 0).all()
    assert (events.grad[MASK] != 0).all()


def test_recent_needs_an_event_and_enough_columns() -> None:
    with pytest.raises(ValueError, match="`num_recent` must be at least 1, got 0"):
        RecentAndMean(input_width=2, num_recent=0)
    with pytest.raises(ValueError, match="`num_recent` is 4 but histories are 3 events long"):
        RecentAndMean(input_width=2, num_recent=4)(EVENTS, MASK)
