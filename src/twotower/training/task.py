"""What the Lightning tasks of both stages share."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer

from twotower.losses.ranks import Ranks
from twotower.training.distributed import DistributedRanks, average_rows, sparse_tables
from twotower.training.optimizers import OptimizerSettings


class StageTask(pl.LightningModule):
    """A model with its optimizers; a subclass says what a step does.

    Args:
        optimizer: Rates, schedule and clipping.
        ranks: The processes that train together.
    """

    def __init__(self, optimizer: OptimizerSettings, ranks: Ranks) -> None:
        super().__init__()
        self.settings = optimizer
        self.ranks = ranks

    def on_after_backward(self) -> None:
        """Average what `DistributedDataParallel` leaves out."""
        if isinstance(self.ranks, DistributedRanks):
            average_rows(sparse_tables(self).values(), self.ranks)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Both optimizers behind one, with the schedule stepped every batch."""
        optimizer = self.settings.optimizer(self)
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = self.settings.schedule(optimizer, num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the dense gradients."""
        self.settings.clip(self)


class evaluating:  # noqa: N801 - a context manager reads as a verb
    """Evaluation mode inside a ``with`` block, the former mode after it.

    Args:
        model: Any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.was_training = model.training

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        self.model.train(self.was_training)
