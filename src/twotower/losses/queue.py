"""Items of earlier batches as candidates, with the vectors that they had then.

A batch of B offers B - 1 candidates beside the target. The towers change slowly after a while, so
the vectors of the last Q targets are nearly those that embedding them again would give: Q further
candidates, drawn with the probabilities of the targets, for the price of their scores. At the start
of training vectors change fast, and the queue is only filled.

Queued vectors have no gradient. Items would be pulled to all their queries and pushed away by a
part of the candidates only, and popular ones drift into every list. So the gradient of a candidate
that has one is multiplied by its expected count in the pool over that outside of the queue: on
average items are pushed as by the whole pool.

Wang et al. 2021, "Cross-Batch Negative Sampling for Training Two-Tower Recommenders".

Shapes: B targets of a batch, Q items of the queue, D width of the vectors.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn


class QueueState(TypedDict):
    """What a checkpoint keeps of a queue: item rows (Q,), vectors (Q, D) and steps done."""

    rows: Tensor
    vectors: Tensor
    steps: int


class CrossBatchQueue(nn.Module):
    """First in, first out: the targets of the latest batches with their vectors.

    Args:
        size: Items it holds when it is full.
        warm_up: Steps before its items become candidates.

    Raises:
        ValueError: When a number is out of range.
    """

    def __init__(self, *, size: int, warm_up: int = 0) -> None:
        super().__init__()
        if size < 1 or warm_up < 0:
            raise ValueError(
                "queue: `size` must be at least 1 and `warm_up` at least 0, got "
                f"size={size}, warm_up={warm_up}"
            )
        self.size = size
        self.warm_up = warm_up
        self._rows = torch.zeros(0, dtype=torch.int64)
        self._vectors = torch.zeros(0, 0)
        self._steps = 0

    def candidates(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Item rows ``(Q,)`` and vectors ``(Q, D)``, or None before the warm-up is over."""
        if self._steps < max(self.warm_up, 1):
            return None
        return self._rows.to(device), self._vectors.to(device)

    def push(self, target_rows: Tensor, targets: Tensor) -> None:
        """Append the targets of a batch; the oldest items leave.

        Args:
            target_rows: Item rows, ``(B,)``.
            targets: Their vectors, ``(B, D)``.
        """
        vectors = targets.detach().float()  # (B, D)
        if self._steps:
            target_rows = torch.cat([self._rows.to(vectors.device), target_rows])
            vectors = torch.cat([self._vectors.to(vectors.device), vectors])
        self._rows, self._vectors = target_rows[-self.size :], vectors[-self.size :].clone()
        self._steps += 1

    def get_extra_state(self) -> QueueState:
        """For `state_dict`; the width of the vectors is not known before the first batch."""
        return {"rows": self._rows, "vectors": self._vectors, "steps": self._steps}

    def set_extra_state(self, state: QueueState) -> None:
        """From `load_state_dict`."""
        self._rows, self._vectors = state["rows"], state["vectors"]
        self._steps = state["steps"]
