"""From vectors to the logits of the sampled softmax, a block of queries at a time.

Shapes: B queries, C candidates, D width of the vectors, b queries of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twotower.losses.masks import CandidateMask, hide_, tiles_of
from twotower.losses.softmax_kernels import Kernels

# Logits of a block: what a cache holds, and what fills a GPU, which holds them twice.
CPU_BLOCK, GPU_BLOCK = 2**20, 2**26
# Queries at least: the gradient of all candidates is rewritten for every block.
SMALLEST_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class Logits:
    """How scores of candidates become logits.

    Args:
        temperature: T, above 0.
        log_expected_count: ``(C,)``, taken off after the division.
        masked: Which candidates must not stand against which queries.
        block: Queries of a block; None for as many as suit the device.
        products: What the products that give gradients narrow to; None for not at all.
    """

    temperature: float
    log_expected_count: Tensor
    masked: CandidateMask
    block: int | None = None
    products: torch.dtype | None = None

    def factors(self, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is multiplied, of queries ``(B, D)`` and candidates ``(C, D)``, and what is added.

        On a CPU the correction is a column more of both, ``(B, D + 1)`` and ``(C, D + 1)``, which
        the product hardly notices, and nothing is added: that would take a pass over all logits
        before it and one within it. A GPU may round factors, so ``(C,)`` is added there.
        """
        queries, offset = queries / self.temperature, -self.log_expected_count.to(queries.dtype)
        if queries.device.type != "cpu":
            return queries, candidates, offset
        queries = torch.cat([queries, torch.ones_like(queries[:, :1])], dim=1)
        return queries, torch.cat([candidates, offset.unsqueeze(1)], dim=1), None

    def of(
        self, queries: Tensor, candidates: Tensor, offset: Tensor | None, start: int, out: Tensor
    ) -> None:
        """Write the logits ``(b, C)`` of the queries that begin at `start`, `factors` of them."""
        if offset is None:
            torch.mm(queries, candidates.T, out=out)
        else:
            torch.addmm(offset, queries, candidates.T, out=out)
        # Not minus infinity: a query without candidates shall have a gradient, zero.
        hide_(out, self.masked, start, torch.finfo(out.dtype).min)

    def kernels(self, products: torch.dtype | None) -> Kernels | None:
        """The same for kernels with products in some precision; None without it, or such a mask."""
        tiles = None if products is None else tiles_of(self.masked)
        if products is None or tiles is None:
            return None
        return Kernels(
            temperature=self.temperature,
            log_expected_count=self.log_expected_count,
            tiles=tiles,
            products=products,
        )

    def starts(self, queries: Tensor, candidates: Tensor) -> range:
        """Where the blocks of queries ``(B, D)`` begin, for candidates ``(C, D)``."""
        budget = CPU_BLOCK if queries.device.type == "cpu" else GPU_BLOCK
        size = self.block or max(SMALLEST_BLOCK, budget // len(candidates))
        return range(0, len(queries), size)
