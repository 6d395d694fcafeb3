"""Steps and means by the kernels of a GPU against those of a CPU and the plain formula in float64.

Without a GPU they run in Triton's interpreter: `TRITON_INTERPRET=1 pytest <this file>`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels import DEVICE, INTERPRETED, NEEDS_KERNELS
from twotower.models import row_gradients, tables
from twotower.models.row_gradients import RowGradients
from twotower.models.tables import TableGroup
from twotower.training import table_optimizers
from twotower.training.optimizers import JointOptimizer
from twotower.training.table_optimizers import RowWiseAdagrad

pytestmark = NEEDS_KERNELS
LR, EPS = 0.5, 1e-10
SIZE = 200 if INTERPRETED else 2000


def stepped(table: Tensor, state: Tensor, rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Table and accumulator after a step, in float64, row by row."""
    table, state = table.double(), state.double()
    for row in rows[rows < len(table)].unique().tolist():
        own = values[rows == row].double().sum(0)
        state[row] += own.square().mean()
        table[row] -= LR * own / (state[row].sqrt() + EPS)
    return table, state


def take(table: Tensor, state: Tensor, gradients: RowGradients, seed: int = 0) -> None:
    from twotower.training.triton_adagrad import Step

    Step(table=table, accumulator=state, lr=LR, eps=EPS, seed=seed).take(gradients)


def skewed(num: int, num_rows: int, seed: int) -> Tensor:
    """Rows of which a few are very often there."""
    state = torch.Generator().manual_seed(seed)
    return (num_rows * torch.rand(num, generator=state) ** 4).int()


@pytest.mark.parametrize("width", [1, 20, 128])
@pytest.mark.parametrize(
    ("num", "num_rows"),
    [(1, 3), (15, 2), (16, 20), (17, 1), (32, 1), (33, 2), (200, 300), (900, 9), (700, 200)],
)
def test_a_step_is_that_of_the_formula(num: int, num_rows: int, width: int) -> None:
    """Fewer rows than a block, rows over many blocks, rows over the border of two."""
    state = torch.Generator().manual_seed(num + width)
    rows = skewed(num, num_rows, seed=num)
    rows[:: max(7, num // 3)] = num_rows  # stand for none
    values = torch.randn(num, width, generator=state)
    table = torch.randn(num_rows, width, generator=state)
    accumulator = torch.rand(num_rows, generator=state)
    expected = stepped(table, accumulator, rows, values)
    found = table.to(DEVICE), accumulator.to(DEVICE)
    take(*found, RowGradients(rows=rows.to(DEVICE), values=values.to(DEVICE)))
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got.cpu().double(), right, rtol=2e-5, atol=2e-5)


def test_readers_together_and_gradients_that_many_rows_share() -> None:
    state = torch.Generator().manual_seed(0)
    table, accumulator = torch.randn(50, 32, generator=state), torch.zeros(50)
    shares, owners = torch.randn(40, 32, generator=state), skewed(600, 40, seed=1)
    rows, others = skewed(600, 50, seed=2), skewed(90, 50, seed=3)
    values = torch.randn(90, 32, generator=state)
    expected = stepped(
        table, accumulator, torch.cat([rows, others]), torch.cat([shares[owners.long()], values])
    )
    parts = [
        RowGradients(rows=rows.to(DEVICE), values=shares.to(DEVICE), sources=owners.to(DEVICE)),
        RowGradients(rows=others.to(DEVICE), values=values.to(DEVICE)),
    ]
    found = table.to(DEVICE), accumulator.to(DEVICE)
    take(*found, RowGradients.joined(parts))
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got.cpu().double(), right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_step_of_several_readers_is_that_of_a_cpu(
    forgotten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lookups, and means of sets, one of them empty, with members of none behind the last one."""
    state = torch.Generator().manual_seed(4)
    rows, looked_up = torch.randint(40, (60,), generator=state), torch.randint(40, (9, 2))
    offsets = torch.tensor([0, 7, 7, 31])
    pulls = torch.randn(3, 8, generator=state), torch.randn(9, 2, 8, generator=state)
    found = []
    for by_kernels in (False, True):
        torch.manual_seed(0)
        device = DEVICE if by_kernels else "cpu"
        group = TableGroup(num_rows={"a": 40, "b": 40}, dim=8, sparse=True).to(device)
        for module in (row_gradients, tables, table_optimizers):
            monkeypatch.setattr(module, "has_kernels", lambda _, yes=by_kernels: yes)
        optimizer = JointOptimizer([RowWiseAdagrad([group.rows.weight], lr=LR)])
        for _ in range(3):
            optimizer.zero_grad()
            members = rows if by_kernels else rows[:31]
            means = group.means("b", members.to(device), offsets.to(device))
            own = group.lookup(0, looked_up.to(device))
            (means * pulls[0].to(device)).sum().add((own * pulls[1].to(device)).sum()).backward()
            assert group.rows.weight.grad is None
            if forgotten:
                optimizer.zero_grad()
            optimizer.step()
        found.append(group.rows.weight.detach().cpu())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    untouched = TableGroup(num_rows={"a": 40, "b": 40}, dim=8, sparse=True).rows.weight
    assert torch.equal(found[0], untouched) == forgotten


def test_the_same_again_is_equal_to_the_last_bit() -> None:
    rows, values = skewed(500, 60, seed=1).to(DEVICE), torch.randn(500, 16).to(DEVICE)
    tables = []
    for _ in range(2):
        table, accumulator = torch.ones(60, 16, device=DEVICE), torch.zeros(60, device=DEVICE)
        take(table, accumulator, RowGradients(rows=rows, values=values))
        tables.append(table)
    assert torch.equal(*tables)


def test_a_narrow_table_is_right_on_average() -> None:
    """A step of 0.0001 from 1, of which bfloat16 knows no closer neighbours than 1 and 1 - 2^-8."""
    table = torch.ones(SIZE, 64, device=DEVICE).bfloat16()
    accumulator = torch.full((SIZE,), (LR / 1e-4) ** 2 - 1, device=DEVICE)
    rows = torch.arange(SIZE, device=DEVICE, dtype=torch.int32)
    take(table, accumulator, RowGradients(rows=rows, values=torch.ones(SIZE, 64, device=DEVICE)), 7)
    again = torch.ones_like(table)
    take(again, accumulator - 1, RowGradients(rows=rows, values=torch.ones_like(table).float()), 7)
    assert set(table.double().unique().tolist()) == {1 - 2**-8, 1.0}
    share = float((table.double() < 1).double().mean())
    expected = 1e-4 / 2**-8
    assert abs(share - expected) < 4 * (expected / table.numel()) ** 0.5
    assert torch.equal(table, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 20, 128])
def test_means_of_sets(width: int, dtype: torch.dtype) -> None:
    """An empty set, one longer than what is on its way, and members of none at the end."""
    from twotower.models.triton_lookup import means_of_sets

    state = torch.Generator().manual_seed(width)
    weight = torch.randn(30, width, generator=state).to(dtype)
    offsets = torch.tensor([0, 3, 3, 40, 57, 58])
    rows = torch.randint(30, (70,), generator=state)
    expected = torch.stack(
        [
            weight[rows[start:stop]].double().sum(0) / max(1, stop - start)
            for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        ]
    )
    found = means_of_sets(weight.to(DEVICE), rows.int().to(DEVICE), offsets.int().to(DEVICE))
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 16, 20, 128])
def test_rows_of_a_table(width: int, dtype: torch.dtype) -> None:
    from twotower.models.triton_lookup import looked_up

    state = torch.Generator().manual_seed(width)
    weight = torch.randn(30, width, generator=state).to(dtype)
    rows = torch.randint(30, (7, 31), generator=state)
    found = looked_up(weight.to(DEVICE), rows.to(DEVICE))
    assert torch.equal(found.cpu(), weight[rows].float())
    assert looked_up(weight.to(DEVICE), rows[:0].to(DEVICE)).shape == (0, 31, width)
