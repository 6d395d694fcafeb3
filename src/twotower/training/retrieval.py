"""The retrieval stage as a Lightning task: an event's item is the target, what led to it the query.

A batch holds B events with a history each, or windows of events with a query after N of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twotower.data.batches import ITEM_ROWS, USER_ROWS, WEIGHTS, Batch, Columns
from twotower.data.windows import WINDOW
from twotower.losses.masks import known_positive_mask, positive_mask
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
        """Loss of one batch of events or windows."""
        targets = batch[ITEM_ROWS]  # (B,), or (N,) of all windows
        drawn = self.objective.negatives.draw(
            targets, self.item_probability.to(targets.device), None
        )
        if WINDOW in batch:
            queries = self.model.embed_windows(batch)  # (N, D)
        else:
            queries = self.model.embed_queries(batch)  # (B, D)
        vectors = self.model.embed_items(self.columns.items(drawn.rows))  # (C, D)
        if drawn.num_in_batch:
            target_vectors = vectors[: drawn.num_in_batch]
        else:
            target_vectors = self.model.embed_items(self.columns.items(targets))  # (B, D)
        masked = self._masked(batch, drawn.rows)  # (B, C)
        pool = Pool(vectors=vectors, rows=drawn.rows, log_expected_count=drawn.log_expected_count)
        loss = self.objective.loss(queries, target_vectors, pool, masked, batch[WEIGHTS])
        self.log("retrieval/train/loss", loss, batch_size=len(targets), prog_bar=True)
        return loss

    def _masked(self, batch: Batch, pool_rows: Tensor) -> Tensor:
        """(B, C) candidates that must not stand against a query."""
        users, targets = batch[USER_ROWS], batch[ITEM_ROWS]
        if not self.objective.mask_known:
            return pool_rows == targets.unsqueeze(1)
        known = self.columns.known_positives(users)
        if WINDOW not in batch:
            return known_positive_mask(pool_rows, targets, *known)
        of_window = positive_mask(pool_rows, *known, len(users))  # a row serves all its queries
        return of_window[batch[WINDOW]] | (pool_rows == targets.unsqueeze(1))


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
