"""The ranking stage as a Lightning task: an example is a query, a candidate and its outcome."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.batches import LABELS, WEIGHTS, Batch
from twotower.losses.ranking import undo_sampling
from twotower.models.dcn import DCNv2
from twotower.training.examples import ExampleBatches
from twotower.training.optimizers import OptimizerSettings
from twotower.training.task import StageTask, evaluating

EVALUATION_BLOCK = 16_384


class RankingLoss(Protocol):
    """A loss over logits; see `twotower.losses.ranking`."""

    def __call__(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Scalar loss of a batch."""


class RankingTask(StageTask):
    """Trains a ranker.

    Args:
        model: The ranker.
        loss: What is minimised.
        optimizer: Rates and schedule.
    """

    def __init__(self, *, model: DCNv2, loss: RankingLoss, optimizer: OptimizerSettings) -> None:
        super().__init__(optimizer)
        self.model = model
        self.loss = loss

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one batch of examples."""
        loss = self.loss(self.model(batch), batch[LABELS], batch[WEIGHTS])
        self.log("ranking/train/loss", loss, batch_size=len(batch[LABELS]), prog_bar=True)
        return loss


@torch.no_grad()
def probabilities(
    model: DCNv2, examples: ExampleBatches, *, negative_rate: float
) -> npt.NDArray[np.float64]:
    """Probability (n,) of every example, with the sampling of negatives undone."""
    with evaluating(model):
        parts = [
            undo_sampling(model(examples.batch(block)).double(), negative_rate).sigmoid().cpu()
            for block in torch.split(torch.arange(len(examples)), EVALUATION_BLOCK)
        ]
    return torch.cat(parts).numpy()
