"""Tables in bfloat16 against float32 tables of the same numbers: rows, means and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from twotower.models.half_tables import SETS_OF_A_BLOCK, HalfTable
from twotower.models.tables import TableGroup, halve_tables

SIZES = {"a": 5, "b": 300}


def groups(*, sparse: bool, dim: int = 6) -> tuple[TableGroup, TableGroup]:
    """A narrow group, and one with the same numbers in float32."""
    torch.manual_seed(0)
    narrow = TableGroup(num_rows=SIZES, dim=dim, sparse=sparse)
    halve_tables(narrow)
    wide = TableGroup(num_rows=SIZES, dim=dim, sparse=sparse)
    wide.load_state_dict(narrow.state_dict())
    return narrow, wide


def gradient_of(group: TableGroup) -> Tensor:
    gradient = group.rows.weight.grad
    assert gradient is not None
    assert gradient.dtype == torch.float32
    return gradient


def sets_of(num_sets: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of table b in sets of 0 to 7 rows."""
    draws = torch.Generator().manual_seed(seed)
    sizes = torch.randint(8, (num_sets,), generator=draws)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    return torch.randint(SIZES["b"], (int(offsets[-1]),), generator=draws), offsets


def test_a_table_takes_half_the_bytes_and_starts_from_the_nearest_numbers() -> None:
    torch.manual_seed(0)
    group = TableGroup(num_rows=SIZES, dim=6, sparse=True)
    before, table = group.rows.weight.detach().clone(), group.table("b")
    num_bytes = group.rows.weight.nbytes
    halve_tables(group)
    weight = group.rows.weight
    assert weight.dtype == torch.bfloat16
    assert 2 * weight.nbytes == num_bytes
    assert group.rows.sparse
    assert isinstance(weight, nn.Parameter)
    assert ((weight - before).abs() <= before.abs() * 2**-8).all()
    assert torch.equal(group.table("b"), table.bfloat16())


def test_nothing_is_done_twice() -> None:
    group, _ = groups(sparse=True)
    weight = group.rows.weight
    halve_tables(nn.Sequential(group))
    assert group.rows.weight is weight


@pytest.mark.parametrize("sparse", [True, False])
def test_rows_and_their_gradients_are_those_of_a_wide_table(sparse: bool) -> None:
    narrow, wide = groups(sparse=sparse)
    rows = torch.tensor([[1, 3], [4, 299], [4, 3], [0, 0]])
    scale = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(1))
    for group in (narrow, wide):
        found = group.lookup(0, rows)
        assert found.dtype == torch.float32
        (found * scale).sum().backward()
    assert torch.equal(narrow.lookup(0, rows), wide.lookup(0, rows))
    ours, theirs = gradient_of(narrow), gradient_of(wide)
    assert ours.is_sparse == sparse
    torch.testing.assert_close(ours.to_dense(), theirs.to_dense())


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    "num_sets", [0, 1, SETS_OF_A_BLOCK - 1, SETS_OF_A_BLOCK, 3 * SETS_OF_A_BLOCK + 5]
)
def test_means_and_their_gradients_are_those_of_a_wide_table(sparse: bool, num_sets: int) -> None:
    narrow, wide = groups(sparse=sparse)
    rows, offsets = sets_of(num_sets)
    scale = torch.randn(num_sets, 6, generator=torch.Generator().manual_seed(1))
    means = [group.means("b", rows, offsets) for group in (narrow, wide)]
    assert means[0].dtype == torch.float32
    torch.testing.assert_close(means[0], means[1], rtol=1e-6, atol=1e-8)
    for found in means:
        (found * scale).sum().backward()
    ours, theirs = gradient_of(narrow), gradient_of(wide)
    assert ours.is_sparse == sparse
    torch.testing.assert_close(ours.to_dense(), theirs.to_dense())


def test_under_autocast_means_are_as_narrow_as_what_follows() -> None:
    narrow, wide = groups(sparse=True)
    rows, offsets = sets_of(50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = narrow.means("b", rows, offsets)
    assert found.dtype == torch.bfloat16
    expected = wide.means("b", rows, offsets)
    # The sum is rounded, then the mean.
    torch.testing.assert_close(found.float(), expected, rtol=2**-7, atol=1e-6)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(gradient_of(narrow).to_dense(), gradient_of(wide).to_dense())


def test_small_gradients_are_added_up_in_float32() -> None:
    """1,000 times 1/1024, and 1: in bfloat16 the sum would stay at 1 from there on."""
    narrow, _ = groups(sparse=False)
    rows = torch.ones(1001, 1, dtype=torch.long)
    scale = torch.full((1001, 1, 1), 1 / 1024)
    scale[0] = 1
    (narrow.lookup(1, rows) * scale).sum().backward()
    gradient = gradient_of(narrow)[6]
    assert gradient.tolist() == pytest.approx([1 + 1000 / 1024] * 6)


def test_two_uses_of_a_table_are_added_up_in_float32() -> None:
    narrow, _ = groups(sparse=True)
    rows, offsets = torch.tensor([7]), torch.tensor([0, 1])
    found = narrow.lookup(1, rows[:, None]).sum() + narrow.means("b", rows, offsets).sum() / 1024
    found.backward()
    assert gradient_of(narrow).to_dense()[12].tolist() == [1 + 1 / 1024] * 6


@pytest.mark.parametrize(
    "move", [copy.deepcopy, lambda group: group.to("meta").to_empty(device="cpu")]
)
def test_a_copy_and_a_table_that_was_moved_take_wide_gradients(move) -> None:  # type: ignore[no-untyped-def]
    narrow, _ = groups(sparse=False)
    before = narrow.rows.weight
    starts = narrow.starts.clone()
    moved = move(narrow)
    moved.starts.copy_(starts)  # no weight, so that nobody restores it
    assert isinstance(moved.rows, HalfTable)
    assert moved.rows.weight is not before
    (moved.lookup(1, torch.tensor([[1]])) * (1 + 2**-10)).sum().backward()
    assert gradient_of(moved)[6].tolist() == [1 + 2**-10] * 6
