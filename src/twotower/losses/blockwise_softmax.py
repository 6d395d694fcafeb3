"""Softmax over the whole catalogue, item by item exact, a block of items at a time.

    loss = -s_t / T + log( exp(s_t / T) + sum_{j not masked} exp(s_j / T) )

The sum runs over all N items. Neither their scores (B, N) nor their vectors (N, D) nor what the
item tower keeps for its gradient are ever there as a whole: a block of items is embedded, scored
and reduced to one number a query, the logarithm of its sum, and forgotten. In the backward pass the
block is embedded and scored again and its gradient added (Chen et al. 2016, "Training Deep Nets
with Sublinear Memory Cost"). That costs one more forward pass, and memory of B x block.

Shapes: B queries, T targets, N items, D width of the vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from twotower.losses.masks import check_masks
from twotower.losses.pool_loss import check_temperature
from twotower.losses.reduction import weighted_mean
from twotower.losses.scores import Scores, dot_products
from twotower.losses.step import Step


class BlockwiseSoftmax(nn.Module):
    """An objective: the softmax over the whole catalogue, without negatives to be drawn.

    The same loss as `twotower.losses.sampled_softmax.FullSoftmax`, for catalogues up to a million
    items.

    Args:
        temperature: Divides the scores; about 0.05 for cosines, 1 for dot products.
        block: Items that are embedded and scored at a time.
        mask_known: Whether a user's other training positives are left out of the sum.
        mask_later: Whether those after the query are too, or only those before it.
        mask_cold: Whether items without a training event are.

    Raises:
        ValueError: When temperature or block is out of range, or `mask_later` is False without
            `mask_known`.
    """

    def __init__(
        self,
        *,
        temperature: float,
        block: int = 8192,
        mask_known: bool = True,
        mask_later: bool = True,
        mask_cold: bool = False,
    ) -> None:
        super().__init__()
        if block < 1:
            raise ValueError(f"`block` must be at least 1 item, got {block}")
        self.temperature = check_temperature(temperature)
        self.block = block
        check_masks(known=mask_known, later=mask_later)
        self.mask_known = mask_known
        self.mask_later = mask_later
        self.mask_cold = mask_cold

    def forward(self, step: Step) -> Tensor:
        """Scalar loss of a batch."""
        queries, targets = step.embed_queries(), step.embed_items(step.target_rows)  # (., D)
        num_items = step.item_probability.numel()
        scores = Scores.of(queries, targets, queries.new_zeros(len(queries), 0), step.owners)
        own = scores.targets / self.temperature  # (T,)

        def log_sum(queries: Tensor, rows: Tensor) -> Tensor:
            """(B,) logarithm of the sum over some items."""
            vectors = step.embed_items(rows)  # (block, D)
            logits = dot_products(queries, vectors) / self.temperature  # (B, block)
            # Not minus infinity: a query may have no item in a block, and its gradient is zero.
            lowest = torch.finfo(logits.dtype).min
            return logits.masked_fill(step.mask.of(rows), lowest).logsumexp(dim=1)

        every = torch.arange(num_items, device=queries.device)
        sums = [
            checkpoint(log_sum, queries, every[start : start + self.block], use_reentrant=False)
            for start in range(0, num_items, self.block)
        ]
        others = torch.stack(sums, dim=1).logsumexp(dim=1)  # (B,)
        total = torch.logaddexp(own, scores.per_target(others))  # (T,)
        return weighted_mean(total - own, step.weights)
