"""Rounding at random: right on average, and where there is nothing to round nothing happens.

Neighbours in bfloat16 are found by moving its 16 bits up or down by one, not by rounding.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twotower.training.stochastic_rounding import (
    BLOCK,
    add_rounded,
    stochastic_round_,
)

DRAWS = 200_000


def noise_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stochastic_round(values: Tensor, noise: torch.Generator) -> Tensor:
    """The same without writing over the values."""
    return stochastic_round_(values.clone(), noise)


def neighbours(value: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 towards zero of a float32 number, and the next one away from it."""
    towards = value.view(torch.int16)[..., 1::2].contiguous()  # the upper half, on this machine
    return towards.view(torch.bfloat16).float(), (towards + 1).view(torch.bfloat16).float()


@pytest.mark.parametrize(
    "value",
    [1.001, -1.001, 0.0123, -317.3, 3e-5, 1.0 + 2**-8, 1.0 + 2**-23, 1e30, -1e-39],
)
def test_the_mean_of_many_roundings_is_the_value(value: float) -> None:
    """Also of a tie, of the smallest part of a step, and below the smallest normal number."""
    given = torch.full((DRAWS,), value)
    low, high = (float(bound[0]) for bound in neighbours(given))
    exact = float(given[0])
    found = stochastic_round(given, noise_of(0))
    assert found.dtype == torch.bfloat16
    share = (exact - low) / (high - low)  # of those that must go away from zero
    went = float((found.float() == high).double().mean())
    assert set(found.float().tolist()) <= {low, high}
    error = math.sqrt(share * (1 - share) / DRAWS)
    assert abs(went - share) < 4 * error + 1e-12
    mean = float(found.double().mean())
    assert abs(mean - exact) < 4 * error * abs(high - low) + 1e-12 * abs(exact)


def test_what_bfloat16_has_never_moves() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[~every.isnan()]
    assert len(every) == 2**16 - 2 * 127  # infinities are among them
    for seed in range(20):
        found = stochastic_round(every.float(), noise_of(seed))
        assert torch.equal(found.view(torch.int16), every.view(torch.int16))  # also the sign of 0


def test_what_is_no_number_stays_none() -> None:
    """A GPU's own has all bits set: added to, it would be zero. Cut off, another were infinite."""
    bits = [0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1, -(2**22)]
    given = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    assert given.isnan().all()
    for seed in range(20):
        assert stochastic_round(given, noise_of(seed)).isnan().all()


def test_beyond_the_largest_number_is_infinity() -> None:
    """Half-way between the largest number and what would be the next one."""
    given = torch.full((1000,), 0x7F7F8000, dtype=torch.int32).view(torch.float32)
    found = stochastic_round(given, noise_of(0))
    assert set(found.tolist()) == {float("inf"), torch.finfo(torch.bfloat16).max}
    assert 400 < int(found.isinf().sum()) < 600


def test_the_same_noise_rounds_alike_and_other_noise_does_not() -> None:
    given = torch.randn(101, 7, generator=noise_of(3))
    kept = given.clone()
    one, again, other = (stochastic_round(given, noise_of(seed)) for seed in (1, 1, 2))
    assert torch.equal(given, kept)
    assert torch.equal(one, again)
    assert 0.2 < (one != other).double().mean() < 0.8


def test_numbers_are_rounded_independently() -> None:
    """Four numbers share a draw: none follows another one, nor the row before."""
    ups = stochastic_round(torch.full((DRAWS // 8, 8), 1 + 2**-8), noise_of(0)).double() > 1
    correlation = torch.corrcoef(ups.double().T)
    away = correlation - torch.eye(8)
    assert away.abs().max() < 5 / math.sqrt(DRAWS / 8)
    flat = ups.flatten().double() - 0.5
    assert abs(float((flat[1:] * flat[:-1]).mean())) < 0.25 * 5 / math.sqrt(DRAWS)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    stochastic_round(torch.randn(9, generator=noise_of(0)), noise_of(0))
    assert torch.equal(torch.get_rng_state(), before)


class TestAddRounded:
    def test_rows_that_are_named_move_and_no_others(self) -> None:
        table = torch.ones(6, 3).bfloat16()
        add_rounded(
            table, torch.tensor([[0.5], [2.0]]).expand(2, 3), noise_of(0), torch.tensor([1, 4])
        )
        assert table[:, 0].tolist() == [1, 1.5, 1, 1, 3, 1]  # what bfloat16 has, exactly

    def test_all_rows(self) -> None:
        table = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).bfloat16()
        add_rounded(table, torch.tensor([[1.0, 0.0], [-4.0, 0.25]]), noise_of(0))
        assert table.tolist() == [[2, 2], [0, 8.25]]

    @pytest.mark.parametrize("width", [3, 64, 2 * BLOCK])
    def test_blocks_are_whole(self, width: int) -> None:
        """More rows than a block holds, and rows that are wider than a block."""
        num_rows = 5 * BLOCK // (2 * width) + 3
        table = torch.zeros(num_rows + 1, width).bfloat16()
        change = torch.arange(1, num_rows + 1).float().log2().floor().exp2()[:, None]
        add_rounded(table, change.expand(-1, width), noise_of(0), torch.arange(num_rows))
        assert torch.equal(table[:-1].float(), change.expand(-1, width))
        assert (table[-1] == 0).all()

    def test_it_is_the_sum_that_is_rounded(self) -> None:
        """The change is below what the rows can tell; on average they have moved by it."""
        table = torch.full((DRAWS // 8, 8), 1.5).bfloat16()
        add_rounded(table, torch.full((DRAWS // 8, 8), 1e-4), noise_of(0))
        step = 2**-7
        share = 1e-4 / step
        error = step * math.sqrt(share * (1 - share) / DRAWS)
        assert abs(float(table.double().mean()) - 1.5001) < 4 * error
        assert set(table.unique().tolist()) == {1.5, 1.5 + step}

    def test_no_rows(self) -> None:
        table = torch.ones(2, 3).bfloat16()
        none = torch.zeros(0, dtype=torch.long)
        add_rounded(table, torch.zeros(0, 3), noise_of(0), none)
        assert (table == 1).all()

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_on_a_gpu(self) -> None:
        table = torch.zeros(100_000, 16, device="cuda").bfloat16()
        rows = torch.arange(50_001, device="cuda")
        change = torch.full((len(rows), 16), 1.0001, device="cuda")
        add_rounded(table, change, torch.Generator("cuda").manual_seed(1), rows)
        moved, others = table[:50_001].double(), table[50_001:]
        assert others.abs().sum() == 0
        assert abs(float(moved.mean()) - 1.0001) < 4 * 2**-7 * math.sqrt(0.0128 / moved.numel())
        assert set(moved.unique().tolist()) == {1.0, 1 + 2**-7}
