"""A table in bfloat16: half the bytes, and float32 for all that is computed with its rows.

Rows are widened when they are looked up. Their gradients stay float32, where torch would make them
as narrow as the table: of many small ones that are added up, little would be left. How such a table
is stepped is said in `twotower.training.stochastic_rounding`.

Shapes: V rows of the table, D width, E events of B sets one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from twotower.models.row_gradients import read_rows

# Sets whose rows are widened at once on a CPU, so that they are still in its cache when averaged.
SETS_OF_A_BLOCK = 128


class HalfTable(nn.Embedding):
    """A table in bfloat16 that gives float32 rows.

    Args:
        table: What it starts from; its rows are rounded to the nearest.
    """

    def __init__(self, table: nn.Embedding) -> None:
        weight = table.weight.detach().bfloat16()
        super().__init__(
            table.num_embeddings, table.embedding_dim, sparse=table.sparse, _weight=weight
        )
        self._take_wide_gradients()

    def forward(self, rows: Tensor) -> Tensor:
        """Rows ``(...)`` to ``(..., D)`` float32."""
        return read_rows(self.weight, rows, sparse=self.sparse)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HalfTable:
        """Torch's own, of which `to` is made; the weight may be another afterwards."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._take_wide_gradients()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has a weight of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._take_wide_gradients()

    def _take_wide_gradients(self) -> None:
        self.weight.grad_dtype = torch.float32


def half_means(weight: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """Means over sets of rows of a narrow table on a CPU, without a gradient.

    They are added up and given in float32; under autocast they are given in the table's own type,
    as what comes next would narrow them.

    Args:
        weight: ``(V, D)``.
        rows: ``(E,)`` rows of all sets, one behind the other.
        offsets: ``(B + 1,)`` where each set begins, and E.

    Returns:
        ``(B, D)``; zeros for an empty set.
    """
    if torch.is_autocast_enabled(weight.device.type):
        return functional.embedding_bag(
            rows, weight, offsets, mode="mean", include_last_offset=True
        )
    num_sets = len(offsets) - 1
    found = torch.empty(num_sets, weight.shape[1])
    bounds = [*offsets[:-1][::SETS_OF_A_BLOCK].tolist(), len(rows)]
    for number, start in enumerate(bounds[:-1]):
        first = number * SETS_OF_A_BLOCK
        of_block = offsets[first : first + SETS_OF_A_BLOCK + 1] - start
        widened = functional.embedding(rows[start : bounds[number + 1]], weight).float()
        every = torch.arange(len(widened), dtype=rows.dtype)
        found[first : first + SETS_OF_A_BLOCK] = functional.embedding_bag(
            every, widened, of_block, mode="mean", include_last_offset=True
        )
    return found
