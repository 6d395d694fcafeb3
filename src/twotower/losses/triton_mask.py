"""Known positives in a block of logits of a Triton kernel; see `twotower.losses.mask_tiles`.

Shapes: m queries and n candidates of the block.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Pieces that are looked at together, as many as a product has on its inner side; at least 16.
CHUNK = 32
# Chunks that are looked at one after the other without a loop: the loop around them can then read
# ahead. As many as a tile has pieces where every query has one.
CHUNKS = 4


@triton.jit  # type: ignore[untyped-decorator]
def without_known(  # noqa: PLR0913 - a kernel takes everything by itself
    logits: tl.tensor,
    query: tl.tensor,
    candidate: tl.tensor,
    lists: tl.tensor,
    packed: tl.tensor,
    num_candidates: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    by_candidate: tl.constexpr,
    tile: tl.constexpr,
    chunk: tl.constexpr,
    chunks: tl.constexpr,
) -> tl.tensor:
    """Logits of a block with minus infinity in the place of known positives.

    Args:
        logits: ``(m, n)``, or ``(n, m)`` with `by_candidate`.
        query: The first of the block.
        candidate: The first of the block.
        lists: Where the pieces of each tile begin.
        packed: The pieces.
        num_candidates: C.
        block_m: m.
        block_n: n.
        by_candidate: Whether a row is a candidate.
        tile: Queries and candidates of a tile; m and n divide it.
        chunk: Pieces that are looked at together.
        chunks: How many chunks a list has at most, or 0 for as many as there are.
    """
    place = query // tile * tl.cdiv(num_candidates, tile) + candidate // tile
    start, stop = tl.load(lists + place), tl.load(lists + place + 1)
    at = query % tile + tl.arange(0, block_m)
    column = candidate % tile + tl.arange(0, block_n)
    if chunks > 0:
        for index in tl.static_range(chunks):
            first = start + index * chunk
            if first < stop:
                logits = _without_chunk(
                    logits, at, column, packed, first, stop, by_candidate, chunk
                )
    else:
        for first in range(start, stop, chunk):
            logits = _without_chunk(logits, at, column, packed, first, stop, by_candidate, chunk)
    return logits


@triton.jit  # type: ignore[untyped-decorator]
def _without_chunk(
    logits: tl.tensor,
    at: tl.tensor,
    column: tl.tensor,
    packed: tl.tensor,
    first: tl.tensor,
    stop: tl.tensor,
    by_candidate: tl.constexpr,
    chunk: tl.constexpr,
) -> tl.tensor:
    """The same for a chunk of pieces, for queries and candidates at places in the tile.

    Which pieces are of a query, and which cover a candidate, are two matrices of zeros and ones;
    their product is above zero where a piece masks.
    """
    places = first + tl.arange(0, chunk)
    piece = tl.load(packed + places, mask=places < stop, other=0)
    low, high = (piece >> 8) & 255, piece >> 16
    of_query = (at[:, None] == (piece & 255)[None, :]).to(tl.float16)  # (m, chunk)
    above, below = column[:, None] >= low[None, :], column[:, None] < high[None, :]
    covers = (above & below).to(tl.float16)  # (n, chunk)
    if by_candidate:
        hits = tl.dot(covers, tl.trans(of_query))  # (n, m)
    else:
        hits = tl.dot(of_query, tl.trans(covers))  # (m, n)
    return tl.where(hits > 0, float("-inf"), logits)
