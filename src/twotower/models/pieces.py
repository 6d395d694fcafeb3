"""A module on the rows of a batch piece by piece, on a CPU.

What a piece leaves behind for the layers after it, and for its gradient, is then still in the cache
when these read it. And the CPU's library takes products of few rows well whatever their width:
429 wide and 16,384 rows long, one runs at half the rate that it has 1,024 rows long
(``benchmarks/speed/bare_ranker.py --micro 1024``).

A row's result is that of the whole batch, and a weight's gradient the same sum over its rows, up to
rounding. Whoever waits for gradients, such as several processes that average theirs, sees one
backward pass as before.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Pieces of 512 to 1,024 rows are the fastest at widths from 64 to 1,000.
NUM_ROWS = 1024


def in_pieces(module: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """What a module makes of inputs.

    Args:
        module: From rows ``(n, ...)`` to as many, each by itself; one that normalises over its
            batch in training is given all rows at once, whatever it is.
        inputs: ``(B, ...)``.

    Returns:
        ``(B, ...)``. A GPU, which wants large products, and an export, which knows no B, get all
        rows at once too.
    """
    if inputs.device.type != "cpu" or torch.compiler.is_exporting() or _looks_at_batch(module):
        return module(inputs)
    return torch.cat([module(piece) for piece in torch.split(inputs, NUM_ROWS)])


def _looks_at_batch(module: Callable[[Tensor], Tensor]) -> bool:
    """Whether a module now normalises over its batch."""
    parts = module.modules() if isinstance(module, nn.Module) else ()
    return any(isinstance(part, nn.BatchNorm1d) and part.training for part in parts)
