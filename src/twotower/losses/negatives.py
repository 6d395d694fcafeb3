"""Which items stand against the targets of a batch, and how often each is expected among them.

`MixedNegatives` pools the targets of the batch (Yi et al. 2019) and of earlier ones (Wang et al.
2021) with items drawn uniformly from the catalogue (Yang et al. 2020, "Mixed Negative Sampling for
Learning Two-tower Neural Networks in Recommendations"). A batch of B events, its targets drawn with
the probabilities p, puts item j (B - 1) p_j times among the other queries' targets, on average, a
queue of Q earlier targets Q p_j times, and M uniform draws from N items M / N times:

    E[count of j] = (B - 1 + Q) p_j + M / N.

The count may be above one, and nothing is clipped: a rare item keeps its full correction.

Shapes: B queries, C candidates of all, S queries with H candidates of their own, M uniform draws, Q
items of the queue, N items, D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from twotower.losses.queue import CrossBatchQueue
from twotower.losses.streaming_frequency import StreamingFrequency


@dataclass(frozen=True, kw_only=True)
class PoolRows:
    """The candidates of a batch, before they are embedded.

    Args:
        rows: Item rows, ``(C,)``; an item may be there more than once.
        log_expected_count: Log of the number of times that a candidate's item was to be expected
            in the pool, less `log_copies`, ``(C,)`` float32; zeros when every item is there exactly
            once.
        num_in_batch: How many candidates are the targets of the batch, in their order; they come
            first, unless candidates are merged.
        queued: Vectors ``(Q, D)`` of the last Q candidates, which are not embedded again; None
            where there are none.
        gradient_scale: What the gradients of the other candidates' vectors are multiplied by,
            ``(C - Q,)``, to stand for the queued ones, which have none; None where there are none.
        log_copies: Log of how many candidates each stands for, ``(C,)`` float32, where they are
            merged; None where each stands for itself.
        places: Which candidates the targets of the batch are, ``(B,)``, where they are merged.
    """

    rows: Tensor
    log_expected_count: Tensor
    num_in_batch: int
    queued: Tensor | None = None
    gradient_scale: Tensor | None = None
    log_copies: Tensor | None = None
    places: Tensor | None = None

    @property
    def to_embed(self) -> Tensor:
        """Item rows of the candidates whose vectors are not known, ``(C - Q,)``."""
        return self.rows if self.queued is None else self.rows[: -len(self.queued)]

    def merged(self) -> PoolRows:
        """The same with one candidate for all copies of an item, but for the queued ones.

        Those to be embedded are in ascending order then. A device would be waited for: how many
        items there are is not known before.
        """
        rows, item_of, copies = torch.unique(self.to_embed, return_inverse=True, return_counts=True)
        start, counts, scale = len(item_of), self.log_expected_count, self.gradient_scale
        # What is known of a candidate is known of its item, so any copy says it.
        copy_of = torch.empty_like(rows).scatter_(0, item_of, torch.arange(start))
        log_copies = functional.pad(copies.log(), (0, len(self.rows) - start))
        return PoolRows(
            rows=torch.cat([rows, self.rows[start:]]),
            log_expected_count=torch.cat([counts[copy_of], counts[start:]]) - log_copies,
            num_in_batch=self.num_in_batch,
            queued=self.queued,
            gradient_scale=None if scale is None else scale[copy_of],
            log_copies=log_copies,
            places=item_of[: self.num_in_batch],
        )

    def targets_of(self, vectors: Tensor, target_rows: Tensor) -> Tensor:
        """Vectors ``(T, D)`` of targets of the batch.

        Args:
            vectors: Of the candidates that are embedded, ``(C - Q, D)``.
            target_rows: Item rows of the targets, ``(T,)``: the first of the batch, or any once
                candidates are merged.
        """
        if self.places is None:
            return vectors[: len(target_rows)]
        places = self.places
        if len(target_rows) < len(places):  # of one process among several
            places = torch.searchsorted(self.to_embed, target_rows)
        return vectors.index_select(0, places)


@dataclass(frozen=True, kw_only=True)
class OwnCandidates:
    """Candidates that stand against one query each.

    Args:
        queries: Indices in 0..B-1 of the queries that have some, ``(S,)``.
        vectors: Vectors of their candidates, each there with certainty, ``(S, H, D)``.
        absent: ``(S, H)`` bool, True where a query has fewer.
    """

    queries: Tensor
    vectors: Tensor
    absent: Tensor


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The candidates of a batch, embedded.

    Args:
        vectors: ``(C, D)``.
        rows: Item rows, ``(C,)``.
        log_expected_count: As in `PoolRows`, ``(C,)``.
        own: Candidates of single queries; None where there are none.
        log_copies: As in `PoolRows`; None for every loss that does not say `counts_copies`.
    """

    vectors: Tensor
    rows: Tensor
    log_expected_count: Tensor
    own: OwnCandidates | None = None
    log_copies: Tensor | None = None


class Negatives(Protocol):
    """Draws the candidates of a batch.

    Where several processes hold shares of a batch, each of them draws the same for all of it.
    """

    @property
    def remembers(self) -> bool:
        """Whether `remember` is to be called."""

    def draw(
        self, target_rows: Tensor, item_probability: Tensor, generator: torch.Generator | None
    ) -> PoolRows:
        """Draw candidates.

        Args:
            target_rows: Item rows of the targets, ``(B,)`` int64.
            item_probability: Share of the training events that an item is the target of, ``(N,)``.
            generator: Random state on the device of `target_rows`; None for the global one.
        """

    def remember(self, target_rows: Tensor, targets: Tensor) -> None:
        """Keep of a step what later ones need.

        Args:
            target_rows: Item rows of the targets, ``(B,)``.
            targets: Their vectors, ``(B, D)``.
        """


class MixedNegatives(nn.Module):
    """The batch's own targets, those of earlier batches, uniform draws from the catalogue.

    Args:
        in_batch: Whether the targets of the batch are candidates.
        num_uniform: How many items are drawn uniformly, with replacement.
        queue: Holds targets of earlier batches as candidates; None for none.
        frequency: Estimates the probabilities p from the batches; None for the shares of the
            training events.

    Raises:
        ValueError: When there would be no candidates, or `num_uniform` is negative.
    """

    def __init__(
        self,
        *,
        in_batch: bool,
        num_uniform: int,
        queue: CrossBatchQueue | None = None,
        frequency: StreamingFrequency | None = None,
    ) -> None:
        super().__init__()
        if num_uniform < 0 or (num_uniform == 0 and not in_batch):
            raise ValueError(
                "negatives: `num_uniform` must be at least 1 without `in_batch`, and at least 0 "
                f"with it, got in_batch={in_batch}, num_uniform={num_uniform}"
            )
        self.in_batch = in_batch
        self.num_uniform = num_uniform
        self.queue = queue
        self.frequency = frequency

    @property
    def remembers(self) -> bool:
        """See `Negatives`."""
        return self.queue is not None

    def draw(
        self, target_rows: Tensor, item_probability: Tensor, generator: torch.Generator | None
    ) -> PoolRows:
        """Draw candidates; see `Negatives`."""
        num_in_batch = target_rows.numel() if self.in_batch else 0
        queued = None if self.queue is None else self.queue.candidates(target_rows.device)
        queued_rows, queued_vectors = queued or (target_rows[:0], None)
        uniform = torch.randint(
            item_probability.numel(),
            (self.num_uniform,),
            generator=generator,
            device=target_rows.device,
        )
        rows = torch.cat([target_rows[:num_in_batch], uniform, queued_rows])  # (C,)
        probability = self._probability(target_rows, rows, item_probability)

        def log_counts(num_queued: int) -> Tensor:
            return log_expected_count(
                probability,
                num_in_batch=num_in_batch,
                num_uniform=self.num_uniform,
                num_items=item_probability.numel(),
                num_queued=num_queued,
            )

        counts, scale = log_counts(queued_rows.numel()), None
        if queued_vectors is not None:
            # A batch of one has no candidate but its target, which is masked: nothing to scale.
            scale = (counts - log_counts(0)).exp().nan_to_num(nan=1, posinf=1)  # (C,)
            scale = scale[: len(rows) - len(queued_rows)]
        return PoolRows(
            rows=rows,
            log_expected_count=counts,
            num_in_batch=num_in_batch,
            queued=queued_vectors,
            gradient_scale=scale,
        )

    def remember(self, target_rows: Tensor, targets: Tensor) -> None:
        """Fill the queue; see `Negatives`."""
        if self.queue is not None:
            self.queue.push(target_rows, targets)

    def _probability(self, target_rows: Tensor, rows: Tensor, item_probability: Tensor) -> Tensor:
        if self.frequency is None:
            return item_probability[rows]
        self.frequency.update(target_rows)
        return self.frequency.probability(rows)


class WholeCatalogue:
    """Every item, once."""

    remembers = False

    def draw(
        self, target_rows: Tensor, item_probability: Tensor, generator: torch.Generator | None
    ) -> PoolRows:
        """List all items; see `Negatives`."""
        num_items, device = item_probability.numel(), target_rows.device
        return PoolRows(
            rows=torch.arange(num_items, device=device),
            log_expected_count=torch.zeros(num_items, device=device),
            num_in_batch=0,
        )

    def remember(self, target_rows: Tensor, targets: Tensor) -> None:
        """Nothing needs to be kept; see `Negatives`."""


def log_expected_count(
    probability: Tensor,
    *,
    num_in_batch: int,
    num_uniform: int,
    num_items: int,
    num_queued: int = 0,
) -> Tensor:
    """Log of the expected count of items among the candidates of one query.

    Args:
        probability: Probability that a target is the item, ``(C,)``.
        num_in_batch: How many targets of the batch are candidates, the query's own included; that
            one is not a random draw and does not count.
        num_uniform: How many uniform draws.
        num_items: How many items they are drawn from.
        num_queued: How many targets of earlier batches.

    Returns:
        ``(C,)`` float32; minus infinity for an item that could not have been drawn.
    """
    from_events = (max(num_in_batch - 1, 0) + num_queued) * probability.double()
    return (from_events + num_uniform / num_items).log().float()
