"""Sums and gradients of the sampled softmax on a GPU, without a matrix of logits.

In two passes of one kernel, each of two matrix products; logits are made again in the second. The
first goes over all candidates for a block of queries and keeps, as in attention, the largest logit,
the sum and the weighted sum of candidates up to there:

    o_b = log sum_c exp(l_bc),    O_b = sum_c exp(l_bc - o_b) v_c,    l_bc = s_bc / T - log E_c.

Where the lengths of the vectors say that no logit can be far below the largest, as those of unit
vectors at most temperatures, one bound for all takes the largest logit's place, and nothing has to
be looked for or scaled on the way.

The second goes over all queries for a block of candidates:

    G_c = sum_b exp(l_bc - shift_b) u_b = 1 / E_c sum_b exp(s_bc / T - shift_b) u_b,
    shift_b = o_b - log g_b,

where g_b, what the loss pulls at o_b with, is in the exponent and costs nothing. Logits are kept in
base 2. Nothing of size B x C is written, and nothing is added in the order of chance.

What an element costs beside the products decides: tensor cores multiply a block in the time in
which its exponentials are taken, and every further instruction is waited for. So vectors are filled
up to whole tiles, where no border has to be looked at, and queries and candidates are ordered by
item: candidates that may be a query's own target lie in one stretch, and only there are items
compared.

Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning";
Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models".

Shapes: B queries, C candidates, D width of the vectors; with fillings B' and C', multiples of 128.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twotower.losses.mask_tiles import TILE, MaskTiles
from twotower.losses.triton_mask import CHUNK, CHUNKS
from twotower.losses.triton_sums import weighted_sums

LOG2_E = 1.4426950408889634
# How far below the largest logit another one may be for its exponential, in base 2, to be a number
# of full precision, with room for a sum of many.
FAR = 100.0
# Items of fillings, above all others and not of one another.
NO_CANDIDATE, NO_TARGET = 2**31 - 1, 2**31 - 2


@dataclass(frozen=True, kw_only=True)
class Side:
    """Queries or candidates, as the kernel reads them.

    Args:
        vectors: ``(N', D)``, ordered by item, then fillings; in the precision of the products,
            whose sums are in float32.
        items: ``(N',)`` int32, of the targets or the candidates.
        places: Which query or candidate stands at each place, ``(N',)``; N for fillings.
        size: N.
    """

    vectors: Tensor
    items: Tensor
    places: Tensor
    size: int

    @staticmethod
    def of(vectors: Tensor, order: Tensor | None, items: Tensor, filling: int) -> Side:
        """Fill up and order.

        Args:
            vectors: ``(N, D)`` as they were given.
            items: ``(N,)`` in order.
            order: Which of them stands at each place, ``(N,)``; None where none has moved.
            filling: Item of what is filled up with.
        """
        size, more = len(vectors), -len(vectors) % TILE
        if order is None:
            order = torch.arange(size, device=vectors.device)
        else:
            vectors = vectors.index_select(0, order)
        if more:
            vectors = functional.pad(vectors, (0, 0, 0, more))
            items = functional.pad(items, (0, more), value=filling)
            order = functional.pad(order, (0, more), value=size)
        return Side(vectors=vectors.contiguous(), items=items, places=order, size=size)

    def terms(self, values: Tensor) -> Tensor:
        """Of values ``(N,)`` as they were given ``(N',)``; minus infinity for fillings."""
        if len(self.places) > self.size:
            values = functional.pad(values, (0, 1), value=-torch.inf)
        return values[self.places]

    def stretches(self, other: Side) -> tuple[Tensor, Tensor]:
        """Where items of this side begin and end in the other, ``(N',)`` each."""
        return (
            torch.searchsorted(other.items, self.items, out_int32=True),
            torch.searchsorted(other.items, self.items, out_int32=True, right=True),
        )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What the kernel reads.

    Args:
        queries: B queries.
        candidates: C candidates.
        offsets: ``(C',)`` float32, added to the logits in base 2; minus infinity masks.
        ends: The lowest and the highest of them before any is masked, ``(1,)`` each.
        rate: What scores are multiplied by: log2(e) / T.
        tiles: The mask.
    """

    queries: Side
    candidates: Side
    offsets: Tensor
    ends: tuple[Tensor, Tensor]
    rate: float
    tiles: MaskTiles

    @staticmethod
    def of(
        queries: Tensor,
        candidates: Tensor,
        log_expected_count: Tensor,
        *,
        temperature: float,
        tiles: MaskTiles,
        products: torch.dtype,
    ) -> Problem:
        """Of vectors ``(B, D)`` and ``(C, D)``; `products` is their precision in the kernel."""
        targets = tiles.target_rows
        if targets is None:  # Nothing is compared; they are there to be filled up.
            targets = tiles.rows.new_zeros(len(queries))
        own = Side.of(queries.to(products), tiles.query_order, targets, NO_TARGET)
        side = Side.of(candidates.to(products), tiles.order, tiles.rows, NO_CANDIDATE)
        given = -LOG2_E * log_expected_count.float()
        offsets = side.terms(given)
        if tiles.never is not None:
            offsets[: side.size].masked_fill_(tiles.never, -torch.inf)
        return Problem(
            queries=own,
            candidates=side,
            offsets=offsets,
            ends=torch.aminmax(given, dim=0, keepdim=True),
            rate=LOG2_E / temperature,
            tiles=tiles,
        )

    def sums(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the sums ``(B,)`` and weighted means of the candidates ``(B, D)``.

        Both in float32; for a query without candidates the lowest number, and zero.
        """
        queries, bound = self.queries, self._bound()
        log_sums = self.offsets.new_empty(queries.size)
        means = self.offsets.new_empty(queries.size, queries.vectors.shape[1])
        run = self._kernel(queries, self.candidates, by_candidate=False)
        # One of the two has nothing to do; which one is not asked for here.
        run(self.offsets - bound, bound, log_sums, means, bounded=True)
        run(self.offsets, bound, log_sums, means, bounded=False)
        return log_sums, means

    def of_candidates(self, shift: Tensor) -> Tensor:
        """G ``(C, D)`` in float32.

        Args:
            shift: ``(B,)`` float32; infinity for a query that pulls at nothing.
        """
        candidates = self.candidates
        found = self.offsets.new_empty(candidates.size, candidates.vectors.shape[1])
        terms = self.queries.terms(-LOG2_E * shift.float())
        run = self._kernel(candidates, self.queries, by_candidate=True)
        run(terms, terms, terms, found, bounded=True)
        return found

    def _bound(self) -> Tensor:
        """What no logit is above, ``(1,)`` in base 2; infinity where some may be far below."""
        lengths = [
            torch.linalg.vector_norm(side.vectors, dim=1, dtype=torch.float32).amax()
            for side in (self.queries, self.candidates)
        ]
        most, (low, high) = self.rate * lengths[0] * lengths[1], self.ends
        return torch.where(2 * most + (high - low) < FAR, most + high, torch.inf)

    def _kernel(self, rows: Side, columns: Side, *, by_candidate: bool) -> Callable[..., None]:
        """The kernel, which takes what columns add to logits, the bound, and where sums go.

        What does not count is not looked at.
        """
        tiles, known = self.tiles, self.tiles.known
        compares = tiles.target_rows is not None
        starts = stops = rows.items
        if compares and known is None:
            starts, stops = rows.stretches(columns)
        lists, packed = (rows.items, rows.items) if known is None else (known.lists, known.packed)
        few = known is None or known.longest <= CHUNK * CHUNKS
        num_rows, num_columns = len(rows.places), len(columns.places)

        def blocks(form: dict[str, int]) -> tuple[int]:
            return (num_rows // form["block_m"],)

        def run(
            terms: Tensor, bound: Tensor, log_sums: Tensor, sums: Tensor, *, bounded: bool
        ) -> None:
            weighted_sums[blocks](
                *(rows.vectors, columns.vectors, terms, self.offsets, bound, log_sums, sums),
                *(rows.places, rows.items, columns.items, starts, stops, lists, packed),
                # What is tuned for one size does for others.
                *(rows.size, num_columns, self.rate, (num_rows * num_columns).bit_length()),
                *(compares, known is not None, by_candidate, bounded),
                *(TILE, CHUNK, CHUNKS if few else 0),
                width=rows.vectors.shape[1],
            )

        return run
