"""Candidates of a query's own: the items that the model ranks highest for it, positives left out.

Now and then the catalogue is embedded; with these vectors and its own of this step, a query finds
its nearest items. They stand against that query alone, with the vectors that the item tower gives
now, so they have a gradient. Xiong et al. 2021, "Approximate Nearest Neighbor Negative Contrastive
Learning for Dense Text Retrieval", mine from an index that lags behind in the same way.

Correction: what is mined is there with certainty, its expected count is one and its logarithm zero,
and a random candidate that is the same item is masked for that query. The softmax's sum is then
exact over the mined items and estimated over all others, where the expected counts hold as before;
its mean is still the sum over the catalogue. Losses that take a mean over candidates count a mined
item as one of them.

A step costs the scores of `num_queries` queries with N items, a block of items at a time; every so
many steps the item tower runs over the catalogue. The vectors (N, D) are kept in memory and in the
checkpoint.

Shapes: B queries, S queries that are mined for, H items of each, N items, D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from twotower.losses.masks import PositiveMask
from twotower.losses.ranks import Ranks
from twotower.losses.scores import dot_products
from twotower.losses.step import Step

BLOCK = 65_536


@dataclass(frozen=True, kw_only=True)
class Mined:
    """Items that stand against one query each.

    Args:
        queries: Indices in 0..B-1 of the queries, ``(S,)``.
        rows: Item rows, ``(S, H)``; -1 where a query has no more items.
    """

    queries: Tensor
    rows: Tensor


class HardState(TypedDict):
    """What a checkpoint keeps: vectors of the catalogue (N, D) and steps done."""

    catalogue: Tensor
    steps: int


class HardNegatives(nn.Module):
    """Mines items for queries from the catalogue as it was embedded last.

    Args:
        num: H, items of a query.
        num_queries: S at most; the queries of a larger batch are drawn at random.
        every: Steps between two embeddings of the catalogue.
        warm_up: Steps before the first.
        skip: How many items at the top of a query's list are left out, as they may be positives
            that are not known yet; the ranks `skip` + 1 to `skip` + `num` are taken.

    Raises:
        ValueError: When a number is out of range.
    """

    def __init__(
        self, *, num: int, num_queries: int, every: int, warm_up: int = 0, skip: int = 0
    ) -> None:
        super().__init__()
        if min(num, num_queries, every) < 1 or min(warm_up, skip) < 0:
            raise ValueError(
                "hard negatives: `num`, `num_queries` and `every` must be at least 1, `warm_up` "
                f"and `skip` at least 0, got num={num}, num_queries={num_queries}, every={every}, "
                f"warm_up={warm_up}, skip={skip}"
            )
        self.num = num
        self.num_queries = num_queries
        self.every = every
        self.warm_up = warm_up
        self.skip = skip
        self._catalogue = torch.zeros(0, 0)
        self._steps = 0

    @torch.no_grad()
    def mine(self, step: Step, queries: Tensor) -> Mined | None:
        """Mine for queries of a step.

        Args:
            step: The batch.
            queries: Vectors of its queries, ``(B, D)``.

        Returns:
            What was found, or None before the warm-up is over.
        """
        past, self._steps = self._steps - self.warm_up, self._steps + 1
        if past < 0:
            return None
        if past % self.every == 0:
            self._catalogue = step.embed_catalogue()
        self._catalogue = self._catalogue.to(queries.device)
        chosen = self._chosen(step.ranks, queries)
        mask = step.mask.of_queries(chosen)
        best = top_rows(queries[chosen], self._catalogue, mask, self.skip + self.num)
        return Mined(queries=chosen, rows=best[:, self.skip :])

    def _chosen(self, ranks: Ranks, queries: Tensor) -> Tensor:
        """(S,) the queries of this process among those that are drawn from the whole batch."""
        device, counts = queries.device, ranks.counts(len(queries))
        generator = ranks.generator(device)
        drawn = torch.randperm(sum(counts), generator=generator, device=device)
        drawn = drawn[: self.num_queries] - sum(counts[: ranks.rank])
        return drawn if ranks.size == 1 else drawn[(drawn >= 0) & (drawn < len(queries))]

    def get_extra_state(self) -> HardState:
        """For `state_dict`; the size of the catalogue is not known before it is embedded."""
        return {"catalogue": self._catalogue, "steps": self._steps}

    def set_extra_state(self, state: HardState) -> None:
        """From `load_state_dict`."""
        self._catalogue, self._steps = state["catalogue"], state["steps"]


def top_rows(
    queries: Tensor, items: Tensor, mask: PositiveMask, count: int, block: int = BLOCK
) -> Tensor:
    """The items with the largest dot product of every query, a block of items at a time.

    Args:
        queries: ``(S, D)``.
        items: ``(N, D)``.
        mask: What a query may not get.
        count: How many items are wanted.
        block: Items that are scored at a time.

    Returns:
        ``(S, count)`` item rows, best first, -1 where there are no more.
    """
    shape, device = (len(queries), count), queries.device
    scores = torch.full(shape, -torch.inf, dtype=items.dtype, device=device)
    best = torch.full(shape, -1, device=device)  # (S, count)
    for start in range(0, len(items), block):
        vectors = items[start : start + block]  # (block, D)
        rows = torch.arange(start, start + len(vectors), device=device)
        found = dot_products(queries, vectors).masked_fill(mask.of(rows), -torch.inf)
        scores, places = torch.cat([scores, found], dim=1).topk(count, dim=1)
        best = torch.cat([best, rows.expand(len(queries), -1)], dim=1).gather(1, places)
    return best.masked_fill(scores.isneginf(), -1)
