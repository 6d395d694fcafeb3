"""Tables of one width as one parameter, so that a side of a model is looked up at once.

The rows of table t follow those of the tables before it. A large group has sparse gradients: what a
step costs is then set by the rows of the batch, not by the length of the tables. The gradient of a
mean over sets is summed by row before it leaves: of 50 events a query many are of the same items,
and the rows of all events, one gradient each, are never there.

On a GPU the members of sets may go on beyond the last set; those are of none. How many there are
would have to be waited for.

Shapes: V rows of all tables, F tables, B queries, E events of B sets one behind the other, K rows
with repeats, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from twotower.models.half_tables import HalfTable, half_means
from twotower.models.row_gradients import (
    RowGradients,
    has_kernels,
    left_or_summed,
    narrowed,
    owners_by_search,
    owners_of,
    read_rows,
    rows_left,
    sum_by_row,
)

TABLE_STD = 0.05


class TableGroup(nn.Module):
    """Some tables of equal width.

    Args:
        num_rows: Length of every table by name, in the order of the rows.
        dim: Width D.
        sparse: Whether gradients are sparse.
    """

    starts: Tensor

    def __init__(self, *, num_rows: Mapping[str, int], dim: int, sparse: bool) -> None:
        super().__init__()
        self.dim = dim
        self._slices: dict[str, slice] = {}
        total = 0
        for name, count in num_rows.items():
            self._slices[name] = slice(total, total + count)
            total += count
        self._places = {name: place for place, name in enumerate(num_rows)}
        self.rows = nn.Embedding(total, dim, sparse=sparse, _weight=torch.empty(total, dim))
        nn.init.normal_(self.rows.weight, std=TABLE_STD)
        starts = torch.tensor([rows.start for rows in self._slices.values()])
        self.register_buffer("starts", starts, persistent=False)

    def halve(self) -> None:
        """Keep the rows in bfloat16 from now on."""
        if not isinstance(self.rows, HalfTable):
            self.rows = HalfTable(self.rows)

    @property
    def names(self) -> tuple[str, ...]:
        """The tables, in the order of their rows."""
        return tuple(self._slices)

    def place(self, name: str) -> int:
        """Which of the tables it is."""
        return self._places[name]

    def table(self, name: str) -> Tensor:
        """The rows of one table of V_t rows, ``(V_t, D)``, a view."""
        return self.rows.weight[self._slices[name]]

    def lookup(self, first: int, rows: Tensor) -> Tensor:
        """Rows of neighbouring tables.

        Args:
            first: The first of the tables.
            rows: ``(..., F)`` a row of each of F tables.

        Returns:
            ``(..., F, D)``.
        """
        shifted = rows + self.starts[first : first + rows.shape[-1]]  # (..., F)
        if isinstance(self.rows, nn.Embedding):
            weight, sparse = self.rows.weight, self.rows.sparse
            if sparse or has_kernels(weight):
                return read_rows(weight, shifted, sparse=sparse)
        found: Tensor = self.rows(shifted)
        return found

    def means(self, name: str, rows: Tensor, offsets: Tensor) -> Tensor:
        """Means over sets of rows of one table.

        Args:
            name: The table.
            rows: ``(E,)`` rows of all sets, one behind the other.
            offsets: ``(B + 1,)`` where each set begins, and where the last one ends.

        Returns:
            ``(B, D)``; zeros for an empty set.
        """
        shifted = rows + self._slices[name].start  # (E,)
        if not isinstance(self.rows, nn.Embedding):  # of which this process holds a share
            return mean_of_sets(self.rows(shifted), offsets)
        weight, sparse = self.rows.weight, self.rows.sparse
        means: Tensor = _Means.apply(weight, shifted, offsets, sparse)  # type: ignore[no-untyped-call]
        return means


def halve_tables(model: nn.Module) -> None:
    """Keep all tables of a model in bfloat16 from now on; see `twotower.models.half_tables`.

    Args:
        model: Changed in place, before an optimizer sees its parameters.
    """
    for module in model.modules():
        if isinstance(module, TableGroup):
            module.halve()


def mean_of_sets(members: Tensor, offsets: Tensor) -> Tensor:
    """Mean over the members of every set.

    Args:
        members: ``(E, W)``, one set behind the other.
        offsets: ``(B + 1,)`` where each set begins, and where the last one ends.

    Returns:
        ``(B, W)``; zeros for an empty set.
    """
    counts = offsets.diff()  # (B,)
    owners = owners_of(offsets, len(members))  # (E,)
    totals = members.new_zeros(len(counts) + 1, members.shape[1]).index_add(0, owners, members)
    return totals[:-1] / counts.clamp(min=1).unsqueeze(1)


class _Means(torch.autograd.Function):
    """Means over sets of rows, with a gradient that is summed by row."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context
        weight: Tensor,
        rows: Tensor,
        offsets: Tensor,
        sparse: bool,
    ) -> Tensor:
        """Means ``(B, D)`` of rows ``(E,)`` of ``(V, D)``."""
        rows, offsets = narrowed(rows, len(weight)), narrowed(offsets, len(rows))
        ctx.save_for_backward(rows, offsets)
        ctx.shape, ctx.sparse, ctx.left = weight.shape, sparse, rows_left(weight)
        ctx.has_kernels = has_kernels(weight)
        if ctx.has_kernels:
            from twotower.models.triton_lookup import means_of_sets

            return means_of_sets(weight, rows, offsets)
        if weight.is_cuda:
            return mean_of_sets(functional.embedding(rows, weight).float(), offsets)
        if weight.dtype != torch.float32:
            return half_means(weight, rows, offsets)
        return functional.embedding_bag(
            rows, weight, offsets, mode="mean", include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        """Sum over the events of every row, or leave them to the optimizer."""
        rows, offsets = ctx.saved_tensors
        shares = gradient.float() / offsets.diff().clamp(min=1).unsqueeze(1)  # (B, D)
        if ctx.left is not None and ctx.has_kernels:
            owners = owners_by_search(offsets, len(rows))  # (E,)
            is_of_none = owners == len(shares)
            owners = owners.clamp(max=len(shares) - 1)
            rows = rows.masked_fill(is_of_none, ctx.shape[0])
        else:
            rows = rows[: int(offsets[-1])] if rows.is_cuda else rows
            owners = owners_of(offsets, len(rows))  # (E,)
        if ctx.sparse:
            found = RowGradients(rows=rows, values=shares, sources=owners)
            return left_or_summed(found, ctx.shape, ctx.left), None, None, None
        if rows.is_cuda:
            summed = shares[owners]  # (E, D)
        else:
            rows, summed = sum_by_row(rows, shares, owners)
        return summed.new_zeros(ctx.shape).index_add_(0, rows, summed), None, None, None
