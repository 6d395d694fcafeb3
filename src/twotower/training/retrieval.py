"""The retrieval stage as a Lightning task: one event is one query, its item the target."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from twotower.data.batches import ITEM_ROWS, USER_ROWS, WEIGHTS, Batch, Columns
from twotower.losses.masks import known_positive_mask
from twotower.losses.negatives import Pool
from twotower.losses.objective import Objective
from twotower.models.two_tower import TwoTower
from twotower.training.optimizers import OptimizerSettings


class RetrievalTask(pl.LightningModule):
    """Trains a two-tower model.

    Args:
        model: The towers.
        objective: The loss and which items stand against the targets.
        columns: Where features come from.
        item_probability: (C,) share of the training events that are of an item.
        optimizer: Rates and schedule.
    """

    def __init__(
        self,
        *,
        model: TwoTower,
        objective: Objective,
        columns: Columns,
        item_probability: Tensor,
        optimizer: OptimizerSettings,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.columns = columns
        self.item_probability = item_probability
        self.settings = optimizer

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one batch of events."""
        targets = batch[ITEM_ROWS]  # (B,)
        drawn = self.objective.negatives.draw(
            targets, self.item_probability.to(targets.device), None
        )
        queries = self.model.embed_queries(batch)  # (B, D)
        vectors = self.model.embed_items(self.columns.items(drawn.rows))  # (C, D)
        if drawn.num_in_batch:
            target_vectors = vectors[: drawn.num_in_batch]
        else:
            target_vectors = self.model.embed_items(self.columns.items(targets))  # (B, D)
        masked = known_positive_mask(
            drawn.rows, targets, *self.columns.known_positives(batch[USER_ROWS])
        )  # (B, C)
        pool = Pool(vectors=vectors, rows=drawn.rows, log_expected_count=drawn.log_expected_count)
        loss = self.objective.loss(queries, target_vectors, pool, masked, batch[WEIGHTS])
        self.log("retrieval/train/loss", loss, batch_size=len(targets), prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Both optimizers behind one, with the schedule stepped every batch."""
        return scheduled(self, self.settings)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the dense gradients."""
        self.settings.clip(self.model)


def scheduled(task: pl.LightningModule, settings: OptimizerSettings) -> OptimizerLRScheduler:
    """What Lightning wants of `configure_optimizers`."""
    optimizer = settings.optimizer(task)
    num_steps = int(task.trainer.estimated_stepping_batches)
    schedule = settings.schedule(optimizer, num_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def embed_catalogue(model: TwoTower, columns: Columns, num_items: int, block: int = 8192) -> Tensor:
    """Vectors (C, D) of the items 0 to `num_items` - 1, float32, in blocks."""
    with evaluating(model):
        parts = [
            model.embed_items(
                columns.items(
                    torch.arange(start, min(start + block, num_items), device=columns.device)
                )
            ).float()
            for start in range(0, num_items, block)
        ]
    return torch.cat(parts)


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
