"""The kernel of the sampled softmax; see `twotower.losses.triton_softmax`.

It sums over columns for a block of rows: over candidates for queries, or over queries for
candidates. The two differ in what a row leaves, and in which side a list of known positives names
first.

Shapes: R rows, C columns, D width of the vectors, m and n rows and columns of a block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twotower.losses.triton_forms import tuned
from twotower.losses.triton_mask import without_known


@tuned
@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def weighted_sums(  # noqa: PLR0913 - a kernel takes everything by itself
    vectors: tl.tensor,
    columns: tl.tensor,
    terms: tl.tensor,
    row_terms: tl.tensor,
    bound: tl.tensor,
    log_sums: tl.tensor,
    sums: tl.tensor,
    row_places: tl.tensor,
    items: tl.tensor,
    column_items: tl.tensor,
    starts: tl.tensor,
    stops: tl.tensor,
    lists: tl.tensor,
    packed: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    rate: tl.tensor,
    size: tl.tensor,
    compares: tl.constexpr,
    known: tl.constexpr,
    by_candidate: tl.constexpr,
    bounded: tl.constexpr,
    tile: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    width: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
) -> None:
    """Sums of a block of rows; see `Problem`, which has filled everything up to whole tiles."""
    first = tl.program_id(0) * block_m
    at = first + tl.arange(0, block_m)
    own = _block_of(vectors, first, block_m, width)  # (m, D)
    highest = tl.full((block_m,), float("-inf"), tl.float32)
    end, num_stored = num_columns, num_rows
    if not by_candidate:
        limit = tl.load(bound)
        mine = (limit < float("inf")) == bounded
        end, num_stored = tl.where(mine, num_columns, 0), tl.where(mine, num_rows, 0)
        if bounded:
            highest = tl.zeros((block_m,), tl.float32) + limit

    # Rows and columns are ordered by item; columns of the items of this block lie in one stretch.
    low, high, item = end * 0, end * 0, at
    if compares:
        item = tl.load(items + at)
        if known:
            high = end
        else:
            low = tl.minimum(tl.load(starts + first) // block_n * block_n, end)
            stop = tl.load(stops + first + block_m - 1)
            high = tl.minimum(tl.cdiv(stop, block_n) * block_n, end)
    total = tl.zeros((block_m,), tl.float32)
    sum_ = tl.zeros((block_m, width), tl.float32)
    if compares:
        for column in range(low, high, block_n):
            total, sum_, highest = _with_block(
                *(total, sum_, highest, own, item, first, column),
                *(columns, terms, column_items, lists, packed, num_rows, num_columns, rate),
                *(True, known, by_candidate, bounded, tile, chunk, chunks),
                *(width, block_m, block_n),
            )
    if not (compares and known):
        for step in range(0, end - (high - low), block_n):
            column = tl.where(step < low, step, step + (high - low))
            total, sum_, highest = _with_block(
                *(total, sum_, highest, own, item, first, column),
                *(columns, terms, column_items, lists, packed, num_rows, num_columns, rate),
                *(False, known, by_candidate, bounded, tile, chunk, chunks),
                *(width, block_m, block_n),
            )

    place = tl.load(row_places + at)
    there, places = place < num_stored, place[:, None] * width + tl.arange(0, width)[None, :]
    if by_candidate:
        factor = tl.exp2(tl.load(row_terms + at))[:, None]
        # Sums of a candidate that stands against nobody may be too large for a number.
        tl.store(sums + places, tl.where(factor > 0.0, sum_ * factor, 0.0), mask=there[:, None])
    else:
        empty = total == 0.0
        total = tl.where(empty, 1.0, total)
        lowest = -3.4028234663852886e38
        log_sum = tl.where(empty, lowest, (highest + tl.log2(total)) * 0.6931471805599453)
        tl.store(log_sums + place, log_sum, mask=there)
        tl.store(sums + places, sum_ / total[:, None], mask=there[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _block_of(
    vectors: tl.tensor, first: tl.tensor, num: tl.constexpr, width: tl.constexpr
) -> tl.tensor:
    """Rows ``(num, D)`` of a matrix; the first is added to the address of all, outside of them."""
    places = tl.arange(0, num)[:, None] * width + tl.arange(0, width)[None, :]
    return tl.load(vectors + first * width + places)


@triton.jit  # type: ignore[untyped-decorator]
def _with_block(  # noqa: PLR0913
    total: tl.tensor,
    sum_: tl.tensor,
    highest: tl.tensor,
    own: tl.tensor,
    item: tl.tensor,
    first: tl.tensor,
    column: tl.tensor,
    columns: tl.tensor,
    terms: tl.tensor,
    column_items: tl.tensor,
    lists: tl.tensor,
    packed: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    rate: tl.tensor,
    compares: tl.constexpr,
    known: tl.constexpr,
    by_candidate: tl.constexpr,
    bounded: tl.constexpr,
    tile: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    width: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Totals ``(m,)``, sums ``(m, D)`` and largest logits with a block of columns among them."""
    block = _block_of(columns, column, block_n, width)  # (n, D)
    term = tl.load(terms + column + tl.arange(0, block_n))
    logits = tl.dot(own, tl.trans(block), input_precision="ieee")  # (m, n)
    logits = logits * rate + term[None, :]
    if compares:
        other = tl.load(column_items + column + tl.arange(0, block_n))
        logits = tl.where(item[:, None] == other[None, :], float("-inf"), logits)
    if known:
        if by_candidate:
            logits = without_known(
                *(logits, column, first, lists, packed, num_rows, block_n, block_m, True),
                *(tile, chunk, chunks),
            )
        else:
            logits = without_known(
                *(logits, first, column, lists, packed, num_columns, block_m, block_n, False),
                *(tile, chunk, chunks),
            )
    if bounded:
        values = tl.exp2(logits)
    else:
        top = tl.maximum(highest, tl.max(logits, 1))
        # Minus infinity from itself is no number; nothing stands against such a query yet.
        base = tl.where(top == float("-inf"), 0.0, top)
        values = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(highest - base)
        total *= shrink
        sum_ *= shrink[:, None]
        highest = top
    if not by_candidate:
        total += tl.sum(values, 1)
    sum_ = tl.dot(values.to(block.dtype), block, sum_, input_precision="ieee")  # (m, D)
    return total, sum_, highest
