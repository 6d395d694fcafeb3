"""The ranking stage as a Lightning task: an example is a query, a candidate and its outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from twotower.data.batches import LABELS, WEIGHTS, Batch
from twotower.data.prepared import Prepared
from twotower.data.schema import BORROWED, TASK_PREFIX, TASK_WEIGHTS
from twotower.losses.calibration import Calibration
from twotower.losses.ranks import OneRank, Ranks, blocks_of_share, share
from twotower.metrics.calibration import expected_calibration_error, reliability
from twotower.metrics.click import auc, grouped_auc, log_loss, normalised_entropy
from twotower.models.dcn import DCNv2
from twotower.training.batch_norm import hold_share, synchronise
from twotower.training.examples import ExampleBatches
from twotower.training.optimizers import OptimizerSettings
from twotower.training.task import StageTask, evaluating

Array = npt.NDArray[Any]

EVALUATION_BLOCK = 16_384
CLICK_METRICS = ("auc", "log_loss", "normalised_entropy", "calibration_error", "grouped_auc")


class RankingLoss(Protocol):
    """A loss over logits; see `twotower.losses.ranking`."""

    @property
    def task_weights(self) -> Mapping[str, float]:
        """Factors of the losses of further tasks; 1 for a task that is not named."""

    def __call__(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Scalar loss of a batch."""


class RankingTask(StageTask):
    """Trains a ranker.

    Args:
        model: The ranker.
        loss: What is minimised; with further tasks, the weighted sum of it over all.
        optimizer: Rates and schedule.
        ranks: The processes that train together, each on a share of every batch; None for one.

    Raises:
        ValueError: When the loss weighs a task that there is not.
    """

    def __init__(
        self,
        *,
        model: DCNv2,
        loss: RankingLoss,
        optimizer: OptimizerSettings,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(optimizer, ranks or OneRank())
        unknown = set(loss.task_weights) - set(model.tasks)
        if unknown:
            raise ValueError(
                f"losses.ranking.task_weights: there is no task {', '.join(sorted(unknown))}; "
                f"tasks of data.label.tasks: {', '.join(model.tasks) or 'none'}"
            )
        self.model = model
        self.loss = loss
        if self.ranks.size > 1:
            synchronise(model, self.ranks)

    @property
    def dense_parts(self) -> Sequence[nn.Module]:
        """See `StageTask`."""
        return self.model.dense_parts

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one batch of examples, or of a share of it."""
        if self.ranks.size > 1:
            hold_share(self.model, BORROWED not in batch)
        logits = self.model.logits(batch)  # (B, T)
        loss = self._mean(logits[:, 0], batch[LABELS], batch[WEIGHTS])
        of_all = self.ranks.mean(loss)
        self.figures["ranking/train/loss"] = of_all
        for column, task in enumerate(self.model.tasks, 1):
            of_task = self._mean(logits[:, column], batch[TASK_PREFIX + task], batch[TASK_WEIGHTS])
            of_all = self.ranks.mean(of_task)
            self.figures[f"ranking/train/{task}/loss"] = of_all
            loss = loss + self.loss.task_weights.get(task, 1.0) * of_task
        return loss

    def _mean(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean, of several processes the share of this one."""
        return self.ranks.share_of(self.loss(logits, labels, weights), weights)


@torch.no_grad()
def predicted_logits(model: DCNv2, examples: ExampleBatches, ranks: Ranks | None = None) -> Tensor:
    """Logits (n, T) of all examples as float64 on the CPU, in blocks.

    Of several processes each scores a share, and all get all; all must call it.
    """
    ranks = ranks or OneRank()
    rows = torch.arange(len(examples))[share(ranks, len(examples))]
    parts = [torch.zeros(0, 1 + len(model.tasks), dtype=torch.float64)]
    with evaluating(model):
        blocks = blocks_of_share(ranks, len(examples), EVALUATION_BLOCK)
        parts += [model.logits(examples.batch(rows[block])).double().cpu() for block in blocks]
    return ranks.gather(torch.cat(parts))


def probabilities(
    model: DCNv2, examples: ExampleBatches, calibration: Calibration, ranks: Ranks | None = None
) -> npt.NDArray[np.float64]:
    """Probability (n,) of every example among examples whose negatives were sampled as these."""
    kept = examples.examples.negative_rate
    logits = predicted_logits(model, examples, ranks)[:, 0]
    return calibration.probability(logits, kept=kept).numpy()


def task_metrics(
    model: DCNv2, examples: ExampleBatches, ranks: Ranks | None = None
) -> dict[str, float]:
    """AUC, log loss and calibration error of every further task, by ``<task>/<metric>``.

    They are held against the examples as they are: those of validation and test are not sampled.
    """
    values: dict[str, float] = {}
    if not model.tasks:
        return values
    predicted = predicted_logits(model, examples, ranks)[:, 1:].sigmoid().numpy()  # (n, T - 1)
    for column, task in enumerate(model.tasks):
        labels = examples.examples.tasks[task]
        of_task = {
            "auc": auc(labels, predicted[:, column]),
            "log_loss": log_loss(labels, predicted[:, column]),
            "calibration_error": expected_calibration_error(
                reliability(labels, predicted[:, column])
            ),
        }
        values |= {f"{task}/{name}": value for name, value in of_task.items()}
    return values


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
