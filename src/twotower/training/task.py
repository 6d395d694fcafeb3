"""What the Lightning tasks of both stages share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from twotower.data.batches import Batch
from twotower.losses.ranks import Ranks
from twotower.training.carried import Carried
from twotower.training.distributed import DistributedRanks, average_tables, tables_apart
from twotower.training.optimizers import OptimizerSettings
from twotower.training.split_tables import TABLES, SplitTables


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
        self.split: SplitTables | None = None
        self.carried: Carried | None = None
        self.figures: dict[str, Tensor] = {}  # of the last step
        self._saved_tables = ""

    @property
    @abstractmethod
    def dense_parts(self) -> Sequence[nn.Module]:
        """The parts of the model that only multiply and add."""

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:  # noqa: ANN401
        """Log the figures of a step that is going to be written; a millisecond each."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.global_step % every == 0 or self.trainer.should_stop:
            for name, value in self.figures.items():
                self.log(name, value, batch_size=1)

    def on_after_backward(self) -> None:
        """Average what `DistributedDataParallel` leaves out."""
        if isinstance(self.ranks, DistributedRanks):
            average_tables(tables_apart(self).values(), self.ranks)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the tables that are split, which are no weights of the model."""
        if self.split is not None:
            checkpoint[TABLES] = self.split.save(self.trainer.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember where the split tables are; their optimizer is not there yet."""
        self._saved_tables = checkpoint.get(TABLES, "")

    def on_train_start(self) -> None:
        """Put the split tables of a resumed run back."""
        if self.split is not None and self._saved_tables:
            self.split.load(self._saved_tables)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Both optimizers behind one, with the schedule stepped every batch."""
        optimizer = self.settings.optimizer(self)
        if self.carried is not None:
            self.carried.restore(optimizer, self.get_submodule("model"))
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
