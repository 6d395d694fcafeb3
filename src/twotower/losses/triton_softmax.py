"""Sums and gradients of the sampled softmax on a GPU, without a matrix of logits.

In two kernels, each of two matrix products; logits are recomputed in the second. The first goes
over all candidates for a block of queries and keeps, as in attention, the largest logit, the sum
and the weighted sum of candidates up to there:

    o_b = log sum_c exp(l_bc),    O_b = sum_c exp(l_bc - o_b) v_c,    l_bc = s_bc / T - log E_c.

The second goes over all queries for a block of candidates:

    G_c = sum_b exp(l_bc - shift_b) u_b,    shift_b = o_b - log g_b,

where g_b, what the loss pulls at o_b with, is in the exponent and costs nothing. Logits are kept in
base 2. Nothing of size B x C is written, and nothing is added in the order of chance.

Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning";
Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models".

Not yet run on a GPU: tested in Triton's interpreter, and compiled for compute capability 9.0.

Shapes: B queries, C candidates, D width of the vectors, m and n rows of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from twotower.losses.mask_tiles import TILE, MaskTiles
from twotower.losses.triton_mask import CHUNK, CHUNKS, without_known

LOG2_E = 1.4426950408889634


def _tuned(rows: str, columns: str) -> Any:  # noqa: ANN401 - Triton's own decorator
    """Chooses between blocks by trying them at the first call, where there is a GPU.

    They divide a tile of the mask. The rows of a block are those of what is added up; with four
    warps for 64 of them it stays in the registers, but for 96 bytes beside lists.
    """
    configs = [
        triton.Config({rows: m, columns: n}, num_warps=m // 16, num_stages=stages)
        for m in (64, 128)
        for n in (64, 128)
        for stages in (2, 3)
    ]
    first = configs[:1] if triton.knobs.runtime.interpret else configs
    return triton.autotune(configs=first, key=["width", "size", "known", "chunks"])


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What both kernels read.

    Args:
        queries: ``(B, D)``, in the precision of the products; sums are in float32.
        candidates: ``(C, D)``, in the order of `tiles`.
        offsets: ``(C,)`` float32, added to the logits in base 2; minus infinity masks.
        rate: What scores are multiplied by: log2(e) / T.
        tiles: The mask.
    """

    queries: Tensor
    candidates: Tensor
    offsets: Tensor
    rate: float
    tiles: MaskTiles

    @staticmethod
    def of(
        queries: Tensor,
        candidates: Tensor,
        log_expected_count: Tensor,
        *,
        temperature: float,
        tiles: MaskTiles,
        products: torch.dtype,
    ) -> Problem:
        """Of vectors ``(B, D)`` and ``(C, D)``; `products` is their precision in the kernels."""
        if tiles.order is not None:
            candidates = candidates[tiles.order]
            log_expected_count = log_expected_count[tiles.order]
        offsets = -LOG2_E * log_expected_count.float()
        if tiles.never is not None:
            offsets = offsets.masked_fill(tiles.never, -torch.inf)
        return Problem(
            queries=queries.to(products).contiguous(),
            candidates=candidates.to(products).contiguous(),
            offsets=offsets.contiguous(),
            rate=LOG2_E / temperature,
            tiles=tiles,
        )

    def sums(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the sums ``(B,)`` and weighted means of the candidates ``(B, D)``.

        Both in float32; for a query without candidates the lowest number, and zero.
        """
        num_queries, width = self.queries.shape
        log_sums = self.offsets.new_empty(num_queries)
        means = self.offsets.new_empty(num_queries, width)
        _sums[lambda found: (triton.cdiv(num_queries, found["block_m"]),)](
            *self._vectors(), log_sums, means, *self._mask(), *self._numbers(), width=width
        )
        return log_sums, means

    def of_candidates(self, shift: Tensor) -> Tensor:
        """G ``(C, D)`` in float32 and the order of the candidates as they were given.

        Args:
            shift: ``(B,)`` float32; infinity for a query that pulls at nothing.
        """
        num_candidates, width = self.candidates.shape
        found = self.offsets.new_empty(num_candidates, width)
        _of_candidates[lambda config: (triton.cdiv(num_candidates, config["block_n"]),)](
            *self._vectors(),
            LOG2_E * shift.float(),
            found,
            *self._mask(),
            *self._numbers(),
            width=width,
        )
        order = self.tiles.order
        return found if order is None else torch.empty_like(found).index_copy_(0, order, found)

    def _vectors(self) -> tuple[Tensor, ...]:
        return self.queries, self.candidates, self.offsets

    def _mask(self) -> tuple[Tensor | bool | int, ...]:
        """The mask's tensors; which of them count; tile, chunk and chunks of lists.

        What does not count is not looked at.
        """
        tiles, known = self.tiles, self.tiles.known
        targets = tiles.rows if tiles.target_rows is None else tiles.target_rows
        lists, packed = (tiles.rows, tiles.rows) if known is None else (known.lists, known.packed)
        few = known is None or known.longest <= CHUNK * CHUNKS
        return (
            *(targets, tiles.rows, lists, packed),
            *(tiles.target_rows is not None, known is not None),
            *(TILE, CHUNK, CHUNKS if few else 0),
        )

    def _numbers(self) -> tuple[int, int, float, int]:
        """B, C, the rate, and how large it all is: what is tuned for one size does for others."""
        num_queries, num_candidates = len(self.queries), len(self.candidates)
        size = (num_queries * num_candidates).bit_length()
        return num_queries, num_candidates, self.rate, size


@triton.jit  # type: ignore[untyped-decorator]
def _rows_of(vectors: tl.tensor, at: tl.tensor, num: tl.tensor, width: tl.constexpr) -> tl.tensor:
    """Rows of a matrix ``(num, D)``, zeros where there are none."""
    places = at[:, None] * width + tl.arange(0, width)[None, :]
    return tl.load(vectors + places, mask=at[:, None] < num, other=0.0)


@_tuned("block_m", "block_n")  # type: ignore[untyped-decorator]
@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def _sums(  # noqa: PLR0913
    queries: tl.tensor,
    candidates: tl.tensor,
    offsets: tl.tensor,
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
    highest = tl.full((block_m,), float("-inf"), tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    mean = tl.zeros((block_m, width), tl.float32)
    for candidate in range(0, num_candidates, block_n):
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
        top = tl.maximum(highest, tl.max(logits, 1))
        # Minus infinity from itself is no number; nothing stands against such a query yet.
        base = tl.where(top == float("-inf"), 0.0, top)
        values = tl.exp2(logits - base[:, None])
        shrink = tl.exp2(highest - base)
        total = total * shrink + tl.sum(values, 1)
        mean = tl.dot(
            values.to(block.dtype), block, mean * shrink[:, None], input_precision="ieee"
        )  # (m, D)
        highest = top
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    lowest = -3.4028234663852886e38
    log_sum = tl.where(empty, lowest, (highest + tl.log2(total)) * 0.6931471805599453)
    tl.store(log_sums + at, log_sum, mask=at < num_queries)
    places = at[:, None] * width + tl.arange(0, width)[None, :]
    tl.store(means + places, mean / total[:, None], mask=at[:, None] < num_queries)


@_tuned("block_n", "block_m")  # type: ignore[untyped-decorator]
@triton.jit(do_not_specialize=["size"])  # type: ignore[untyped-decorator]
def _of_candidates(  # noqa: PLR0913
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
