"""The processes that train together, as a loss sees them: each holds a share of every batch.

All of them draw the same batch and take a share of its queries each. A query stands against the
candidates of the whole batch, wherever they were embedded, so that the loss is that of one process
with the same batch. Random numbers that concern the whole batch, such as uniform negatives, are the
same everywhere; those of dropout are not.

Shapes: n things of this process, N of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor


class Ranks(Protocol):
    """What processes that train together must agree on within a step."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    def counts(self, num: int) -> Sequence[int]:
        """How many things every process has, where this one has `num`."""

    def gather(self, values: Tensor) -> Tensor:
        """Values ``(n, ...)`` of all processes, one behind the other ``(N, ...)``.

        Differentiable: what all processes want of a value is added up in its own process.
        """

    def share_of(self, mean: Tensor, weights: Tensor) -> Tensor:
        """What a process must return for the gradient of a mean over all processes.

        Gradients are averaged over processes; so the mean of what they return is the mean over all.

        Args:
            mean: Weighted mean of this process, a scalar.
            weights: Its weights, ``(n,)``.
        """

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a scalar over all processes, without gradient."""

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Random state that is the same in all processes; None for the global one."""


class OneRank:
    """One process, which holds the whole batch."""

    rank = 0
    size = 1

    def counts(self, num: int) -> Sequence[int]:
        """See `Ranks`."""
        return (num,)

    def gather(self, values: Tensor) -> Tensor:
        """See `Ranks`."""
        return values

    def share_of(self, mean: Tensor, weights: Tensor) -> Tensor:
        """See `Ranks`."""
        return mean

    def mean(self, value: Tensor) -> Tensor:
        """See `Ranks`."""
        return value.detach()

    def generator(self, device: torch.device) -> torch.Generator | None:
        """See `Ranks`."""
        return None


def share(ranks: Ranks, num: int) -> slice:
    """Which of `num` things a process takes; shares are contiguous and differ by one at most.

    >>> share(OneRank(), 5)
    slice(0, 5, None)
    """
    each, further = divmod(num, ranks.size)
    start = ranks.rank * each + min(ranks.rank, further)
    return slice(start, start + each + (ranks.rank < further))


def blocks_of_share(ranks: Ranks, num: int, block: int) -> list[slice]:
    """A process's share of `num` things in blocks, of which every process has as many.

    So all of them run a model equally often, which looking up tables that are split asks for.

    >>> blocks_of_share(OneRank(), 5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    part = share(ranks, num)
    own = part.stop - part.start
    if ranks.size == 1:
        return [slice(start, min(start + block, own)) for start in range(0, own, block)]
    largest = -(-num // ranks.size)
    count = -(-largest // block)
    bounds = [own * at // count for at in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]
