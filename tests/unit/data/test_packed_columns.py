"""Columns side by side give what each of them gives alone."""

from __future__ import annotations

import pytest
import torch

from twotower.data.packed_columns import PackedColumns, gather

COLUMNS = {
    "site": torch.tensor([5, 6, 7, 8], dtype=torch.int32),
    "price": torch.tensor([0.5, -1.0, 2.0, 3.5]),
    "tags": torch.tensor([[1, 0], [2, 3], [0, 0], [4, 0]], dtype=torch.int32),
    "hour": torch.tensor([23, 0, 11, 12], dtype=torch.int32),
    "page": torch.tensor([1, 2, 3, 2**40]),
    "vector": torch.arange(12.0).view(4, 3),
    "weight": torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "seen": torch.tensor([True, False, True, True]),
}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("rows", [[3, 0, 0, 2], []])
def test_rows_of_all_columns(pack: bool, rows: list[int]) -> None:
    wanted = torch.tensor(rows, dtype=torch.long)
    found = PackedColumns(COLUMNS, pack=pack).rows(wanted)
    assert list(found) == list(COLUMNS)
    for name, values in COLUMNS.items():
        expected = values[wanted]
        expected = expected if expected.is_floating_point() else expected.long()
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)
        torch.testing.assert_close(gather(values, wanted), expected, rtol=0, atol=0)


def test_no_columns() -> None:
    assert PackedColumns({}).rows(torch.tensor([0, 1])) == {}
