"""Golden requests: what the trained models answer, to be compared with whatever serves them later.

The data set that they come from has the events of the catalogue alone, as the bundle has, so that a
request can be repeated from the bundle.

Shapes: Q queries, K candidates, n pairs of a query and one of its candidates, D width of the
vectors, C items of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.batches import Batch, Columns
from twotower.data.item_lists import ItemLists
from twotower.data.prepared import Prepared
from twotower.data.queries import Queries
from twotower.data.schema import OWNER, RETRIEVAL_RANK, RETRIEVAL_SCORE, TEST, DataError
from twotower.export.onnx import Ranker
from twotower.index.base import NO_ITEM
from twotower.losses.calibration import Calibration
from twotower.models.dcn import DCNv2
from twotower.models.two_tower import TwoTower

NUM_GOLDEN = 64
QUERY_BLOCK = 1024

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Queries out of the test part.

    Args:
        interactions: (Q,) the interaction whose context each query has.
        user_rows: (Q,) users, or None for a flat click table.
        history_ends: (Q,) absolute end of each history in the events, or None without events.
        item_rows: (Q,) the item that was shown, or None where a retrieval stage finds items.
        excluded: Items that the retrieval may not return, or None.
    """

    interactions: Array
    user_rows: Array | None = None
    history_ends: Array | None = None
    item_rows: Array | None = None
    excluded: ItemLists | None = None

    def batch(self, columns: Columns) -> Batch:
        """Features of the queries for one stage."""
        batch = columns.context(torch.from_numpy(self.interactions))
        if self.user_rows is not None:
            batch |= columns.users(torch.from_numpy(self.user_rows))
        if self.user_rows is not None and self.history_ends is not None:
            ends = torch.from_numpy(self.history_ends)
            batch |= columns.history(torch.from_numpy(self.user_rows), ends)
        return batch

    def candidates(self) -> Array | None:
        """(Q, 1) the items that were shown, or None."""
        return None if self.item_rows is None else self.item_rows[:, None]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Queries with their candidates.

    Args:
        queries: Columns of the queries, (Q, ...) each.
        candidates: Columns of the candidates, query by query, (n, ...) each.
        owners: (n,) the query of every candidate; None for a flat click table, which has no items.
    """

    queries: Batch
    candidates: Batch
    owners: Tensor | None

    def by_owner(self) -> Batch:
        """What an exported ranker is given: every query once."""
        owner = {} if self.owners is None else {OWNER: self.owners}
        return self.queries | self.candidates | owner

    def one_by_one(self) -> Batch:
        """What a ranker is given in training: n rows of everything."""
        if self.owners is None:
            return self.queries
        queries = {name: column[self.owners] for name, column in self.queries.items()}
        return queries | self.candidates


def query_requests(queries: Queries, chosen: Array, *, remove_seen: bool) -> Requests:
    """Some of the evaluation queries as requests.

    Args:
        queries: Queries of a part.
        chosen: (Q,) which of them.
        remove_seen: Whether the user's seen items may not be returned.
    """
    return Requests(
        interactions=np.asarray(queries.interactions[chosen], np.int64),
        user_rows=np.asarray(queries.user_rows[chosen], np.int64),
        history_ends=np.asarray(queries.history_end[chosen], np.int64),
        excluded=queries.seen.take(chosen) if remove_seen else None,
    )


def impression_requests(prepared: Prepared) -> Requests:
    """Rows of the test part as requests, each for the item that was shown.

    Args:
        prepared: The data set with the events of the catalogue alone.

    Raises:
        DataError: When the test part shows nothing of the catalogue.
    """
    log = prepared.interactions
    inside = np.asarray(log.split) == TEST
    if log.item_rows is not None:
        inside &= np.asarray(log.item_rows) < prepared.num_catalogue
    rows = np.flatnonzero(inside)
    if not len(rows):
        raise DataError(
            ["the test part has no row with an item of the catalogue: no golden request"]
        )
    rows = rows[spaced(len(rows))]
    return Requests(
        interactions=rows,
        user_rows=_taken(log.user_rows, rows),
        history_ends=None if prepared.events is None else _taken(log.history_end, rows),
        item_rows=_taken(log.item_rows, rows),
    )


@torch.no_grad()
def query_vectors(model: TwoTower, batch: Batch) -> Tensor:
    """Vectors (Q, D) of queries, in blocks."""
    return torch.cat([model.embed_queries(block).float() for block in blocks(batch)])


@torch.no_grad()
def ranker_answers(model: DCNv2, calibration: Calibration, batch: Batch) -> dict[str, Array]:
    """What the ranker says of pairs, (n,) each, in blocks, by name of the output."""
    ranker = Ranker(model, calibration)
    parts = [ranker(block) for block in blocks(batch)]
    outputs = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return dict(zip(ranker.outputs, outputs, strict=True))


def pairs(
    columns: Columns, requests: Requests, candidates: Array | None, scores: Array | None
) -> Pairs:
    """What the ranker is given for every query with each of its candidates.

    Args:
        columns: Features of the ranking stage.
        requests: Q queries.
        candidates: Their item rows (Q, K), best first, padded with -1; None without items.
        scores: Scores of the retrieval (Q, K), or None.

    Returns:
        The n pairs that are no padding, query by query.
    """
    queries = requests.batch(columns)
    if candidates is None:
        return Pairs(queries=queries, candidates={}, owners=None)
    owners, places = np.nonzero(candidates != NO_ITEM)
    batch = columns.items(torch.from_numpy(candidates[owners, places]))
    if scores is not None:
        batch[RETRIEVAL_SCORE] = torch.from_numpy(scores[owners, places])
        batch[RETRIEVAL_RANK] = torch.from_numpy(np.asarray(places + 1, np.float32))
    return Pairs(queries=queries, candidates=batch, owners=torch.from_numpy(owners))


def grid(values: Array, candidates: Array | None) -> Array:
    """Values (n,) of pairs in the places of their candidates (Q, K), NaN where there is none."""
    if candidates is None:
        return values[:, None]
    table = np.full(candidates.shape, np.nan, np.float32)
    table[candidates != NO_ITEM] = values
    return table


def blocks(batch: Batch) -> list[Batch]:
    """A batch cut into pieces of at most `QUERY_BLOCK` rows."""
    num_rows = len(next(iter(batch.values())))
    starts = range(0, num_rows, QUERY_BLOCK)
    return [{k: v[start : start + QUERY_BLOCK] for k, v in batch.items()} for start in starts]


def spaced(num_rows: int) -> Array:
    """Positions ``(n,)`` of `NUM_GOLDEN` rows at most, evenly spaced over all."""
    return np.linspace(0, num_rows - 1, min(num_rows, NUM_GOLDEN)).astype(np.int64)


def _taken(values: Array | None, rows: Array) -> Array | None:
    return None if values is None else np.asarray(values[rows], np.int64)
