"""Gradients of tables, summed by row before they leave the backward pass.

Of what a batch looks up in a table much is the same row: an item that is a target and in many
histories, a country, a price band. Summed at once, gradients of several readers of a table are
small when they are added up, and an optimizer finds every row once.

Shapes: V rows of a table, D width, K looked-up rows with repeats, R distinct ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def read_rows(weight: Tensor, rows: Tensor, *, sparse: bool) -> Tensor:
    """Rows of a table, in float32.

    Args:
        weight: ``(V, D)``, float32 or narrower.
        rows: ``(...)``.
        sparse: Whether the gradient is sparse; on a CPU every row is in it once then.

    Returns:
        ``(..., D)``; the gradient is float32 too.
    """
    if not weight.requires_grad or torch.compiler.is_exporting():
        return functional.embedding(rows, weight).float()
    found: Tensor = _Rows.apply(weight, rows, sparse)  # type: ignore[no-untyped-call]
    return found


class _Rows(torch.autograd.Function):
    """Rows of a table, with a gradient that is not narrowed."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context
        weight: Tensor,
        rows: Tensor,
        sparse: bool,
    ) -> Tensor:
        """Rows ``(...)`` of ``(V, D)`` as ``(..., D)``."""
        ctx.save_for_backward(rows)
        ctx.shape, ctx.sparse = weight.shape, sparse
        return functional.embedding(rows, weight).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        """Summed by row; on a GPU an optimizer does that, of all readers together."""
        (rows,) = ctx.saved_tensors
        rows, values = rows.flatten(), gradient.reshape(-1, ctx.shape[1])  # (K,), (K, D)
        if ctx.sparse and rows.device.type == "cpu":
            rows, values = sum_by_row(narrowed(rows, ctx.shape[0]), values)
        return as_gradient(rows, values, ctx.shape, ctx.sparse), None, None


def as_gradient(rows: Tensor, values: Tensor, shape: tuple[int, int], sparse: bool) -> Tensor:
    """The gradient of a table ``(V, D)``.

    Args:
        rows: ``(K,)``; of a sparse gradient on a CPU distinct and ascending.
        values: ``(K, D)``.
        shape: V and D.
        sparse: Whether it is sparse.
    """
    if not sparse:
        return values.new_zeros(shape).index_add_(0, rows, values)
    return torch.sparse_coo_tensor(
        *(rows.unsqueeze(0), values, shape),
        check_invariants=False,
        is_coalesced=rows.device.type == "cpu",
    )


def by_row(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(K,)`` of a sparse gradient and what is in them, ``(K, D)``; see `sum_by_row`."""
    if gradient.is_coalesced():
        return gradient.indices()[0], gradient.values()
    return sum_by_row(narrowed(gradient._indices()[0], len(gradient)), gradient._values())


def narrowed(rows: Tensor, limit: int) -> Tensor:
    """Numbers ``(K,)`` up to a limit as int32 if that holds them: half the bytes to sort."""
    return rows.int() if limit <= torch.iinfo(torch.int32).max else rows


def sum_by_row(
    rows: Tensor, gradients: Tensor, sources: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum gradients over equal rows.

    On a GPU nothing is waited for: there are as many sums as rows were given, those beyond the
    distinct rows are zero and stand at the largest row.

    Args:
        rows: ``(K,)`` rows, repeats allowed.
        gradients: ``(G, D)``.
        sources: ``(K,)`` which of the gradients each row has; None for that of its place.

    Returns:
        Rows ``(R,)`` int64, ascending, and their sums ``(R, D)``; R distinct rows on a CPU, K on a
        GPU.
    """
    if not len(rows):
        return rows.long(), gradients.new_zeros(0, gradients.shape[1])
    ordered, order = rows.sort(stable=True)
    chosen = order if sources is None else sources[order]
    if rows.device.type == "cpu":
        touched, counts = torch.unique_consecutive(ordered, return_counts=True)
        offsets = functional.pad(counts.cumsum(0), (1, 0))  # (R + 1,)
    else:
        is_first = functional.pad(ordered[1:] != ordered[:-1], (1, 0), value=True)
        segments = is_first.cumsum(0) - 1  # (K,)
        places = torch.arange(len(rows) + 1, device=rows.device)
        offsets = torch.searchsorted(segments, places)  # (K + 1,)
        touched = ordered[offsets[:-1].clamp(max=len(rows) - 1)]
    summed = functional.embedding_bag(
        chosen, gradients, offsets.to(chosen.dtype), mode="sum", include_last_offset=True
    )
    return touched.long(), summed
