"""What a retrieval model minimises: a loss, and the candidates that it is computed on.

Shapes: B queries, T targets, C candidates of all, S queries with H candidates of their own, D
width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from twotower.losses.hard_negatives import HardNegatives, Mined
from twotower.losses.masks import CandidateMask, check_masks, positive_mask
from twotower.losses.negatives import Negatives, OwnCandidates, Pool, PoolRows
from twotower.losses.ranks import share
from twotower.losses.step import Step


class RetrievalObjective(Protocol):
    """Computes the loss of a step.

    What it remembers from step to step is in its state as a module, to be saved and restored.
    """

    mask_known: bool
    mask_later: bool
    mask_cold: bool

    def __call__(self, step: Step) -> Tensor:
        """Scalar loss of a batch; of several processes, the mean over the targets of one."""


class RetrievalLoss(Protocol):
    """A loss over targets and a pool of candidates that all queries share.

    One with a true attribute `counts_copies` may be given candidates that stand for several copies
    of an item: it weighs them by `Pool.log_expected_count` or `Pool.log_copies`.
    """

    def __call__(
        self,
        queries: Tensor,
        targets: Tensor,
        pool: Pool,
        masked: CandidateMask,
        weights: Tensor | None = None,
        owners: Tensor | None = None,
    ) -> Tensor:
        """Scalar loss of a batch; see `twotower.losses.sampled_softmax.SampledSoftmax`."""


class Objective(nn.Module):
    """A loss with its negatives.

    Args:
        loss: Computed on targets and candidates.
        negatives: Draws the candidates.
        hard: Mines further candidates for single queries; None for none.
        mask_known: Whether a user's other training positives are kept out of the candidates that
            stand against it; its target always is. With them, a query learns what its user takes at
            some time; against them, what it takes next.
        mask_later: Whether that goes for positives after the query too, or only for those before
            it, which are left out of its list where seen items are.
        mask_cold: Whether items without a training event are kept out of the candidates. Against
            them, a model learns that what is new is never taken, though nobody could take it yet;
            that keeps a model without content from showing items of which it knows nothing.

    Raises:
        ValueError: When `mask_later` is False without `mask_known`.
    """

    def __init__(
        self,
        *,
        loss: RetrievalLoss,
        negatives: Negatives,
        hard: HardNegatives | None = None,
        mask_known: bool = True,
        mask_later: bool = True,
        mask_cold: bool = False,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.negatives = negatives
        self.hard = hard
        check_masks(known=mask_known, later=mask_later)
        self.mask_known = mask_known
        self.mask_later = mask_later
        self.mask_cold = mask_cold

    def forward(self, step: Step) -> Tensor:
        """Scalar loss of a batch, a mean over the targets of this process."""
        ranks, device = step.ranks, step.target_rows.device
        target_rows = ranks.gather(step.target_rows)
        drawn = self.negatives.draw(target_rows, step.item_probability, ranks.generator(device))
        if step.merge_copies and drawn.num_in_batch and getattr(self.loss, "counts_copies", False):
            drawn = drawn.merged()
        queries = step.embed_queries()  # (B, D)
        targets, vectors = _embedded(step, drawn)
        if self.negatives.remembers:
            of_all = (
                drawn.targets_of(vectors, target_rows)
                if drawn.num_in_batch
                else ranks.gather(targets.detach())
            )
            self.negatives.remember(target_rows, of_all)
        if drawn.gradient_scale is not None:
            vectors = _with_scaled_gradient(vectors, drawn.gradient_scale)
        if drawn.queued is not None:
            vectors = torch.cat([vectors, drawn.queued])  # (C, D)
        pool = Pool(
            vectors=vectors,
            rows=drawn.rows,
            log_expected_count=drawn.log_expected_count,
            log_copies=drawn.log_copies,
        )
        masked = step.mask.on(pool.rows)
        mined = None if self.hard is None else self.hard.mine(step, queries.detach())
        if mined is not None:
            pool, masked = _with_mined(pool, masked, mined, step, len(queries))
        return self.loss(queries, targets, pool, masked, step.weights, step.owners)


def _embedded(step: Step, drawn: PoolRows) -> tuple[Tensor, Tensor]:
    """Vectors of a process' targets ``(T, D)`` and of all candidates but the queued ``(C - Q, D)``.

    Every process embeds its own targets and a share of the other candidates; of merged ones, a
    share of all.
    """
    ranks, num_targets, is_merged = step.ranks, len(step.target_rows), drawn.places is not None
    others = drawn.to_embed if is_merged else drawn.to_embed[drawn.num_in_batch :]
    own = others[share(ranks, len(others))]
    if is_merged or not drawn.num_in_batch:
        vectors = ranks.gather(step.embed_items(own))
        if is_merged:
            return drawn.targets_of(vectors, step.target_rows), vectors
        return step.embed_items(step.target_rows), vectors
    vectors = step.embed_items(torch.cat([step.target_rows, own]))
    targets = vectors[:num_targets]
    if ranks.size == 1:
        return targets, vectors
    return targets, torch.cat([ranks.gather(part) for part in (targets, vectors[num_targets:])])


def _with_scaled_gradient(vectors: Tensor, scale: Tensor) -> Tensor:
    """Vectors ``(C, D)`` as they are, whose gradients are multiplied by a scale ``(C,)``."""
    fixed = vectors.detach()
    return fixed + scale.to(vectors.dtype).unsqueeze(1) * (vectors - fixed)


def _with_mined(
    pool: Pool, masked: CandidateMask, mined: Mined, step: Step, num_queries: int
) -> tuple[Pool, CandidateMask]:
    """The pool and its mask with what was mined for single queries."""
    num_mined, num_own = mined.rows.shape
    flat = mined.rows.flatten()  # (S * H,)
    vectors = step.embed_items(flat.clamp(min=0))  # (S * H, D)
    own = OwnCandidates(
        queries=mined.queries,
        vectors=vectors.view(num_mined, num_own, vectors.shape[1]),
        absent=mined.rows < 0,
    )
    # A candidate of all that was mined for a query counts once, among what was mined.
    owners = torch.arange(num_mined, device=flat.device).repeat_interleave(num_own)  # (S * H,)
    counted = positive_mask(pool.rows, owners, flat, num_mined + 1)  # (S + 1, C), the last is empty
    place = torch.full((num_queries,), num_mined, device=flat.device)  # (B,)
    place[mined.queries] = torch.arange(num_mined, device=flat.device)

    return replace(pool, own=own), _WithMined(masked, counted, place)


@dataclass(frozen=True)
class _WithMined:
    """A mask, and the candidates that are among what was mined for the query.

    Args:
        masked: The mask.
        counted: ``(S + 1, C)`` bool.
        place: ``(B,)`` row of every query in `counted`.
    """

    masked: CandidateMask
    counted: Tensor
    place: Tensor

    def __getitem__(self, queries: slice) -> Tensor:
        return self.masked[queries] | self.counted.index_select(0, self.place[queries])
