"""The ranking stage as a Lightning task: an example is a query, a candidate and its outcome."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.batches import LABELS, WEIGHTS, Batch
from twotower.data.prepared import Prepared
from twotower.losses.calibration import Calibration
from twotower.metrics.calibration import expected_calibration_error, reliability
from twotower.metrics.click import auc, grouped_auc, log_loss, normalised_entropy
from twotower.models.dcn import DCNv2
from twotower.training.examples import ExampleBatches
from twotower.training.optimizers import OptimizerSettings
from twotower.training.task import StageTask, evaluating

Array = npt.NDArray[Any]

EVALUATION_BLOCK = 16_384
CLICK_METRICS = ("auc", "log_loss", "normalised_entropy", "calibration_error", "grouped_auc")


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
def predicted_logits(model: DCNv2, examples: ExampleBatches) -> Tensor:
    """Logits (n,) of all examples as float64 on the CPU, in blocks."""
    with evaluating(model):
        parts = [
            model(examples.batch(block)).double().cpu()
            for block in torch.split(torch.arange(len(examples)), EVALUATION_BLOCK)
        ]
    return torch.cat(parts)


def probabilities(
    model: DCNv2, examples: ExampleBatches, calibration: Calibration
) -> npt.NDArray[np.float64]:
    """Probability (n,) of every example among examples whose negatives were sampled as these."""
    kept = examples.examples.negative_rate
    return calibration.probability(predicted_logits(model, examples), kept=kept).numpy()


def click_metrics(
    prepared: Prepared, examples: ExampleBatches, predicted: Array
) -> dict[str, float]:
    """AUC, grouped AUC by user, log loss, normalised entropy and calibration error of examples.

    Args:
        prepared: The data set.
        examples: The examples.
        predicted: (n,) their `probabilities`.
    """
    labels = examples.examples.labels
    values = {
        "auc": auc(labels, predicted),
        "log_loss": log_loss(labels, predicted),
        "normalised_entropy": normalised_entropy(labels, predicted),
        "calibration_error": expected_calibration_error(reliability(labels, predicted)),
    }
    users = prepared.interactions.user_rows
    if users is not None:
        groups = np.asarray(users[examples.examples.interactions])
        values["grouped_auc"] = grouped_auc(labels, predicted, groups)
    return values
