"""Candidates and their expected counts, against hand arithmetic and simulation."""

from __future__ import annotations

import math

import pytest
import torch

from twotower.losses.negatives import MixedNegatives, WholeCatalogue, log_expected_count


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_targets_come_first_and_uniform_items_after_them() -> None:
    targets = torch.tensor([4, 4, 1])
    drawn = MixedNegatives(in_batch=True, num_uniform=2).draw(
        targets, torch.full((6,), 1 / 6), generator()
    )
    assert drawn.num_in_batch == 3
    assert drawn.rows.shape == drawn.log_expected_count.shape == (5,)
    assert drawn.rows[:3].tolist() == [4, 4, 1]
    assert drawn.rows.dtype == torch.int64
    assert drawn.log_expected_count.dtype == torch.float32


def test_expected_counts_are_those_of_the_other_targets_and_the_uniform_draws() -> None:
    # 4 other targets: 4 * 0.5 = 2 and 4 * 0.1 = 0.4; 3 draws from 4 items: 0.75 each.
    probability = torch.tensor([0.5, 0.1, 0.0, 0.4])
    targets = torch.tensor([0, 1, 0, 0, 0])
    drawn = MixedNegatives(in_batch=True, num_uniform=3).draw(targets, probability, generator())
    expected = {0: math.log(2.75), 1: math.log(1.15), 2: math.log(0.75), 3: math.log(2.35)}
    assert expected[0] > 0  # a count above one is not held at one
    for row, log_count in zip(drawn.rows.tolist(), drawn.log_expected_count.tolist(), strict=True):
        assert log_count == pytest.approx(expected[row], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rare_item_is_not_clipped(dtype: torch.dtype) -> None:
    probability = torch.tensor([1e-9, 1e-12, 1e-2], dtype=dtype)
    log_count = log_expected_count(probability, num_in_batch=1001, num_uniform=0, num_items=3)
    # ln(1000 * 1e-9) = -6 ln 10 and so on.
    expected = [-6 * math.log(10), -9 * math.log(10), math.log(10)]
    assert log_count.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_rare_item_is_not_drowned_by_a_large_uniform_part() -> None:
    # 1e-3 uniform against 1e-9 from the batch: log(1e-3 (1 + 1e-6)).
    log_count = log_expected_count(
        torch.tensor([1e-9]), num_in_batch=2, num_uniform=1, num_items=1000
    )
    assert log_count.item() == pytest.approx(math.log(1e-3), abs=1e-5)


def test_the_own_target_is_not_a_draw() -> None:
    log_count = log_expected_count(torch.tensor([0.3]), num_in_batch=1, num_uniform=0, num_items=1)
    assert log_count.item() == -math.inf
    log_count = log_expected_count(torch.tensor([0.3]), num_in_batch=0, num_uniform=2, num_items=4)
    assert log_count.item() == pytest.approx(math.log(0.5))


def test_items_never_seen_in_training_are_drawn_and_corrected() -> None:
    probability = torch.tensor([1.0, 0.0])
    drawn = MixedNegatives(in_batch=True, num_uniform=50).draw(
        torch.tensor([0, 0]), probability, generator()
    )
    unseen = drawn.log_expected_count[drawn.rows == 1]
    assert unseen.numel() > 0
    assert unseen.tolist() == pytest.approx([math.log(25)] * unseen.numel())


def test_counts_over_many_batches_are_those_expected() -> None:
    probability = torch.tensor([0.6, 0.25, 0.1, 0.05])
    negatives = MixedNegatives(in_batch=True, num_uniform=3)
    state, num_batches = generator(1), 4000
    counts = torch.zeros(4)
    for targets in probability.expand(num_batches, 4).multinomial(5, True, generator=state):
        drawn = negatives.draw(targets, probability, state)
        counts += torch.bincount(drawn.rows[1:], minlength=4)  # the own target stands at 0
    # (5 - 1) p + 3 / 4; the standard error of a mean is below 0.02.
    assert (counts / num_batches).tolist() == pytest.approx([3.15, 1.75, 1.15, 0.95], abs=0.07)


def test_uniform_draws_reach_every_item_equally() -> None:
    drawn = MixedNegatives(in_batch=False, num_uniform=60_000).draw(
        torch.tensor([5]), torch.tensor([1.0, 0, 0, 0, 0, 0]), generator()
    )
    assert drawn.num_in_batch == 0
    counts = torch.bincount(drawn.rows, minlength=6)
    assert counts.min() > 9_500
    assert counts.max() < 10_500


def test_the_same_state_draws_the_same() -> None:
    negatives = MixedNegatives(in_batch=True, num_uniform=9)
    arguments = (torch.tensor([1, 2]), torch.full((100,), 0.01))
    first = negatives.draw(*arguments, generator(3)).rows
    assert torch.equal(first, negatives.draw(*arguments, generator(3)).rows)
    assert not torch.equal(first, negatives.draw(*arguments, generator(4)).rows)


def test_the_whole_catalogue_is_every_item_once() -> None:
    drawn = WholeCatalogue().draw(torch.tensor([2, 0]), torch.full((4,), 0.25), None)
    assert drawn.rows.tolist() == [0, 1, 2, 3]
    assert drawn.log_expected_count.tolist() == [0, 0, 0, 0]
    assert drawn.num_in_batch == 0


@pytest.mark.parametrize(("in_batch", "num_uniform"), [(False, 0), (True, -1), (False, -3)])
def test_negatives_without_candidates_are_refused(in_batch: bool, num_uniform: int) -> None:
    with pytest.raises(ValueError, match=rf"in_batch={in_batch}, num_uniform={num_uniform}"):
        MixedNegatives(in_batch=in_batch, num_uniform=num_uniform)
