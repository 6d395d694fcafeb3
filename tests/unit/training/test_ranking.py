"""The ranker's task: the loss of several outcomes by hand, and what is measured of each."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from twotower.losses.ranking import BinaryLogLoss
from twotower.training.examples import Examples
from twotower.training.optimizers import OptimizerSettings
from twotower.training.ranking import RankingTask, task_metrics

OPTIMIZER = OptimizerSettings(learning_rate=0.01, table_learning_rate=0.1)
LOGITS = [[math.log(3), 0.0], [math.log(3), math.log(3)]]


class Fixed(nn.Module):
    """A ranker of two tasks that says the same of every batch."""

    tasks = ("bought",)

    def logits(self, batch):
        return torch.tensor(LOGITS)


def task(**weights: float) -> RankingTask:
    made = RankingTask(
        model=Fixed(), loss=BinaryLogLoss(task_weights=weights or None), optimizer=OPTIMIZER
    )
    return made


BATCH = {
    "labels": torch.tensor([1.0, 0.0]),
    "weights": torch.tensor([1.0, 1.0]),
    "task.bought": torch.tensor([0.0, 1.0]),
    "task_weights": torch.tensor([1.0, 3.0]),
}
# sigmoid(ln 3) = 3/4. Of the label: -ln 3/4 and -ln 1/4. Of the purchase: -ln 1/2 and, with
# weight 3, -ln 3/4.
LABEL = (math.log(4 / 3) + math.log(4)) / 2
BOUGHT = (math.log(2) + 3 * math.log(4 / 3)) / 4


@pytest.mark.parametrize(("weights", "factor"), [({}, 1.0), ({"bought": 0.5}, 0.5)])
def test_the_loss_is_the_weighted_sum(weights: dict[str, float], factor: float) -> None:
    loss = task(**weights).training_step(BATCH, 0)
    assert loss.item() == pytest.approx(LABEL + factor * BOUGHT)


def test_a_task_that_there_is_not_cannot_be_weighed() -> None:
    with pytest.raises(ValueError, match=r"no task liked; tasks of data\.label\.tasks: bought"):
        task(bought=1.0, liked=2.0)


def test_weights_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="`task_weights` must be at least 0, got bought -1"):
        BinaryLogLoss(task_weights={"bought": -1})


def test_negatives_that_were_kept_stand_for_all() -> None:
    """A quarter of the negatives was kept, so each counts four times for the other tasks."""
    examples = Examples(
        interactions=np.arange(3),
        item_rows=None,
        labels=np.array([1, 0, 0], np.float32),
        weights=np.array([1, 1, 2], np.float32),
        scores=None,
        negative_rate=0.25,
    )
    assert examples.task_weights(np.array([2, 0, 1])).tolist() == [8, 1, 4]


def test_figures_of_a_task_by_hand() -> None:
    """Logits 0 and ln 3 for labels 0 and 1: in order, log loss (ln 2 + ln 4/3) / 2."""

    class Batches:
        examples = SimpleNamespace(tasks={"bought": np.array([0, 1], np.float32)})

        def __len__(self):
            return 2

        def batch(self, chosen):
            return {}

    values = task_metrics(Fixed(), Batches())
    assert values.keys() == {"bought/auc", "bought/log_loss", "bought/calibration_error"}
    assert values["bought/auc"] == 1.0
    assert values["bought/log_loss"] == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    # Two bins of one row: |1/2 - 0| and |3/4 - 1|.
    assert values["bought/calibration_error"] == pytest.approx((0.5 + 0.25) / 2)
