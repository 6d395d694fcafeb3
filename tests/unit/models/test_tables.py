"""Sums by row and groups of tables, by hand and against plain tables."""

from __future__ import annotations

import torch

from twotower.models.row_gradients import sum_by_row
from twotower.models.tables import TableGroup


def test_sums_by_hand() -> None:
    gradients = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    rows, sums = sum_by_row(torch.tensor([7, 2, 7]), gradients)
    assert rows.tolist() == [2, 7]
    assert sums.tolist() == [[2, 20], [5, 50]]


def test_sums_of_chosen_gradients() -> None:
    gradients = torch.tensor([[1.0], [2.0]])
    rows, sums = sum_by_row(torch.tensor([3, 0, 3, 3]), gradients, torch.tensor([0, 1, 1, 1]))
    assert rows.tolist() == [0, 3]
    assert sums.tolist() == [[2], [5]]


def test_no_rows() -> None:
    rows, sums = sum_by_row(torch.zeros(0, dtype=torch.int32), torch.ones(0, 3))
    assert rows.dtype == torch.int64
    assert sums.shape == (0, 3)


def test_a_group_gives_the_rows_of_its_tables() -> None:
    group = TableGroup(num_rows={"a": 3, "b": 2, "c": 4}, dim=2, sparse=False)
    assert group.rows.weight.shape == (9, 2)
    rows = torch.tensor([[1, 3], [0, 0]])
    found = group.lookup(group.place("b"), rows)  # tables b and c
    assert torch.equal(found[:, 0], group.table("b")[rows[:, 0]])
    assert torch.equal(found[:, 1], group.table("c")[rows[:, 1]])


def test_the_gradient_of_means_has_each_row_once() -> None:
    group = TableGroup(num_rows={"a": 3, "b": 5}, dim=1, sparse=True)
    means = group.means("b", torch.tensor([4, 4, 1, 4]), torch.tensor([0, 2, 2, 4]))
    means.backward(torch.tensor([[1.0], [100.0], [10.0]]))
    gradient = group.rows.weight.grad
    assert gradient is not None
    assert gradient._indices().tolist() == [[4, 7]]  # three rows of `a` come before
    assert gradient._values().tolist() == [[5], [6]]


class Elsewhere(torch.nn.Module):
    """Rows that are no weight of this process, as those of a table that is split."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.looked_up = weight

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.looked_up[rows]


def test_means_of_rows_that_are_elsewhere() -> None:
    group = TableGroup(num_rows={"a": 3, "b": 5}, dim=2, sparse=True)
    rows, offsets = torch.tensor([4, 4, 1, 0]), torch.tensor([0, 2, 2, 4])
    expected = group.means("b", rows, offsets)
    group.rows = Elsewhere(group.rows.weight.detach())  # type: ignore[assignment]
    torch.testing.assert_close(group.means("b", rows, offsets), expected)
