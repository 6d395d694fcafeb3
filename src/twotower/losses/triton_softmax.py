"""Sums and gradients of the sampled softmax on a GPU, without a matrix of logits.

In two kernels, each of two matrix products; logits are recomputed in the second. The first goes
over all candidates for a block of queries and keeps, as in attention, the largest logit, the sum
and the weighted sum of candidates up to there:

    o_b = log sum_c exp(l_bc),    O_b = sum_c exp(l_bc - o_b) v_c,    l_bc = s_bc / T - log E_c.

Where the lengths of the vectors say that no logit can be far below the largest, as those of unit
vectors at most temperatures, one bound for all takes the largest logit's place, and nothing has to
be looked for or scaled on the way.

The second goes over all queries for a block of candidates:

    G_c = sum_b exp(l_bc - shift_b) u_b,    shift_b = o_b - log g_b,

where g_b, what the loss pulls at o_b with, is in the exponent and costs nothing. Logits are kept in
base 2. Nothing of size B x C is written, and nothing is added in the order of chance.

Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning";
Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models".

Shapes: B queries, C candidates, D width of the vectors, m and n rows of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from twotower.losses.mask_tiles import TILE, MaskTiles
from twotower.losses.triton_mask import CHUNK, CHUNKS
from twotower.losses.triton_sums import sums_of_candidates, sums_of_queries

LOG2_E = 1.4426950408889634
# How far below the largest logit another one may be for its exponential, in base 2, to be a number
# of full precision, with room for a sum of many.
FAR = 100.0


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
        bound = self._bound()
        # One of the two has nothing to do; which one is not asked for here.
        for bounded in (True, False):
            sums_of_queries[lambda found: (triton.cdiv(num_queries, found["block_m"]),)](
                *(*self._vectors(), bound, log_sums, means),
                *(*self._mask(), *self._numbers()),
                bounded=bounded,
                width=width,
            )
        return log_sums, means

    def _bound(self) -> Tensor:
        """What no logit is above, ``(1,)`` in base 2; infinity where some may be far below."""
        lengths = [
            vectors.float().norm(dim=1).amax() for vectors in (self.queries, self.candidates)
        ]
        most = self.rate * lengths[0] * lengths[1]
        counts = self.offsets.isfinite()
        high = self.offsets.amax()
        low = torch.where(counts, self.offsets, high).amin()
        bound = most + high
        return torch.where(most + bound - low < FAR, bound, torch.inf).reshape(1)

    def of_candidates(self, shift: Tensor) -> Tensor:
        """G ``(C, D)`` in float32 and the order of the candidates as they were given.

        Args:
            shift: ``(B,)`` float32; infinity for a query that pulls at nothing.
        """
        num_candidates, width = self.candidates.shape
        found = self.offsets.new_empty(num_candidates, width)
        sums_of_candidates[lambda config: (triton.cdiv(num_candidates, config["block_n"]),)](
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
