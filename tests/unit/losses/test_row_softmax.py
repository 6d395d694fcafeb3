"""Shares and sums of rows against the plain formula, whatever the sizes and the logits are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twotower.losses.row_softmax import COLUMNS_MORE, softmax_in_place


def found(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the candidates alone, and the logarithm of their sum."""
    num = logits.shape[1]
    room = torch.cat([logits, logits.new_full((len(logits), COLUMNS_MORE), torch.nan)], dim=1)
    shares, log_sums, total = softmax_in_place(room, num)
    assert shares.shape == logits.shape
    return shares / total.unsqueeze(1), log_sums


@pytest.mark.parametrize("spread", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num", [1, 7, 16, 33, 500, 4096, 5001])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_shares_and_sums(rows: int, num: int, dtype: torch.dtype, spread: float) -> None:
    drawn = torch.randn(rows, num, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logits = spread * drawn
    exact = logits.double()
    shares, log_sums = found(logits)
    eps = torch.finfo(dtype).eps
    # The sum may be off by some roundings of a number as large as the largest logit.
    size = exact.abs().amax() + 20
    assert (log_sums - exact.logsumexp(dim=1)).abs().max() <= 8 * eps * size
    torch.testing.assert_close(shares.double(), exact.softmax(dim=1), rtol=40 * eps, atol=4 * eps)


def test_masked_candidates_have_no_share_and_a_row_of_them_no_sum() -> None:
    lowest = torch.finfo(torch.float32).min
    logits = torch.tensor([[1.0, lowest, 2.0], [lowest] * 3, [lowest, -5.0, lowest]])
    shares, log_sums = found(logits)
    assert shares[0, 1] == 0
    assert shares[2].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert log_sums[0].item() == pytest.approx(1 + torch.tensor(1 + torch.e).log().item(), rel=1e-6)
    assert log_sums[1].item() <= lowest / 2
    assert log_sums[2].item() == pytest.approx(-5, rel=1e-6)


def test_a_row_without_an_end_stays_unknown() -> None:
    _, log_sums = found(torch.tensor([[1.0, torch.nan], [1.0, 2.0]]))
    assert log_sums.isnan().tolist() == [True, False]
