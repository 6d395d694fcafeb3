"""Rows of a table, and means over sets of them, on a GPU.

Torch gives a row a block of threads each, most of which have nothing to do where rows are narrow.
Means are taken while rows are read; the rows are never there.

Shapes: V rows of the table, D width, K rows with repeats, E rows of B sets one behind the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows of a set that are on their way at the same time, and numbers that a block of rows has.
ROWS, NUMBERS = 16, 2048


def looked_up(weight: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, without a gradient.

    Args:
        weight: ``(V, D)``, float32 or narrower, its rows one behind the other.
        rows: ``(...)``.

    Returns:
        ``(..., D)`` float32.
    """
    width = weight.shape[1]
    found = torch.empty(*rows.shape, width, device=weight.device)
    padded = triton.next_power_of_2(width)
    block = max(1, NUMBERS // padded)
    if rows.numel():
        grid = (triton.cdiv(rows.numel(), block),)
        _looked_up[grid](weight, rows.contiguous(), found, rows.numel(), width, padded, block)
    return found


def means_of_sets(weight: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """Means over sets of rows, without a gradient.

    Args:
        weight: ``(V, D)``, float32 or narrower, its rows one behind the other.
        rows: ``(E,)``; what stands after the last set is not looked at.
        offsets: ``(B + 1,)`` where each set begins, and where the last one ends.

    Returns:
        ``(B, D)`` float32; zeros for an empty set.
    """
    num_sets, width = len(offsets) - 1, weight.shape[1]
    means = torch.empty(num_sets, width, device=weight.device)
    padded = triton.next_power_of_2(width)
    if num_sets:
        _means[(num_sets,)](weight, rows, offsets, means, width, padded, ROWS, num_warps=1)
    return means


@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def _looked_up(
    weight: tl.tensor,
    rows: tl.tensor,
    found: tl.tensor,
    size: tl.tensor,
    width: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """A block of `size` rows; see `looked_up`."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    column = tl.arange(0, padded)
    row = tl.load(rows + at, mask=at < size, other=0).to(tl.int64)
    there = (at < size)[:, None] & (column < width)[None, :]
    values = tl.load(weight + row[:, None] * width + column[None, :], mask=there, other=0.0)
    tl.store(found + at[:, None] * width + column[None, :], values.to(tl.float32), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _means(
    weight: tl.tensor,
    rows: tl.tensor,
    offsets: tl.tensor,
    means: tl.tensor,
    width: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Mean of one set; see `means_of_sets`."""
    own = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(offsets + own), tl.load(offsets + own + 1)
    column = tl.arange(0, padded)
    total = tl.zeros((padded,), tl.float32)
    for first in range(start, stop, block):
        at = first + tl.arange(0, block)
        row = tl.load(rows + at, mask=at < stop, other=0).to(tl.int64)
        places = row[:, None] * width + column[None, :]
        there = (at < stop)[:, None] & (column < width)[None, :]
        total += tl.sum(tl.load(weight + places, mask=there, other=0.0).to(tl.float32), 0)
    count = tl.maximum(stop - start, 1).to(tl.float32)
    tl.store(means + own * width + column, total / count, mask=column < width)
