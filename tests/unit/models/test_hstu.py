"""HSTU against loops over pairs of events, and its buckets of time by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twotower.features.spec import ModelInputs
from twotower.models.history import build_history
from twotower.models.hstu import HSTU, time_buckets

WIDTH, LENGTH, HIDDEN, HEADS = 4, 6, 8, 2
DAY = 86_400
# Of 6, 3, 1 and 0 events: within a minute, over years, two at the same time.
TIMES = [
    [1_000_000_000, 1_000_000_007, 1_000_000_055, 1_000_090_000, 1_300_000_000, 1_300_000_000],
    [0, 0, 0, 1_000, 2_000 + DAY, 2_000 + 90 * DAY],
    [0, 0, 0, 0, 0, 5],
    [0] * 6,
]


@pytest.fixture
def histories() -> tuple[Tensor, Tensor, Tensor]:
    events = torch.randn(
        4, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    mask = torch.arange(LENGTH) >= LENGTH - torch.tensor([[6], [3], [1], [0]])
    return events, mask, torch.tensor(TIMES)


def make(**settings: object) -> HSTU:
    """An encoder whose biases are large enough to be seen."""
    torch.manual_seed(0)
    given = {"hidden": HIDDEN, "max_length": 9, "num_heads": HEADS, "num_buckets": 40} | settings
    encoder = HSTU(input_width=WIDTH, **given).double().eval()
    for block in encoder.blocks:
        for bias in (block.distance_bias, block.time_bias):
            if bias is not None:
                torch.nn.init.normal_(bias)
        torch.nn.init.normal_(block.parts.weight)
    return encoder


def slow_hstu(encoder: HSTU, events: Tensor, times: list[int]) -> Tensor:
    """States (n, H) of one history, one query, head and key at a time."""
    states = encoder.project(events) * math.sqrt(HIDDEN) + encoder.positions[: len(events)]
    size = HIDDEN // HEADS
    for block in encoder.blocks:
        product = normalised(states, block.norm) @ block.parts.weight.T
        product = product / (1 + torch.exp(-product))
        gate, value, query, key = (product[:, n * HIDDEN : (n + 1) * HIDDEN] for n in range(4))
        mixed = torch.zeros_like(states)
        for head in range(HEADS):
            own = slice(head * size, (head + 1) * size)
            for row in range(len(events)):
                for column in range(row + 1):
                    score = float(query[row, own] @ key[column, own])
                    score += float(block.distance_bias[row - column])
                    if block.time_bias is not None:
                        seconds = max(1, times[row] - times[column])
                        bucket = min(39, math.floor(math.log(seconds) / 0.301))
                        score += float(block.time_bias[bucket])
                    weight = score / (1 + math.exp(-score)) / (row + 1)
                    mixed[row, own] += weight * value[column, own]
        gated = normalised(mixed, block.mixed_norm) * gate
        states = states + gated @ block.output.weight.T + block.output.bias
    return normalised(states, encoder.norm)


def normalised(states: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = states - states.mean(dim=1, keepdim=True)
    variance = (centred**2).mean(dim=1, keepdim=True)
    return centred / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


@pytest.mark.parametrize("time_bias", [True, False])
@torch.no_grad()
def test_against_loops(histories: tuple[Tensor, Tensor, Tensor], time_bias: bool) -> None:
    encoder, (events, mask, times) = make(time_bias=time_bias), histories
    every = encoder.every(events, mask, *([times] if time_bias else []))
    for row, count in enumerate([6, 3, 1, 0]):
        own = slice(LENGTH - count, None)
        expected = slow_hstu(encoder, events[row, own], TIMES[row][own])
        torch.testing.assert_close(every[row, own], expected)


@torch.no_grad()
def test_when_events_happened_matters_but_not_the_epoch(
    histories: tuple[Tensor, Tensor, Tensor],
) -> None:
    encoder, (events, mask, times) = make(), histories
    states = encoder(events, mask, times)
    later = encoder(events, mask, times + 12_345_678_901)
    torch.testing.assert_close(later, states)
    slower = encoder(events, mask, times * 3)
    differs = (slower - states).abs().amax(dim=1) > 1e-4
    assert differs.tolist() == [True, True, False, False]  # one event alone has no interval


@torch.no_grad()
def test_after_an_event_nothing_later_counts(histories: tuple[Tensor, Tensor, Tensor]) -> None:
    """Neither later events nor their times."""
    encoder, (events, mask, times) = make(), histories
    every = encoder.every(events, mask, times)
    for stop in range(1, LENGTH + 1):
        cut = encoder(events[:, :stop], mask[:, :stop], times[:, :stop])
        torch.testing.assert_close(every[:, stop - 1], cut)


def test_buckets_by_hand() -> None:
    """ln 2 = 0.69, ln 60 = 4.09, ln 3,600 = 8.19, ln 86,400 = 11.37, in steps of 0.301."""
    later = [0, 1, 2, 60, 3_600, DAY, 10**15]
    buckets = time_buckets(torch.tensor([[5, *(5 + seconds for seconds in later)]]), 64)
    assert buckets[0, 1:, 0].tolist() == [0, 0, 2, 13, 27, 37, 63]
    assert buckets[0, 0].tolist() == [0] * 8  # nothing lies before the first event
    assert time_buckets(torch.tensor([[0, DAY]]), 30)[0, 1].tolist() == [29, 0]


def test_buckets_at_their_edges() -> None:
    """The first whole second of each bucket, and the one before it, in exact arithmetic."""
    edges = [math.ceil(math.exp(0.301 * n)) for n in range(4, 60)]
    times = torch.tensor([[0, *edges]])
    assert time_buckets(times, 64)[0, 1:, 0].tolist() == list(range(4, 60))
    assert time_buckets(times - torch.tensor([[0] + [1] * 56]), 64)[0, 1:, 0].tolist() == list(
        range(3, 59)
    )


def test_times_are_given_when_they_are_read(histories: tuple[Tensor, Tensor, Tensor]) -> None:
    events, mask, times = histories
    with pytest.raises(ValueError, match="given 0 times, `time_bias` is True"):
        make()(events, mask)
    with pytest.raises(ValueError, match="given 1 times, `time_bias` is False"):
        make(time_bias=False)(events, mask, times)


def test_a_log_without_times_is_refused() -> None:
    inputs = ModelInputs(features=(), history_length=3, history_features=("item_id",))
    with pytest.raises(ValueError, match="HSTU reads the times of events, but the interactions"):
        build_history(HSTU, inputs, WIDTH)
    assert not build_history(make_without_times, inputs, WIDTH).reads_times


def make_without_times(*, input_width: int) -> HSTU:
    return HSTU(input_width=input_width, time_bias=False)
