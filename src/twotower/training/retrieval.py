"""The retrieval stage as a Lightning task: an event's item is the target, what led to it the query.

A batch holds B events with a history each, or windows of events with a query after N of them, or B
users with N targets in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twotower.data.batches import ITEM_ROWS, NUM_SEEN, USER_ROWS, WEIGHTS, Batch, Columns
from twotower.data.schema import BORROWED
from twotower.data.user_sets import OWNER
from twotower.data.windows import WINDOW
from twotower.losses.alignment import Aligned
from twotower.losses.masks import PositiveMask
from twotower.losses.objective import RetrievalObjective
from twotower.losses.ranks import OneRank, Ranks, blocks_of_share, share
from twotower.losses.step import Step
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
        ranks: The processes that train together, each on a share of every batch; None for one.
        aligned: Holds item vectors where an earlier version has them; None for nothing.
    """

    def __init__(
        self,
        *,
        model: TwoTower,
        objective: RetrievalObjective,
        columns: Columns,
        item_probability: Tensor,
        optimizer: OptimizerSettings,
        ranks: Ranks | None = None,
        aligned: Aligned | None = None,
    ) -> None:
        super().__init__(optimizer, ranks or OneRank())
        self.aligned = aligned
        self.model = model
        self.objective = objective
        self.columns = columns
        self.item_probability = item_probability.to(columns.device)
        counts_rows = any(isinstance(module, _BatchNorm) for module in model.modules())
        self._merge_copies = aligned is None and not counts_rows

    @property
    def dense_parts(self) -> Sequence[nn.Module]:
        """See `StageTask`."""
        return self.model.dense_parts

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one batch of events, windows or users, or of a share of it."""
        targets = batch[ITEM_ROWS]  # (B,), or (N,) of all windows or users
        embed = self.model.embed_queries
        if WINDOW in batch:
            embed = self.model.embed_windows
        step = Step(
            target_rows=targets,
            weights=batch[WEIGHTS],
            mask=self._mask(batch),
            item_probability=self.item_probability,
            embed_queries=lambda: embed(batch),
            embed_items=self._embed_items,
            embed_catalogue=lambda: embed_catalogue(
                self.model, self.columns, self.item_probability.numel(), ranks=self.ranks
            ),
            owners=batch.get(OWNER),
            ranks=self.ranks,
            merge_copies=self._merge_copies and self.columns.device.type == "cpu",
        )
        if BORROWED in batch:
            step = step.without_queries()
        loss = self.ranks.share_of(self.objective(step), step.weights)
        of_all = self.ranks.mean(loss)
        self.figures["retrieval/train/loss"] = of_all
        if self.aligned is None:
            return loss
        held = self.aligned.loss()
        self.figures["retrieval/train/alignment"] = self.ranks.mean(held)
        return loss + held

    def _embed_items(self, rows: Tensor) -> Tensor:
        """Vectors of item rows ``(C,)``; what aligns them sees them too."""
        vectors = self.model.embed_items(self.columns.items(rows))  # (C, D)
        return vectors if self.aligned is None else self.aligned.saw(vectors, rows)

    def _mask(self, batch: Batch) -> PositiveMask:
        """What must not stand against the queries."""
        users, targets = batch[USER_ROWS], batch[ITEM_ROWS]
        asked = users if self.objective.mask_known else users[:0]
        known = self.columns.known_positives(asked)
        masks_known, masks_later = self.objective.mask_known, self.objective.mask_later
        if OWNER in batch and not (masks_known and masks_later):
            raise ValueError(
                "user batches: all targets of a user share one query and none of them may stand "
                "against it; set losses.retrieval.mask_known=true and "
                "losses.retrieval.mask_later=true, got mask_known="
                f"{masks_known}, mask_later={masks_later}"
            )
        num_seen = None if masks_later else batch[NUM_SEEN]
        of_events = torch.arange(len(users), device=users.device)
        return PositiveMask(
            target_rows=None if OWNER in batch else targets,
            users=batch.get(WINDOW, of_events),  # a window serves all its queries
            num_users=len(users),
            known_users=known.owners,
            known_rows=known.item_rows,
            known_places=known.places,
            num_seen=num_seen,
            never=self.item_probability == 0 if self.objective.mask_cold else None,
        )


@torch.no_grad()
def embed_catalogue(
    model: TwoTower,
    columns: Columns,
    num_items: int,
    block: int = 8192,
    ranks: Ranks | None = None,
) -> Tensor:
    """Vectors (C, D) of the items 0 to `num_items` - 1, float32, in blocks.

    Of several processes each embeds a share, and all get all; all must call it.
    """
    ranks = ranks or OneRank()
    rows = torch.arange(num_items, device=columns.device)[share(ranks, num_items)]
    with evaluating(model):
        parts = [
            model.embed_items(columns.items(rows[part])).float()
            for part in blocks_of_share(ranks, num_items, block)
        ]
    return ranks.gather(torch.cat(parts))
