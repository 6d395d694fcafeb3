"""The sum of a column that is seen block by block, to the last bit as NumPy adds it up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

SUMMED_AT_ONCE = 1 << 17


def pairwise_sum(blocks: Iterator[npt.NDArray[np.float64]], count: int) -> float:
    """The sum that `np.sum` gives for all values in one array, whatever the blocks are.

    NumPy halves an array until it is short and adds up the halves (Higham 1993, "The accuracy of
    floating point summation"); here the halving stops at what fits in memory, for NumPy to go on.

    Args:
        blocks: The values ``(n,)`` in order.
        count: How many there are.
    """
    waiting = np.empty(0)

    def take(number: int) -> npt.NDArray[np.float64]:
        nonlocal waiting
        parts, held = [waiting], len(waiting)
        while held < number:
            parts.append(next(blocks))
            held += len(parts[-1])
        taken = np.concatenate(parts)
        waiting = taken[number:]
        return taken[:number]

    def total(number: int) -> float:
        if number <= SUMMED_AT_ONCE:
            return float(np.sum(take(number)))
        half = number // 2
        half -= half % 8
        return total(half) + total(number - half)

    return total(count)
