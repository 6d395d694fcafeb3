"""Gradients of tables, summed by row before they leave the backward pass.

Of what a batch looks up in a table much is the same row: an item that is a target and in many
histories, a country, a price band. Summed at once, gradients of several readers of a table are
small when they are added up, and an optimizer finds every row once.

An optimizer may sum by row itself, as a part of its step, and that of all readers together: rows
are sorted once. It says so by a list on the table, in which readers leave what they have; the table
has no gradient then.

Shapes: V rows of a table, D width, K looked-up rows with repeats, R distinct ones, G gradients, B
sets.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class RowGradients:
    """Gradients of rows of a table that are not summed.

    Args:
        rows: ``(K,)``, repeats allowed; those from V on stand for none.
        values: ``(G, D)`` float32.
        sources: ``(K,)`` which of the values each row has; None for that of its place.
    """

    rows: Tensor
    values: Tensor
    sources: Tensor | None = None

    @staticmethod
    def joined(parts: Iterable[RowGradients]) -> RowGradients:
        """Those of all readers of a table."""
        found = [*parts]
        if len(found) == 1:
            return found[0]
        sources, first = [], 0
        for part in found:
            own = part.sources
            if own is None:
                own = torch.arange(len(part.rows), dtype=part.rows.dtype, device=part.rows.device)
            sources.append(own + first)
            first += len(part.values)
        return RowGradients(
            rows=torch.cat([part.rows for part in found]),
            values=torch.cat([part.values for part in found]),
            sources=torch.cat(sources),
        )


def has_kernels(table: Tensor) -> bool:
    """Whether a table ``(V, D)`` lies where Triton's kernels run."""
    return table.is_cuda and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def take_rows(table: Tensor) -> None:
    """Have readers of a table ``(V, D)`` with sparse gradients leave them unsummed from now on."""
    table.row_gradients = []  # type: ignore[attr-defined]


def rows_left(table: Tensor) -> list[RowGradients] | None:
    """What readers of a table ``(V, D)`` have left, to be emptied; None where it has gradients."""
    return getattr(table, "row_gradients", None)


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
        ctx.shape, ctx.sparse, ctx.left = weight.shape, sparse, rows_left(weight)
        if has_kernels(weight):
            from twotower.models.triton_lookup import looked_up

            return looked_up(weight, rows)
        return functional.embedding(rows, weight).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        """Summed by row, or left to the optimizer."""
        (rows,) = ctx.saved_tensors
        if not ctx.sparse:
            rows, values = rows.flatten(), gradient.reshape(-1, ctx.shape[1])  # (K,), (K, D)
            return values.new_zeros(ctx.shape).index_add_(0, rows, values), None, None
        values, sources = _in_place(gradient)
        rows = narrowed(rows.flatten(), ctx.shape[0])
        found = RowGradients(rows=rows, values=values, sources=sources)
        return left_or_summed(found, ctx.shape, ctx.left), None, None


def _in_place(gradient: Tensor) -> tuple[Tensor, Tensor | None]:
    """A gradient ``(..., D)`` as values ``(G, D)`` and sources ``(K,)`` of `RowGradients`.

    On a CPU a part of a wider one, ``(B, F, D)`` of whole rows of D, is not copied: the values are
    the rows of the wider one, as many as lie between the first and the last.
    """
    dim = gradient.shape[-1]
    if gradient.dim() == 3 and gradient.device.type == "cpu" and gradient.numel():
        (num_sets, num_rows, _), (apart, *inner) = gradient.shape, gradient.stride()
        if inner == [dim, 1] and apart % dim == 0 and apart > num_rows * dim:
            apart //= dim
            values = gradient.as_strided(((num_sets - 1) * apart + num_rows, dim), (dim, 1))
            first = torch.arange(0, num_sets * apart, apart, dtype=torch.int32)  # (B,)
            within = torch.arange(num_rows, dtype=torch.int32)  # (F,)
            return values, (first.unsqueeze(1) + within).flatten()
    return gradient.reshape(-1, dim), None


def left_or_summed(
    found: RowGradients, shape: tuple[int, int], left: list[RowGradients] | None
) -> Tensor | None:
    """The sparse gradient of a table ``(V, D)``, with every row once; None where it is left.

    Args:
        found: Gradients of rows, all below V where there is no list.
        shape: V and D.
        left: The list of `rows_left`.
    """
    if left is not None:
        left.append(found)
        return None
    rows, values = sum_by_row(found.rows, found.values, found.sources)
    return torch.sparse_coo_tensor(
        *(rows.unsqueeze(0), values, shape), check_invariants=False, is_coalesced=True
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
    """Sum gradients over equal rows; a GPU is waited for, to know how many rows there are.

    Args:
        rows: ``(K,)`` rows, repeats allowed.
        gradients: ``(G, D)``.
        sources: ``(K,)`` which of the gradients each row has; None for that of its place.

    Returns:
        Rows ``(R,)`` int64, distinct and ascending, and their sums ``(R, D)``.
    """
    if not len(rows):
        return rows.long(), gradients.new_zeros(0, gradients.shape[1])
    ordered, chosen = _by_size(rows, sources, len(gradients))
    touched, counts = torch.unique_consecutive(ordered, return_counts=True)
    offsets = functional.pad(counts.cumsum(0), (1, 0))  # (R + 1,)
    summed = functional.embedding_bag(
        chosen, gradients, offsets.to(chosen.dtype), mode="sum", include_last_offset=True
    )
    return touched.long(), summed


def _by_size(rows: Tensor, sources: Tensor | None, num: int) -> tuple[Tensor, Tensor]:
    """Rows ``(K,)`` in ascending order, and the source of each, below `num`; None for its place.

    On a CPU both are one number while NumPy sorts it, in less than half of torch's time for two.
    """
    if rows.device.type != "cpu":
        ordered, order = rows.sort(stable=True)
        return ordered, order if sources is None else sources[order]
    bits = max(1, (num - 1).bit_length())
    pairs = (rows.long() << bits) | (torch.arange(len(rows)) if sources is None else sources)
    pairs.numpy().sort()
    return pairs >> bits, pairs & ((1 << bits) - 1)


def owners_of(offsets: Tensor, num_members: int) -> Tensor:
    """Which set each member is of, ``(E,)``; a member beyond the last set has the number B.

    Only on a GPU there are such: how many members there are is not asked for there.

    Args:
        offsets: ``(B + 1,)`` where each set begins, and where the last one ends.
        num_members: E.
    """
    if offsets.is_cuda:
        return owners_by_search(offsets, num_members)
    every = torch.arange(len(offsets) - 1, dtype=offsets.dtype)
    return every.repeat_interleave(offsets.diff(), output_size=num_members)


def owners_by_search(offsets: Tensor, num_members: int) -> Tensor:
    """The same without a look at how many members the sets have; see `owners_of`."""
    every = torch.arange(num_members, dtype=offsets.dtype, device=offsets.device)
    is_narrow = offsets.dtype == torch.int32
    return torch.searchsorted(offsets[1:], every, right=True, out_int32=is_narrow)
