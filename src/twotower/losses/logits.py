"""How the scores of the sampled softmax become logits, and how many queries are a block.

Shapes: B queries, C candidates, D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twotower.losses.masks import CandidateMask, tiles_of
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

    def kernels(self, products: torch.dtype | None) -> Kernels | None:
        """What kernels need, with products in some precision; None without it, or such a mask."""
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
