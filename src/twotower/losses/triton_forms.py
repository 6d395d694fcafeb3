"""In what blocks the kernel of the sampled softmax works: what is tried at its first call."""

from __future__ import annotations

from typing import Any

import triton

# Rows and columns of a block, stages of its loads, and registers of a thread at most, or None. One
# NVIDIA H200 takes 64 rows against 128 for 16,384 queries and candidates, and 128 against 64 for
# 65,536; without the limit, a block of 128 rows would have one multiprocessor for itself.
FORMS = (
    (64, 64, 2, None),
    (64, 128, 2, None),
    (64, 128, 3, None),
    (128, 64, 3, 128),
    (128, 128, 2, None),
)


def tuned(kernel: Any) -> Any:  # noqa: ANN401 - Triton's own types
    """Chooses between blocks by trying them at the first call, where there is a GPU.

    They divide a tile of the mask. With four warps for 64 rows
    what is added up stays in the registers.
    """
    configs = [
        triton.Config(
            {"block_m": m, "block_n": n}, num_warps=m // 16, num_stages=stages, maxnreg=most
        )
        for m, n, stages, most in FORMS
    ]
    first = configs[:1] if triton.knobs.runtime.interpret else configs
    key = ["width", "size", "compares", "known", "chunks", "by_candidate", "bounded"]
    return triton.autotune(configs=first, key=key)(kernel)
