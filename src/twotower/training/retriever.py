"""Trained towers as the ranker's training asks them: vectors of queries and scores of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.batches import Columns
from twotower.data.item_lists import ItemLists
from twotower.data.prepared import Prepared
from twotower.index.exact import exact_ranks
from twotower.losses.ranks import Ranks
from twotower.models.two_tower import TwoTower
from twotower.training.retrieval import embed_catalogue
from twotower.training.task import evaluating

Array = npt.NDArray[Any]

SCORE_BLOCK = 8192
QUERY_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Retriever:
    """A trained two-tower model with its columns and item vectors.

    Args:
        model: The towers.
        columns: Features of the retrieval stage.
        items: (C, D) item vectors.
        remove_seen: Whether its lists leave out what the user had seen.
    """

    model: TwoTower
    columns: Columns
    items: Tensor
    remove_seen: bool = True

    @staticmethod
    def of(
        model: TwoTower,
        columns: Columns,
        num_catalogue: int,
        *,
        remove_seen: bool = True,
        ranks: Ranks | None = None,
    ) -> Retriever:
        """A retriever with the vectors of the catalogue."""
        items = embed_catalogue(model, columns, num_catalogue, ranks=ranks)
        return Retriever(model=model, columns=columns, items=items, remove_seen=remove_seen)

    @torch.no_grad()
    def queries(self, interactions: Array) -> Tensor:
        """(n, D) query vectors of some interactions, in blocks."""
        rows = torch.from_numpy(np.asarray(interactions)).to(self.columns.device)
        starts = range(0, max(1, len(rows)), QUERY_BLOCK)
        with evaluating(self.model):
            blocks = (self.columns.queries(rows[start : start + QUERY_BLOCK]) for start in starts)
            return torch.cat([self.model.embed_queries(block).float() for block in blocks])

    def scores(self, interactions: Array, item_rows: Array) -> Array:
        """(n,) scores of pairs, in blocks."""
        parts = []
        for start in range(0, len(interactions), SCORE_BLOCK):
            block = slice(start, start + SCORE_BLOCK)
            rows = torch.from_numpy(np.asarray(item_rows[block], np.int64)).to(self.columns.device)
            with torch.no_grad(), evaluating(self.model):
                items = self.model.embed_items(self.columns.items(rows)).float()  # (b, D)
            parts.append((self.queries(interactions[block]) * items).sum(dim=1).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def ranks(self, prepared: Prepared, interactions: Array, item_rows: Array) -> Array:
        """(n,) float32 place of items in the whole catalogue, ordered for a query; from 1.

        It is the place at which the item is found when it is served: the user's earlier items are
        left out where the retriever removes them, but for the item itself. An item outside of the
        catalogue comes last. Costs n times C products.
        """
        events, _, _ = prepared.require_events()
        users, ends = np.asarray(prepared.interactions.user_rows), prepared.interactions.history_end
        size = len(self.items)
        ranks = np.empty(len(interactions), np.float32)
        for start in range(0, len(interactions), SCORE_BLOCK):
            block = slice(start, start + SCORE_BLOCK)
            rows, targets = interactions[block], np.asarray(item_rows[block], np.int64)
            seen = None
            if self.remove_seen:
                seen = ItemLists.cut(events.item_rows, events.offsets[users[rows]], ends[rows])
                other = seen.item_rows != np.repeat(targets, seen.counts)
                seen = seen.where(other & (seen.item_rows < size))
            found = exact_ranks(self.queries(rows), self.items, np.minimum(targets, size - 1), seen)
            ranks[block] = np.where(targets < size, found, size) + 1
        return ranks
