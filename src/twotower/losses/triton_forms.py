"""In what blocks the kernels of the sampled softmax work: what is tried at their first call.

One NVIDIA H200 takes 64 rows against 128; with 128 rows a block has one multiprocessor for itself.
"""

from __future__ import annotations

from typing import Any

import triton

# Rows and columns of a block, stages of its loads, and registers of a thread at most, or None: with
# 168 three blocks of 64 rows run side by side, and some numbers are kept elsewhere.
FORMS = (
    (64, 64, 2, None),
    (64, 64, 3, None),
    (64, 128, 1, None),
    (64, 128, 1, 168),
    (64, 128, 2, None),
    (64, 128, 3, None),
    (128, 64, 3, None),
    (128, 128, 2, None),
)


def tuned(rows: str, columns: str, *further: str) -> Any:  # noqa: ANN401 - Triton's own decorator
    """Chooses between blocks by trying them at the first call, where there is a GPU.

    They divide a tile of the mask. The rows of a block are those of what is added up; with four
    warps for 64 of them it stays in the registers, but for 96 bytes beside lists. Further parts of
    the key are constants of the kernel.
    """
    configs = [
        triton.Config({rows: m, columns: n}, num_warps=m // 16, num_stages=stages, maxnreg=most)
        for m, n, stages, most in FORMS
    ]
    first = configs[:1] if triton.knobs.runtime.interpret else configs
    key = ["width", "size", "known", "chunks", *further]
    return triton.autotune(configs=first, key=key)
