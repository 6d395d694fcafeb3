"""The ranker's loss, and the way back from sampled negatives to true probabilities.

Shapes: B pairs of a query and a candidate.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from twotower.losses.reduction import weighted_mean


class BinaryLogLoss(nn.Module):
    """Binary cross-entropy of logits, in float32 also for half-precision logits.

    Args:
        task_weights: What the losses of further tasks are multiplied by before they are added to
            that of the task that is ranked by; 1 for a task that is not named.

    Raises:
        ValueError: When a weight is below 0.
    """

    def __init__(self, task_weights: dict[str, float] | None = None) -> None:
        super().__init__()
        self.task_weights = dict(task_weights or {})
        wrong = [f"{name} {weight}" for name, weight in self.task_weights.items() if weight < 0]
        if wrong:
            raise ValueError(f"`task_weights` must be at least 0, got {', '.join(wrong)}")

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Loss of a batch.

        Args:
            logits: ``(B,)``.
            labels: ``(B,)``, 1 for a positive and 0 for a negative.
            weights: Weights of the pairs ``(B,)``, or None.

        Returns:
            A scalar, the weighted mean in nats.
        """
        losses = functional.binary_cross_entropy_with_logits(
            logits.float(), labels.float(), reduction="none"
        )  # (B,)
        return weighted_mean(losses, weights)


def undo_sampling(logits: Tensor, negative_rate: float) -> Tensor:
    """Logits for the true share of negatives.

    When a share r of the negatives was kept for training, the odds that are learnt are 1 / r times
    the true ones: p = q r / (1 - q + q r), that is logit p = logit q + log r. He et al. 2014,
    "Practical Lessons from Predicting Clicks on Ads at Facebook", section 6.3.

    Args:
        logits: What the model says, any shape.
        negative_rate: Share of the negatives that was kept, in (0, 1].

    Returns:
        Logits of the same shape.

    Raises:
        ValueError: When the rate lies outside (0, 1].
    """
    if not 0 < negative_rate <= 1:
        raise ValueError(f"`negative_rate` must lie in (0, 1], got {negative_rate}")
    return logits + math.log(negative_rate)
