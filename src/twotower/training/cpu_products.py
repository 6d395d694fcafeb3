"""Which library multiplies float32 matrices while a CPU trains.

PyTorch has two. It gives such products to MKL, unless they may be rounded to bfloat16 on the way
(`torch.set_float32_matmul_precision`, "medium"); then oneDNN gets them. oneDNN makes use of that
leave only where the processor has units for it (AMX). On all others it multiplies in float32 like
MKL, and on those that are not Intel's it is faster: 100 to 114 GFLOP/s on a core of Zen 4 where MKL
has 68 to 98 (``benchmarks/speed/products.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PROBED = 128  # rows and columns
BEYOND_BFLOAT16 = 1 + 2**-12  # has 8 bits of mantissa there, and is rounded to 1


@contextmanager
def float32_by_onednn(device: torch.device) -> Iterator[bool]:
    """Let oneDNN multiply float32 matrices on a CPU, if it does so in float32.

    Args:
        device: What is trained on; nothing is done for a GPU.

    Yields:
        Whether it does. Afterwards torch multiplies as before.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        yield False
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    exact = not _rounds()
    if not exact:
        torch.set_float32_matmul_precision(before)
    try:
        yield exact
    finally:
        torch.set_float32_matmul_precision(before)


def _rounds() -> bool:
    """Whether factors of a product lose what bfloat16 has no room for."""
    factor = torch.full((PROBED, PROBED), BEYOND_BFLOAT16)
    expected = PROBED * BEYOND_BFLOAT16**2
    product = torch.mm(factor, factor).float()
    return bool((product - expected).abs().max() > expected * 2**-16)
