"""Exponentials and sums of rows against the plain formula, whatever sizes and logits are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twotower.losses.exponentials import Exponentials
from twotower.losses.logits import Logits

LOWEST = torch.finfo(torch.float32).min


def found(logits: Tensor, masked: Tensor | None = None, block: int = 64) -> tuple[Tensor, Tensor]:
    """Shares of the candidates, and the logarithm of their sum, of logits that are read exactly."""
    queries = torch.eye(len(logits), dtype=logits.dtype)
    given = Logits(
        temperature=1.0,
        log_expected_count=torch.zeros(logits.shape[1]),
        masked=torch.zeros_like(logits, dtype=torch.bool) if masked is None else masked,
    )
    exponentials = Exponentials(given, queries, logits.T.contiguous())
    shares, log_sums = torch.full_like(logits, torch.nan), []
    for start in range(0, len(logits), block):
        out = shares[start : start + block]
        sums, logs = exponentials.of(start, out)
        out /= sums.unsqueeze(1)
        log_sums.append(logs)
    return shares, torch.cat(log_sums)


@pytest.mark.parametrize("spread", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num", [1, 7, 16, 33, 500, 4096, 5001])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_shares_and_sums(rows: int, num: int, dtype: torch.dtype, spread: float) -> None:
    drawn = torch.randn(rows, num, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logits = spread * drawn
    exact = logits.double()
    shares, log_sums = (torch.cat(both) for both in zip(*map(found, logits.split(1)), strict=True))
    eps = torch.finfo(dtype).eps
    # The sum may be off by some roundings of a number as large as the largest logit.
    size = exact.abs().amax() + 20
    assert (log_sums - exact.logsumexp(dim=1)).abs().max() <= 8 * eps * size
    torch.testing.assert_close(shares.double(), exact.softmax(dim=1), rtol=40 * eps, atol=4 * eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("temperature", "bounded"), [(0.05, True), (0.005, False)])
def test_a_bound_stands_for_the_largest_logit_unless_it_is_far_above(
    temperature: float, bounded: bool, dtype: torch.dtype
) -> None:
    """Cosines by a temperature, corrected; one candidate is a thousand times as rare as others.

    At the lower temperature bounds are 200 above what is there, and float64 has room for that.
    """
    state = torch.Generator().manual_seed(0)
    queries, candidates = (
        torch.nn.functional.normalize(torch.randn(n, 64, generator=state, dtype=dtype))
        for n in (100, 1000)
    )
    counts = torch.randn(1000, generator=state)
    counts[7] = -7
    masked = torch.rand(100, 1000, generator=state) < 0.1
    given = Logits(temperature=temperature, log_expected_count=counts, masked=masked)
    exact = queries.double() @ candidates.double().T / temperature - counts.double()
    exact = exact.masked_fill(masked, -torch.inf)
    out = torch.empty(100, 1000, dtype=dtype)

    sums, log_sums = Exponentials(given, queries, candidates).of(0, out)

    is_bounded = bounded or dtype == torch.float64
    assert bool((out.amax(dim=1) < 1e-6).all()) == is_bounded
    assert not out[masked].any()
    slack = 4 * torch.finfo(dtype).eps * (2 / temperature + 50)
    torch.testing.assert_close(log_sums.double(), exact.logsumexp(dim=1), rtol=0, atol=slack)
    shares = (out / sums.unsqueeze(1)).double()
    torch.testing.assert_close(shares, exact.softmax(dim=1), rtol=slack, atol=1e-30)


def test_one_row_that_is_far_below_its_bound_changes_no_other() -> None:
    logits = torch.randn(130, 50, generator=torch.Generator().manual_seed(0))
    logits[70] -= 300
    shares, log_sums = found(logits)
    torch.testing.assert_close(shares, logits.softmax(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(log_sums, logits.logsumexp(dim=1), rtol=1e-5, atol=1e-5)


def test_masked_candidates_have_no_share_and_a_row_of_them_no_sum() -> None:
    logits = torch.tensor([[1.0, 9.0, 2.0], [3.0] * 3, [7.0, -5.0, 7.0]])
    masked = torch.tensor([[0, 1, 0], [1, 1, 1], [1, 0, 1]]).bool()
    shares, log_sums = found(logits, masked)
    assert shares[0, 1] == 0
    assert shares[2].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert log_sums[0].item() == pytest.approx(1 + torch.tensor(1 + torch.e).log().item(), rel=1e-6)
    assert log_sums[1].item() <= LOWEST / 2
    assert log_sums[2].item() == pytest.approx(-5, rel=1e-6)


def test_a_row_without_an_end_stays_unknown() -> None:
    given = Logits(
        temperature=1.0, log_expected_count=torch.zeros(3), masked=torch.zeros(2, 3).bool()
    )
    queries, candidates = torch.tensor([[torch.nan], [1.0]]), torch.tensor([[1.0], [2.0], [3.0]])
    _, log_sums = Exponentials(given, queries, candidates).of(0, torch.empty(2, 3))
    assert log_sums.isnan().tolist() == [True, False]
