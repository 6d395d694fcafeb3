"""In what precision the sampled softmax multiplies, and which of it is left to a GPU's kernels.

Loads without Triton.

Kernels need Triton, a GPU that knows bfloat16, vectors in half precision or autocast, and a width
among theirs. A mask that is a matrix, or that has mined candidates, is left to torch too. The loss
is the same, but for the rounding of the vectors.

Shapes: B queries, C candidates, D width of the vectors.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from twotower.losses.mask_tiles import MaskTiles

if TYPE_CHECKING:
    from twotower.losses.triton_softmax import Problem

# D of the kernels: what a product takes, and what still fits the registers of a block.
WIDTHS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """That sums over candidates are left to kernels.

    Args:
        temperature: T, above 0.
        log_expected_count: ``(C,)``, taken off after the division.
        tiles: The mask.
        products: Precision of the products, whose sums are in float32.
    """

    temperature: float
    log_expected_count: Tensor
    tiles: MaskTiles
    products: torch.dtype

    def problem(self, queries: Tensor, candidates: Tensor) -> Problem:
        """Of queries ``(B, D)`` and candidates ``(C, D)``."""
        from twotower.losses.triton_softmax import Problem

        return Problem.of(
            *(queries, candidates, self.log_expected_count),
            temperature=self.temperature,
            tiles=self.tiles,
            products=self.products,
        )


def kernel_precision(queries: Tensor, candidates: Tensor) -> torch.dtype | None:
    """What kernels narrow ``(B, D)`` and ``(C, D)`` to; None where torch has to compute."""
    if queries.device.type != "cuda" or not len(queries) or not len(candidates):
        return None
    width = queries.shape[1]
    if width not in WIDTHS or not _narrow(queries, candidates):
        return None
    # Kernels count places in a matrix in 32 bits.
    if max(len(queries), len(candidates)) * width >= 2**31:
        return None
    known = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if known and _has_triton() else None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def cpu_precision(queries: Tensor, candidates: Tensor) -> torch.dtype | None:
    """What a CPU narrows the factors of a gradient to; None where it leaves them as they are.

    Args:
        queries: ``(B, D)``.
        candidates: ``(C, D)``.
    """
    on_cpu = queries.device.type == "cpu"
    return torch.bfloat16 if on_cpu and _narrow(queries, candidates) else None


def _narrow(queries: Tensor, candidates: Tensor) -> bool:
    """Whether products in half precision are asked for."""
    dtypes = {queries.dtype, candidates.dtype}
    halves = dtypes <= {torch.bfloat16, torch.float16}
    autocast = torch.is_autocast_enabled(queries.device.type)
    return torch.float64 not in dtypes and (halves or autocast)
