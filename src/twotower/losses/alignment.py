"""Keeping the vectors of a new version where those of an old one are.

Vectors of a version are stored: in an index, in a feature store, in somebody else's data base. They
can be compared with those of the next version only when both lie in the same space, which nothing
in a ranking loss asks for: turn all vectors, and every score stays. So items that both versions
know are held to where they were,

    loss = ranking loss + weight * mean_i ||v_i - old_i||^2,

over the items i that a step embeds. The towers of queries follow, because they are trained against
these items; their vectors are not held, so that they may learn that tastes have changed.

Shen et al. 2020, "Towards Backward-Compatible Representation Learning", names the problem and the
test, that new vectors find old ones at least as well as old ones did; holding the vectors is the
simplest of the losses of Hu et al. 2022, "Learning Backward Compatible Embeddings".

Shapes: C items, K rows that are embedded, with repeats, D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Alignment(Protocol):
    """What is added to the loss of a step so that vectors stay comparable."""

    def __call__(self, vectors: Tensor, rows: Tensor, frozen: FrozenItems) -> Tensor:
        """Scalar for vectors ``(K, D)`` of item rows ``(K,)``."""


@dataclass(frozen=True, kw_only=True)
class FrozenItems:
    """Item vectors of the old version.

    Args:
        vectors: ``(C, D)``.
        known: ``(C,)`` bool, items that the old version knew.
    """

    vectors: Tensor
    known: Tensor


class NoAlignment:
    """The vectors go where the ranking loss takes them."""

    def __call__(self, vectors: Tensor, rows: Tensor, frozen: FrozenItems) -> Tensor:
        """Zero; see `Alignment`."""
        return vectors.new_zeros(())


class Anchor:
    """Holds items to their old vectors by the squared distance.

    Args:
        weight: Of the mean squared distance; of unit vectors that is at most 4.

    Raises:
        ValueError: When the weight is not above 0.
    """

    def __init__(self, *, weight: float) -> None:
        if weight <= 0:
            raise ValueError(
                f"alignment: `weight` must be above 0, got {weight}; losses/alignment=none is none"
            )
        self.weight = weight

    def __call__(self, vectors: Tensor, rows: Tensor, frozen: FrozenItems) -> Tensor:
        """Weighted mean over the items that the old version knew; see `Alignment`."""
        known = frozen.known[rows].to(vectors.dtype)  # (K,)
        distances = (vectors - frozen.vectors[rows].to(vectors.dtype)).square().sum(dim=1)  # (K,)
        mean: Tensor = (distances * known).sum() / known.sum().clamp(min=1)
        return self.weight * mean


@dataclass(kw_only=True)
class Aligned:
    """The alignment of a training, and what it adds to the loss of one step.

    Args:
        alignment: The loss.
        frozen: The old vectors.
    """

    alignment: Alignment
    frozen: FrozenItems
    _embedded: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def saw(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Take down what a step embeds, ``(n, D)`` of rows ``(n,)``; the vectors, as they are."""
        if vectors.requires_grad:
            self._embedded.append((vectors, rows))
        return vectors

    def loss(self) -> Tensor:
        """Scalar, of all that was seen since the last call, at least one vector."""
        vectors, rows = (torch.cat(parts) for parts in zip(*self._embedded, strict=True))
        self._embedded.clear()
        return self.alignment(vectors, rows, self.frozen)
