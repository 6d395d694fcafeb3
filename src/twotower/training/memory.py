"""What glibc does with memory that a step has freed: keep it for the next step.

A matrix of some megabytes is by default mapped from the system when it is made and given back when
it is freed, so every step pays for fresh pages, zeroed one by one. On a CPU that is up to two
fifths of a training step (``benchmarks/softmax.py``). The process grows to its peak, and some more
for gaps, and stays there.
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3), from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def keep_freed_memory() -> bool:
    """Let the C library reuse what is freed instead of giving it back to the system.

    Returns:
        Whether it does: only glibc, on Linux, can be told to.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
