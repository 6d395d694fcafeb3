"""The retrieval stage as a Lightning task: one event is one query, its item the target."""

from __future__ import annotations

import torch
from torch import Tensor

from twotower.data.batches import ITEM_ROWS, USER_ROWS, WEIGHTS, Batch, Columns
from twotower.losses.masks import known_positive_mask
from twotower.losses.negatives import Pool
from twotower.losses.objective import Objective
from twotower.models.two_tower import TwoTower
from twotower.training.optimizers import OptimizerSettings
from twotower.training.task import StageTask, evaluating


class RetrievalTask(StageTask):
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
        super().__init__(optimizer)
        self.model = model
        self.objective = objective
        self.columns = columns
        self.item_probability = item_probability

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
