"""The two kernels of the sampled softmax; see `twotower.losses.triton_softmax`.

Shapes: B queries, C candidates, D width of the vectors, m and n rows of the blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from twotower.losses.triton_forms import tuned
from twotower.losses.triton_mask import without_known


@triton.jit  # type: ignore[untyped-decorator]
def _rows_of(vectors: tl.tensor, at: tl.tensor, num: tl.tensor, width: tl.constexpr) -> tl.tensor:
    """Rows of a matrix ``(num, D)``, zeros where there are none."""
    places = at[:, None] * width + tl.arange(0, width)[None, :]
    return tl.load(vectors + places, mask=at[:, None] < num, other=0.0)


@tuned("block_m", "block_n", "bounded")  # type: ignore[untyped-decorator]
@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def sums_of_queries(  # noqa: PLR0913
    queries: tl.tensor,
    candidates: tl.tensor,
    offsets: tl.tensor,
    bound: tl.tensor,
    log_sums: tl.tensor,
    means: tl.tensor,
    target_rows: tl.tensor,
    rows: tl.tensor,
    lists: tl.tensor,
    packed: tl.tensor,
    has_targets: tl.constexpr,
    known: tl.constexpr,
    tile: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    num_queries: tl.tensor,
    num_candidates: tl.tensor,
    rate: tl.tensor,
    size: tl.tensor,
    bounded: tl.constexpr,
    width: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
) -> None:
    """Sums of a block of queries; see `Problem.sums`."""
    query = tl.program_id(0) * block_m
    at = query + tl.arange(0, block_m)
    own = _rows_of(queries, at, num_queries, width)  # (m, D)
    if has_targets:
        targets = tl.load(target_rows + at, mask=at < num_queries, other=-1)
    limit = tl.load(bound)
    mine = (limit < float("inf")) == bounded
    end, num_stored = tl.where(mine, num_candidates, 0), tl.where(mine, num_queries, 0)
    total = tl.zeros((block_m,), tl.float32)
    mean = tl.zeros((block_m, width), tl.float32)
    highest = tl.full((block_m,), float("-inf"), tl.float32)
    if bounded:
        highest = tl.zeros((block_m,), tl.float32) + limit
    for candidate in range(0, end, block_n):
        column = candidate + tl.arange(0, block_n)
        block = _rows_of(candidates, column, num_candidates, width)  # (n, D)
        offset = tl.load(offsets + column, mask=column < num_candidates, other=float("-inf"))
        logits = tl.dot(own, tl.trans(block), input_precision="ieee")  # (m, n)
        logits = logits * rate + offset[None, :]
        if has_targets:
            item = tl.load(rows + column, mask=column < num_candidates, other=-1)
            logits = tl.where(targets[:, None] == item[None, :], float("-inf"), logits)
        if known:
            logits = without_known(
                logits,
                query,
                candidate,
                lists,
                packed,
                num_candidates,
                block_m,
                block_n,
                False,
                tile,
                chunk,
                chunks,
            )
        if bounded:
            values = tl.exp2(logits - limit)
        else:
            top = tl.maximum(highest, tl.max(logits, 1))
            # Minus infinity from itself is no number; nothing stands against such a query yet.
            base = tl.where(top == float("-inf"), 0.0, top)
            values = tl.exp2(logits - base[:, None])
            shrink = tl.exp2(highest - base)
            total *= shrink
            mean *= shrink[:, None]
            highest = top
        total += tl.sum(values, 1)
        mean = tl.dot(values.to(block.dtype), block, mean, input_precision="ieee")  # (m, D)
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    lowest = -3.4028234663852886e38
    log_sum = tl.where(empty, lowest, (highest + tl.log2(total)) * 0.6931471805599453)
    tl.store(log_sums + at, log_sum, mask=at < num_stored)
    places = at[:, None] * width + tl.arange(0, width)[None, :]
    tl.store(means + places, mean / total[:, None], mask=at[:, None] < num_stored)


@tuned("block_n", "block_m")  # type: ignore[untyped-decorator]
@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def sums_of_candidates(  # noqa: PLR0913
    queries: tl.tensor,
    candidates: tl.tensor,
    offsets: tl.tensor,
    shifts: tl.tensor,
    gradient: tl.tensor,
    target_rows: tl.tensor,
    rows: tl.tensor,
    lists: tl.tensor,
    packed: tl.tensor,
    has_targets: tl.constexpr,
    known: tl.constexpr,
    tile: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
    num_queries: tl.tensor,
    num_candidates: tl.tensor,
    rate: tl.tensor,
    size: tl.tensor,
    width: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
) -> None:
    """Gradient of a block of candidates; see `Problem.of_candidates`."""
    candidate = tl.program_id(0) * block_n
    column = candidate + tl.arange(0, block_n)
    own = _rows_of(candidates, column, num_candidates, width)  # (n, D)
    offset = tl.load(offsets + column, mask=column < num_candidates, other=float("-inf"))
    if has_targets:
        item = tl.load(rows + column, mask=column < num_candidates, other=-1)
    found = tl.zeros((block_n, width), tl.float32)
    for query in range(0, num_queries, block_m):
        at = query + tl.arange(0, block_m)
        block = _rows_of(queries, at, num_queries, width)  # (m, D)
        shift = tl.load(shifts + at, mask=at < num_queries, other=float("inf"))
        logits = tl.dot(own, tl.trans(block), input_precision="ieee")  # (n, m)
        logits = logits * rate + offset[:, None]
        if has_targets:
            targets = tl.load(target_rows + at, mask=at < num_queries, other=-1)
            logits = tl.where(item[:, None] == targets[None, :], float("-inf"), logits)
        if known:
            logits = without_known(
                logits,
                query,
                candidate,
                lists,
                packed,
                num_candidates,
                block_m,
                block_n,
                True,
                tile,
                chunk,
                chunks,
            )
        values = tl.exp2(logits - shift[None, :])
        found = tl.dot(values.to(block.dtype), block, found, input_precision="ieee")  # (n, D)
    places = column[:, None] * width + tl.arange(0, width)[None, :]
    tl.store(gradient + places, found, mask=column[:, None] < num_candidates)
