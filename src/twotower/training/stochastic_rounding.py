"""Steps of a table in bfloat16 that are right on average.

A number of bfloat16 has 8 bits, so a step below 1/512 of a weight, as most are, would be lost if it
were rounded to the nearest. Rounded up or down at random, with the nearer one as much likelier as
it is nearer, the expected weight is the exact one, and small steps add up.

Gupta et al. 2015, "Deep Learning with Limited Numerical Precision"; for tables Zhang et al. 2018,
"Training with Low-precision Embedding Tables".

Shapes: V rows of a table, D width, K rows that are stepped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# bfloat16 is the upper half of a float32.
LOWER_BITS = 16
# Numbers that a CPU steps at once, so that they stay in its cache.
BLOCK = 2**17


def stochastic_round_(values: Tensor, noise: torch.Generator) -> Tensor:
    """Round to bfloat16, up or down at random.

    What bfloat16 has stays as it is, infinities and what is not a number too.

    Args:
        values: Float32 numbers of any shape, which are written over.
        noise: Where random bits come from, on the device of the values.

    Returns:
        bfloat16 numbers of the same shape, each one of the two neighbours of its value.
    """
    # One kind of "not a number", so that what is added to its lower bits makes no number of it.
    values.nan_to_num_(nan=math.nan, posinf=math.inf, neginf=-math.inf)
    bits = values.view(torch.int32)
    bits.add_(_random_bits(values, noise))
    bits.bitwise_and_(-(2**LOWER_BITS))
    return values.bfloat16()


def add_rounded(
    table: Tensor, change: Tensor, noise: torch.Generator, rows: Tensor | None = None
) -> None:
    """Add to rows of a table, in float32, and round stochastically.

    Args:
        table: bfloat16 ``(V, D)``, changed in place.
        change: Float32 ``(K, D)``.
        noise: Where random bits come from, on the device of the table.
        rows: ``(K,)`` distinct rows; None for all rows.
    """
    # A CPU copies number by number: four in one are twice as fast.
    wide = table.view(torch.int64) if table.shape[1] % 4 == 0 else table
    size = len(change) if table.device.type != "cpu" else max(1, BLOCK // table.shape[1])
    for start in range(0, len(change), max(1, size)):
        part = slice(start, start + size)
        if rows is None:
            table[part] = stochastic_round_(table[part].float().add_(change[part]), noise)
        else:
            there = rows[part]
            moved = stochastic_round_(
                table.index_select(0, there).float().add_(change[part]), noise
            )
            wide.index_copy_(0, there, moved.view(wide.dtype))


def _random_bits(values: Tensor, noise: torch.Generator) -> Tensor:
    """Whole numbers from 0 to 2^16 - 1 in the shape of the values; four are drawn at once."""
    count = -(-values.numel() // 4)
    drawn = torch.empty(count, dtype=torch.int64, device=values.device)
    drawn.random_(-(2**63), None, generator=noise)
    return drawn.view(torch.uint16)[: values.numel()].view(values.shape).to(torch.int32)
