"""The softmax of a block of logits with the logarithm of its sum, in one run over each row.

`torch.softmax` is done with a row while it is in the nearest cache; exponentials of a block, with a
pass for each thing that is done to them, take twice as long. The sum that it does not tell follows
from a column more: with logit x and share p there, it is exp(x) (1 - p) / p.

Shapes: b queries of a block, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

# As many as a cache line has numbers, so that rows begin where lines do if C is a multiple.
COLUMNS_MORE = 16
# Logit of the first of them, less the largest of its row: small beside the sum, yet far from 0.
GUARD = -16.0


def softmax_in_place(room: Tensor, num_candidates: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of candidates in the sum over all of a query, in place of their logits.

    Args:
        room: ``(b, C + COLUMNS_MORE)``, logits first; overwritten.
        num_candidates: C.

    Returns:
        Shares ``(b, C)``, the logarithm of the sum over the candidates ``(b,)``, and what the
        shares add up to ``(b,)``.
    """
    candidates, others = room[:, :num_candidates], room[:, num_candidates:]
    guard = candidates.amax(dim=1) + GUARD  # (b,)
    others.fill_(torch.finfo(room.dtype).min)[:, 0] = guard
    # A row is read before it is written on a CPU; of GPUs torch does not say so.
    room = torch.softmax(room, dim=1, out=room if room.device.type == "cpu" else None)
    share = room[:, num_candidates]
    return room[:, :num_candidates], guard - torch.logit(share), 1 - share
