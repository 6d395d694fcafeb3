"""A mask for kernels that see a tile of queries and candidates at a time.

Candidates are ordered by item, and so all places of an item lie together however often the batch
has it. The target of a query is compared with the candidates in the kernel; where that is all,
queries are ordered by it, and those that a block of them has to be compared with lie together too.
A known positive is a run of candidates. Runs are cut at the borders of tiles of 128 x 128 and
listed by tile. What is kept grows with the known positives and not with B x C, but for one number a
tile.

Shapes: B queries, C candidates, R runs, P pieces of runs, T tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twotower.losses.masked_pairs import Matches, expanded

# Queries and candidates of a tile; at most 255, a place in a tile is kept in 8 bits.
TILE = 128


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Runs of masked candidates, by tile.

    Args:
        lists: Where the pieces of each tile begin, T + 1 numbers, int32; tiles of the first 128
            queries come first.
        packed: ``(P,)`` int32: query in its tile, + 2^8 first candidate, + 2^16 the one after the
            last.
        longest: Pieces of the tile that has most.
    """

    lists: Tensor
    packed: Tensor
    longest: int

    @staticmethod
    def of(queries: Tensor, first: Tensor, counts: Tensor, sizes: tuple[int, int]) -> Pieces:
        """Cut runs at the borders of tiles.

        Args:
            queries: Query of each run, ``(R,)`` int64.
            first: Its first candidate, ``(R,)``.
            counts: How many candidates it has, ``(R,)``.
            sizes: B and C.
        """
        down, across = (-(-size // TILE) for size in sizes)
        filled = counts > 0
        queries, first, last = queries[filled], first[filled], (first + counts - 1)[filled]
        runs, tiles = expanded(first // TILE, last // TILE - first // TILE + 1)  # (P,)
        low = (first[runs] - tiles * TILE).clamp_min(0)
        high = (last[runs] - tiles * TILE).clamp_max(TILE - 1) + 1
        of_run = queries[runs]
        packed = of_run % TILE + (low << 8) + (high << 16)
        keys, order = (of_run // TILE * across + tiles).sort()
        edges = torch.arange(across * down + 1, device=keys.device)
        lists = torch.searchsorted(keys, edges)
        longest = int(lists.diff().max())
        return Pieces(lists=lists.int(), packed=packed[order].int(), longest=longest)


@dataclass(frozen=True, kw_only=True)
class Known:
    """Known positives among some candidates.

    Args:
        matches: The candidates by item.
        pieces: Pairs with them, in that order.
    """

    matches: Matches
    pieces: Pieces


@dataclass(frozen=True, kw_only=True)
class MaskTiles:
    """Which candidates must not stand against which queries.

    Args:
        rows: Item rows of the candidates, ``(C,)`` int32, in the order of `order`.
        order: Which candidate stands at each place, ``(C,)``; None where none has moved.
        target_rows: Item row of every query's target, ``(B,)`` int32, in the order of
            `query_order`, or None.
        query_order: Which query stands at each place, ``(B,)``; None where none has moved.
        never: ``(C,)`` bool, candidates that stand against no query, or None; in that order.
        known: Further pairs, or None.
    """

    rows: Tensor
    order: Tensor | None
    target_rows: Tensor | None
    query_order: Tensor | None
    never: Tensor | None
    known: Pieces | None

    @staticmethod
    def of(
        pool_rows: Tensor, target_rows: Tensor | None, never: Tensor | None, known: Known | None
    ) -> MaskTiles:
        """Of candidates ``(C,)`` and targets ``(B,)``; `never` is of items."""
        rows, order, query_order = pool_rows, None, None
        if known is not None:
            rows, order = known.matches.ordered, known.matches.order
        elif target_rows is not None:
            rows, order = pool_rows.int().sort()
            target_rows, query_order = target_rows.int().sort()
        return MaskTiles(
            # Rows are below 2^31: they are places in a table of vectors.
            rows=rows.int(),
            order=order,
            target_rows=None if target_rows is None else target_rows.int(),
            query_order=query_order,
            never=None if never is None else never[rows],
            known=None if known is None else known.pieces,
        )
