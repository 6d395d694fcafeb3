"""Encoders with weights of their own, against slow loops and by what must not matter."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from twotower.models import sequence
from twotower.models.attention_pooling import AttentionPooling
from twotower.models.gru import GRU
from twotower.models.hstu import HSTU
from twotower.models.sequence import left_aligned
from twotower.models.transformer import CausalTransformer

WIDTH, LENGTH = 4, 6
TRANSFORMER = partial(CausalTransformer, hidden=8, max_length=12, num_heads=2, expansion=2)
ENCODERS = {
    "attention": partial(AttentionPooling, hidden=3),
    "gru": partial(GRU, hidden=5, num_layers=2),
    "transformer": partial(TRANSFORMER, num_blocks=2),
    "transformer_without_projection": partial(TRANSFORMER, hidden=WIDTH),
    "hstu": lambda **given: Timed(HSTU(hidden=8, max_length=12, num_heads=2, **given)),
    "hstu_without_times": partial(HSTU, hidden=WIDTH, max_length=12, time_bias=False),
}
IN_ORDER = [name for name in ENCODERS if name != "attention"]


class Timed(nn.Module):
    """An encoder that reads times, when an event happens written in the event itself."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.width = encoder, encoder.width

    def every(self, events: Tensor, mask: Tensor) -> Tensor:
        return self.encoder.every(events, mask, times_of(events))

    def forward(self, events: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(events, mask, times_of(events))


def times_of(events: Tensor) -> Tensor:
    return (events[..., 0] * 1e5).long()  # up to days apart


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = ENCODERS[name](input_width=WIDTH).to(dtype).eval()
    return module


def histories(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Of 6, 3, 1 and 0 events; what stands in the padding is no zero."""
    generator = torch.Generator().manual_seed(1)
    events = torch.randn(4, LENGTH, WIDTH, dtype=dtype, generator=generator)
    counts = torch.tensor([[6], [3], [1], [0]])
    return events, torch.arange(LENGTH) >= LENGTH - counts


def lists(events: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[kept] for row, kept in zip(events, mask, strict=True)]


class TestOracles:
    def test_attention_pooling(self) -> None:
        encoder, (events, mask) = make("attention"), histories()
        outputs = encoder(events, mask)
        first, last = encoder.weight[0], encoder.weight[2]
        for own, output in zip(lists(events, mask), outputs, strict=True):
            logits = [float(last.weight @ torch.tanh(first.weight @ e + first.bias)) for e in own]
            total = sum(map(math.exp, logits))
            expected = sum(
                (math.exp(one) / total * e for one, e in zip(logits, own, strict=True)),
                torch.zeros(WIDTH, dtype=torch.float64),
            )
            torch.testing.assert_close(output, expected)

    def test_gru(self) -> None:
        """Cell by cell, as the formulas of Cho et al. 2014 have it."""
        torch.manual_seed(0)
        encoder = GRU(input_width=WIDTH, hidden=5).double().eval()
        events, mask = histories()
        every = encoder.every(events, mask)
        weights = dict(encoder.layers.named_parameters())
        for row, own in enumerate(lists(events, mask)):
            state = torch.zeros(5, dtype=torch.float64)
            for place, event in enumerate(own):
                given = weights["weight_ih_l0"] @ event + weights["bias_ih_l0"]
                kept = weights["weight_hh_l0"] @ state + weights["bias_hh_l0"]
                reset, update = (
                    torch.sigmoid(given[part] + kept[part]) for part in (slice(0, 5), slice(5, 10))
                )
                new = torch.tanh(given[10:] + reset * kept[10:])
                state = (1 - update) * new + update * state
                torch.testing.assert_close(every[row, LENGTH - len(own) + place], state)

    @pytest.mark.parametrize("name", ["transformer", "transformer_without_projection"])
    def test_transformer(self, name: str) -> None:
        encoder, (events, mask) = make(name), histories()
        every = encoder.every(events, mask)
        for row, own in enumerate(lists(events, mask)):
            states = slow_transformer(encoder, own)
            torch.testing.assert_close(every[row, LENGTH - len(own) :], states)


def slow_transformer(encoder: nn.Module, events: Tensor) -> Tensor:
    """States (n, H) of one history, one query, head and key at a time."""
    width = encoder.width
    states = encoder.project(events) * math.sqrt(width) + encoder.positions[: len(events)]
    for block in encoder.blocks:
        heads, size = block.num_heads, width // block.num_heads
        normed = normalised(states, block.attention_norm)
        mixed = torch.zeros_like(states)
        product = normed @ block.query_key_value.weight.T + block.query_key_value.bias
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            query, key, value = (product[:, n * width : (n + 1) * width][:, own] for n in range(3))
            for place in range(len(events)):
                logits = [float(query[place] @ key[n]) / math.sqrt(size) for n in range(place + 1)]
                total = sum(map(math.exp, logits))
                for n, logit in enumerate(logits):
                    mixed[place, own] += math.exp(logit) / total * value[n]
        states = states + mixed @ block.output.weight.T + block.output.bias
        norm, first, _, _, second, _ = block.perceptron
        inner = normalised(states, norm) @ first.weight.T + first.bias
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        states = states + inner @ second.weight.T + second.bias
    return normalised(states, encoder.norm)


def normalised(states: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = states - states.mean(dim=1, keepdim=True)
    variance = (centred**2).mean(dim=1, keepdim=True)
    return centred / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


class TestWhatMustNotMatter:
    @pytest.mark.parametrize("name", ENCODERS)
    def test_padding(self, name: str) -> None:
        encoder, (events, mask) = make(name), histories()
        expected = encoder(events, mask)
        assert expected.shape == (4, encoder.width)
        other = torch.where(mask.unsqueeze(-1), events, 77.0)
        torch.testing.assert_close(encoder(other, mask), expected)
        longer = torch.cat([torch.full((4, 5, WIDTH), 9.0, dtype=torch.float64), events], dim=1)
        longer_mask = torch.cat([torch.zeros(4, 5, dtype=torch.bool), mask], dim=1)
        torch.testing.assert_close(encoder(longer, longer_mask), expected)

    @pytest.mark.parametrize("name", ENCODERS)
    def test_the_rest_of_the_batch(self, name: str) -> None:
        encoder, (events, mask) = make(name), histories()
        expected = encoder(events, mask)
        for row in range(len(events)):
            one = slice(row, row + 1)
            torch.testing.assert_close(encoder(events[one], mask[one]), expected[one])

    @pytest.mark.parametrize("name", IN_ORDER)
    def test_what_comes_later(self, name: str) -> None:
        """After every event the state is that of the history cut there."""
        encoder, (events, mask) = make(name), histories()
        every = encoder.every(events, mask)
        for stop in range(1, LENGTH + 1):
            cut = encoder(events[:, :stop], mask[:, :stop])
            torch.testing.assert_close(every[:, stop - 1], cut)

    @pytest.mark.parametrize("name", IN_ORDER)
    def test_which_histories_are_encoded_together(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """States and gradients of blocks of two are those of all at once."""
        monkeypatch.setattr(sequence, "ROWS_OF_A_BLOCK", 2)
        encoder, events = make(name), torch.randn(9, LENGTH, WIDTH, dtype=torch.float64)
        counts = torch.tensor([2, 6, 0, 3, 1, 0, 5, 3, 0]).unsqueeze(1)
        mask = torch.arange(LENGTH) >= LENGTH - counts
        weights = torch.randn(9, LENGTH, encoder.width, dtype=torch.float64)
        found = []
        for states in (
            encoder.every(events, mask),
            sequence.every_by_length(encoder, events, mask),
        ):
            encoder.zero_grad()
            (states * weights).sum().backward()
            found.append([states.detach(), *(p.grad.clone() for p in encoder.parameters())])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)

    def test_the_order_for_attention_pooling(self) -> None:
        encoder, (events, mask) = make("attention"), histories()
        torch.testing.assert_close(encoder(events.flip(1), mask.flip(1)), encoder(events, mask))


@pytest.mark.parametrize("name", IN_ORDER)
def test_the_order_matters(name: str) -> None:
    encoder, (events, _) = make(name), histories()
    whole = torch.ones(4, LENGTH, dtype=torch.bool)
    swapped = events[:, [1, 0, 2, 3, 4, 5]]
    difference = (encoder(swapped, whole) - encoder(events, whole)).abs().amax(dim=1)
    assert (difference > 1e-4).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_empty_history_is_zeros(name: str) -> None:
    encoder, (events, mask) = make(name), histories()
    assert (encoder(events, mask)[3] == 0).all()
    nobody = encoder(events[3:], mask[3:])
    assert torch.equal(nobody, torch.zeros_like(nobody))


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients(name: str) -> None:
    """Every weight gets one, padding gets none, and an empty history makes no NaN."""
    encoder, (events, mask) = make(name), histories()
    events.requires_grad_()
    generator = torch.Generator().manual_seed(2)
    encoder(events, mask).mul(torch.randn(4, encoder.width, generator=generator)).sum().backward()
    assert events.grad is not None
    assert (events.grad[~mask] == 0).all()
    assert (events.grad[mask].abs().sum(dim=1) > 0).all()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert (parameter.grad != 0).any(), parameter_name


@pytest.mark.parametrize("build", [TRANSFORMER, partial(HSTU, time_bias=False)])
def test_dropout_is_for_training_alone(build: partial[nn.Module]) -> None:
    encoder = build(input_width=WIDTH, dropout=0.5).double()
    events, mask = histories()
    assert not torch.equal(encoder(events, mask), encoder(events, mask))
    encoder.eval()
    assert torch.equal(encoder(events, mask), encoder(events, mask))


def test_places_by_hand() -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    places = left_aligned(mask)
    assert places.order.tolist() == [[2, 3, 0, 1], [0, 1, 2, 3]]
    events = torch.tensor([[[10], [11], [12], [13]]]).expand(2, -1, -1)
    aligned = places.aligned(events)
    assert aligned.squeeze(-1).tolist() == [[12, 13, 10, 11], [10, 11, 12, 13]]
    assert places.back(aligned).tolist() == events.tolist()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(AttentionPooling, hidden=0), "`hidden` must be at least 1, got 0"),
        (partial(GRU, hidden=0), "must be at least 1, got 0 and 1"),
        (partial(CausalTransformer, num_blocks=0), "transformer: `num_blocks` must be at least 1"),
        (partial(CausalTransformer, hidden=8, num_heads=3), "`num_heads`=3 does not divide"),
        (partial(HSTU, num_buckets=0), "HSTU: `num_buckets` must be at least 1, got 0"),
        (partial(HSTU, hidden=8, num_heads=3), "HSTU: `num_heads`=3 does not divide `hidden`=8"),
    ],
)
def test_numbers_out_of_range(build: partial[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(input_width=WIDTH)


@pytest.mark.parametrize("encoder_class", [CausalTransformer, HSTU])
def test_more_events_than_positions(encoder_class: type[nn.Module]) -> None:
    encoder = encoder_class(input_width=WIDTH, max_length=5)
    with pytest.raises(ValueError, match="histories are 6 events long but `max_length` is 5"):
        encoder(*histories(torch.float32))


@pytest.mark.parametrize("name", ENCODERS)
def test_export_for_any_batch_size(name: str, tmp_path: Path) -> None:
    encoder = make(name, torch.float32)
    events, mask = histories(torch.float32)
    size = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        encoder,
        (events[:3], mask[:3]),
        dynamo=True,
        dynamic_shapes=({0: size}, {0: size}),
        input_names=["events", "mask"],
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    for rows in (slice(0, 4), slice(1, 2), slice(3, 4)):
        given = {"events": events[rows].numpy(), "mask": mask[rows].numpy()}
        (exported,) = session.run(None, given)
        expected = encoder(events[rows], mask[rows]).detach().numpy()
        np.testing.assert_allclose(exported, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "dropped"),
    [
        ({"dropout": 0.0, "attention_dropout": 0.5}, True),
        ({"dropout": 0.0, "attention_dropout": None}, False),
        ({"dropout": 0.0}, False),
    ],
)
def test_attention_weights_are_dropped_on_their_own(given: dict[str, float], dropped: bool) -> None:
    torch.manual_seed(0)
    encoder = CausalTransformer(input_width=WIDTH, hidden=8, **given)
    events, mask = torch.randn(20, 6, WIDTH), torch.ones(20, 6, dtype=torch.bool)
    assert torch.equal(encoder(events, mask), encoder(events, mask)) != dropped
