"""A step of row-wise Adagrad on a GPU from gradients that nobody has summed by row.

Rows are sorted, with the places of their gradients beside them. Each program takes a block of them,
adds up what is of the same row, and steps a row whose gradients are all in the block at once, so
that its sum is never written. A row that goes on beyond the border of a block leaves one partial
sum in each; the list of those, two a block, is treated alike, until one block is left. However
often a row is there, nobody waits for anybody, nothing is added in the order of chance, and how
many distinct rows there are is not asked for.

Shapes: V rows of a table, D width, K rows with repeats, G gradients, n rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from twotower.models.row_gradients import RowGradients

# n: rows of a block. With one warp, a column of it is one thread's, and sums need no other thread.
BLOCK, WARPS = 16, 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """How rows are stepped; see `twotower.training.table_optimizers.RowWiseAdagrad`.

    Args:
        table: ``(V, D)`` float32 or bfloat16, changed in place.
        accumulator: ``(V,)`` float32, changed in place.
        lr: Learning rate.
        eps: Keeps the division finite.
        seed: Of the random bits by which a narrow table is rounded; see
            `twotower.training.stochastic_rounding`.
    """

    table: Tensor
    accumulator: Tensor
    lr: float
    eps: float
    seed: int = 0

    def take(self, gradients: RowGradients) -> None:
        """Step every row once, by the sum of its gradients.

        Args:
            gradients: Rows from V on are left out.
        """
        rows, order = gradients.rows.sort(stable=True)
        sources = order if gradients.sources is None else gradients.sources[order]
        values, width = gradients.values.contiguous(), self.table.shape[1]
        while len(rows):
            num_blocks = triton.cdiv(len(rows), BLOCK)
            partial_rows = rows.new_empty(2 * num_blocks)
            partial_sources = sources.new_empty(2 * num_blocks)
            partial = values.new_empty(2 * num_blocks, width)
            _step[(num_blocks,)](
                *(rows, sources, values, len(rows)),
                *(self.table, self.accumulator, len(self.table)),
                *(partial_rows, partial_sources, partial),
                *(self.lr, self.eps, self.seed),
                narrow=self.table.dtype == torch.bfloat16,
                width=width,
                padded=max(16, triton.next_power_of_2(width)),
                block=BLOCK,
                num_warps=WARPS,
            )
            if num_blocks == 1:
                return
            rows, sources, values = partial_rows, partial_sources, partial


@triton.jit(do_not_specialize=["size", "num_rows", "seed"])  # type: ignore[untyped-decorator]
def _step(  # noqa: PLR0913 - a kernel takes everything by itself
    rows: tl.tensor,
    sources: tl.tensor,
    values: tl.tensor,
    size: tl.tensor,
    table: tl.tensor,
    accumulator: tl.tensor,
    num_rows: tl.tensor,
    partial_rows: tl.tensor,
    partial_sources: tl.tensor,
    partial: tl.tensor,
    lr: tl.tensor,
    eps: tl.tensor,
    seed: tl.tensor,
    narrow: tl.constexpr,
    width: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Step what is whole in a block of `size` sorted rows, and leave the rest as partial sums."""
    start = tl.program_id(0) * block
    stop = tl.minimum(start + block, size)
    at = start + tl.arange(0, block)
    column = tl.arange(0, padded)
    row = tl.load(rows + at, mask=at < size, other=num_rows)  # (n,)
    source = tl.load(sources + at, mask=at < size, other=-1)
    has = (source >= 0)[:, None] & (column < width)[None, :]
    places = source.to(tl.int64)[:, None] * width + column[None, :]
    own = tl.load(values + places, mask=has, other=0.0)  # (n, D)

    # Rows that go on in the block before or after; -1 stands for none.
    first, last = tl.load(rows + start), tl.load(rows + stop - 1)
    before = tl.load(rows + start - 1, mask=start > 0, other=-1)
    after = tl.load(rows + stop, mask=stop < size, other=-1)
    follows = tl.load(rows + at + 1, mask=at + 1 < stop, other=-1)
    is_end = (at < stop) & (row != follows)
    open_first, open_last = before == first, after == last
    is_open = ((row == first) & open_first) | ((row == last) & open_last)

    # What is stepped is on its way while sums are made.
    whole = is_end & (is_open == 0) & (row < num_rows)
    moved = whole[:, None] & (column < width)[None, :]
    places = row.to(tl.int64)[:, None] * width + column[None, :]
    state = tl.load(accumulator + row, mask=whole, other=1.0)
    weight = tl.load(table + places, mask=moved, other=0.0).to(tl.float32)

    # Sums of a row up to every place of it in the block; the block is one thread's for a column.
    precedes = tl.load(rows + at - 1, mask=(at > start) & (at < size), other=-1)
    goes_on = tl.broadcast_to((row == precedes).to(tl.int32)[:, None], (block, padded))
    total, _ = tl.associative_scan((own, goes_on), 0, _joined)  # (n, D)

    state += tl.sum(total * total, 1) / width
    tl.store(accumulator + row, state, mask=whole)
    weight -= total * (lr / (tl.sqrt(state) + eps))[:, None]
    if narrow:
        weight = _rounded(weight, tl.randint(seed, places))
    tl.store(table + places, weight, mask=moved)

    # The first and the last row leave what they have; the last one only if it is another.
    slot = 2 * tl.program_id(0)
    of_first = tl.sum(tl.where((is_end & (row == first))[:, None], total, 0.0), 0)
    of_last = tl.sum(tl.where((is_end & (row == last))[:, None], total, 0.0), 0)
    another = open_last & ((first != last) | (open_first == 0))
    tl.store(partial_rows + slot, first)
    tl.store(partial_rows + slot + 1, last)
    tl.store(partial_sources + slot, tl.where(open_first, slot, -1))
    tl.store(partial_sources + slot + 1, tl.where(another, slot + 1, -1))
    there = column < width
    place = slot.to(tl.int64) * width + column
    if open_first:
        tl.store(partial + place, of_first, mask=there)
    if another:
        tl.store(partial + place + width, of_last, mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _joined(
    left: tl.tensor, left_goes_on: tl.tensor, right: tl.tensor, right_goes_on: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """The sum of two stretches of rows: of the last row, whose stretch may be all there is."""
    return tl.where(right_goes_on != 0, left + right, right), left_goes_on & right_goes_on


@triton.jit  # type: ignore[untyped-decorator]
def _rounded(values: tl.tensor, bits: tl.tensor) -> tl.tensor:
    """Float32 to bfloat16, up or down at random; bfloat16 is the upper half of a float32."""
    # One kind of "not a number", so that what is added to its lower bits makes no number of it.
    values = tl.where(values == values, values, float("nan"))
    moved = values.to(tl.int32, bitcast=True) + (bits.to(tl.int32) & 0xFFFF)
    return (moved & -65536).to(tl.float32, bitcast=True).to(tl.bfloat16)
