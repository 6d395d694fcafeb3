"""Target attention by hand, what it may not depend on, and its way into the ranker."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.unit.models.test_dcn import INPUTS, batch
from twotower.models.cross import full_rank
from twotower.models.dcn import DCNv2, Stacked
from twotower.models.history import TargetEncoder
from twotower.models.mlp import MLP
from twotower.models.target_attention import TargetAttention
from twotower.models.two_tower import Cosine, TwoTower


def filled(encoder: TargetAttention, first: list[list[float]], a: list[float]) -> TargetAttention:
    """Chosen weights; the last layer adds the hidden units up and adds 1/2."""
    with torch.no_grad():
        encoder.weight[0].weight.copy_(torch.tensor(first))
        encoder.weight[0].bias.copy_(torch.tensor(a))
        encoder.weight[1].weight.fill_(0.25)
        encoder.weight[2].weight.fill_(1.0)
        encoder.weight[2].bias.fill_(0.5)
    return encoder


def test_by_hand() -> None:
    """One-dimensional events 2 and -3, the candidate 4, one padded place.

    First hidden unit: e * t, so 8 and -12, after PReLU 8 and -3. Second: e - t + 1, so -1 and -6,
    after PReLU -0.25 and -1.5. Weights, with the last bias 0.5: 8.25 and -4. Output:
    2 * 8.25 + -3 * -4 = 28.5.
    """
    encoder = filled(
        TargetAttention(input_width=1, hidden=2),
        [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]],
        [0.0, 1.0],
    )
    assert isinstance(encoder, TargetEncoder)
    events = torch.tensor([[[99.0], [2.0], [-3.0]]])
    mask = torch.tensor([[False, True, True]])
    assert encoder.attend(events, mask, torch.tensor([[4.0]])).tolist() == [[28.5]]
    # The same history says something else of another candidate: e * 0 and e - 0 + 1 = 3, -2.
    # Weights 0 + 3 + 0.5 and 0 - 0.5 + 0.5: 2 * 3.5 - 3 * 0 = 7.
    assert encoder.attend(events, mask, torch.tensor([[0.0]])).tolist() == [[7.0]]


def drawn(num_rows: int, length: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    state = torch.Generator().manual_seed(3)
    events = torch.randn(num_rows, length, width, generator=state)
    mask = torch.arange(length) >= torch.randint(length + 1, (num_rows, 1), generator=state)
    return events, mask, torch.randn(num_rows, width, generator=state)


def test_padding_and_order_do_not_matter() -> None:
    torch.manual_seed(0)
    encoder = TargetAttention(input_width=3)
    events, mask, target = drawn(20, 6, 3)
    expected = encoder.attend(events, mask, target)
    other = torch.where(mask.unsqueeze(-1), events, 77.0)
    torch.testing.assert_close(encoder.attend(other, mask, target), expected)
    flipped = encoder.attend(events.flip(1), mask.flip(1), target)
    torch.testing.assert_close(flipped, expected)
    empty = encoder.attend(events, torch.zeros_like(mask), target)
    assert not empty.any()


def test_an_event_that_comes_twice_counts_twice() -> None:
    """No softmax: it would give the same output for one event and for two of it."""
    encoder = TargetAttention(input_width=3)
    events, _, target = drawn(4, 1, 3)
    once = encoder.attend(events, torch.ones(4, 1, dtype=torch.bool), target)
    twice = encoder.attend(events.repeat(1, 2, 1), torch.ones(4, 2, dtype=torch.bool), target)
    torch.testing.assert_close(twice, 2 * once)


def ranker() -> DCNv2:
    torch.manual_seed(0)
    return DCNv2(
        inputs=INPUTS,
        embedding_dim=4,
        structure=Stacked,
        cross=partial(full_rank, num_layers=1),
        deep=partial(MLP, hidden=[8]),
        history=partial(TargetAttention, hidden=5),
        retrieval_score=True,
    )


def test_the_ranker_shows_it_the_candidate() -> None:
    """The part of x_0 that is the history: weighted by hand from the tables of the ranker."""
    model, columns = ranker(), batch(6)
    table = model.item_embedder.learned()["item_id"][0]
    expected = model.history.attend(
        table[columns["history.item_id"]], columns["history.mask"], table[columns["item_id"]]
    )
    # user 4, context 4 + 4, item 4 + 4 + 2, then the history 4, then the score 1
    x0 = model._features(columns)
    assert x0.shape == (6, 27)
    torch.testing.assert_close(x0[:, 22:26], expected)
    columns["history.mask"][:] = True
    before = model._features(columns)[:, 22:26]
    other = columns | {"item_id": (columns["item_id"] + 1) % 11}
    assert (model._features(other)[:, 22:26] != before).any(dim=1).all()


def test_every_parameter_gets_a_gradient() -> None:
    model = ranker()
    model(batch(64)).square().sum().backward()
    without = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.to_dense().any()
    ]
    assert without == []


def test_a_query_tower_has_no_candidate_to_show() -> None:
    with pytest.raises(ValueError, match="TargetAttention looks at the candidate, which a query"):
        TwoTower(
            inputs=INPUTS,
            dim=4,
            embedding_dim=4,
            hidden=[8],
            history=TargetAttention,
            similarity=Cosine(),
        )


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`hidden` must be at least 1, got 0"):
        TargetAttention(input_width=3, hidden=0)
