"""How likely an item is to be the next target, estimated from the stream of batches.

The probability of an item is one over the mean number of targets from one occurrence to the next.
Two arrays of H buckets hold, for the items that a hash function sends there, when one of them
occurred last and a moving average of the gaps between their occurrences; at an occurrence

    gap[h] <- gap[h] + w * (t - last[h] - gap[h]),    last[h] <- t,    p = 1 / gap[h].

Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations",
algorithms 2 and 3: with several hash functions the largest gap counts, since a collision can only
shorten it. Nothing needs to be counted before training, and a shift is followed.

What differs from the paper, and why:

- t counts targets, not steps. In steps no gap is shorter than one, so that all items that are in
  every batch look alike, and p is the probability that a batch holds the item. In targets it is
  the probability of one draw, and the B - 1 targets of the other queries are expected to hold an
  item (B - 1) p times, as with exact counts. k occurrences in a batch are k equal gaps.
- w = max(rate, 1 / n) at the n-th occurrence: a plain mean at first, free of any start value.
- The gap that is still open counts as soon as it lengthens the average: an item that is not seen
  any more fades, and one never seen has a probability of at most 1 / t.

Shapes: B targets, C items that are asked for, M hash functions, H buckets.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# The Mersenne prime 2^31 - 1; products of two numbers below it fit into 64 bits.
PRIME = 2**31 - 1


class StreamingFrequency(nn.Module):
    """Estimates the probability of items as targets; its buffers are saved with a checkpoint.

    Args:
        num_buckets: H. The first hash function is the item row modulo H: with as many buckets as
            items it has no collisions, and one function is enough.
        num_hashes: M.
        rate: Weight of a new gap once the average has seen 1 / rate of them. The relative error
            settles at sqrt(rate / 2), and a shift is followed within 1 / rate occurrences.

    Raises:
        ValueError: When a number is out of range.
    """

    last: Tensor
    gaps: Tensor
    seen: Tensor
    clock: Tensor
    factors: Tensor
    terms: Tensor

    def __init__(self, *, num_buckets: int, num_hashes: int = 1, rate: float = 0.01) -> None:
        super().__init__()
        if num_buckets < 1 or num_hashes < 1 or not 0 < rate < 1:
            raise ValueError(
                "streaming frequency: `num_buckets` and `num_hashes` must be at least 1, `rate` "
                f"must lie in (0, 1), got num_buckets={num_buckets}, num_hashes={num_hashes}, "
                f"rate={rate}"
            )
        self.num_buckets = num_buckets
        self.rate = rate
        shape, state = (num_hashes, num_buckets), torch.Generator().manual_seed(0)
        factors, terms = torch.randint(1, PRIME, (2, num_hashes, 1), generator=state)
        factors[0], terms[0] = 1, 0
        self.register_buffer("factors", factors)
        self.register_buffer("terms", terms)
        self.register_buffer("last", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("gaps", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))

    def update(self, target_rows: Tensor) -> None:
        """Learn from the targets of a batch.

        Args:
            target_rows: Item rows, ``(B,)`` int64; their order does not matter.
        """
        buckets = self._buckets(target_rows)  # (M, B)
        ordered = buckets.sort(dim=1).values  # (M, B)
        end = torch.searchsorted(ordered, buckets, right=True)  # (M, B)
        occurrences = end - torch.searchsorted(ordered, buckets)  # (M, B) in this batch
        self.clock += target_rows.numel()
        seen, old = self.seen.gather(1, buckets), self.gaps.gather(1, buckets)  # (M, B)
        new = (self.clock - self.last.gather(1, buckets)) / occurrences  # (M, B)
        kept = self._kept(seen, occurrences)
        # Equal buckets are written repeatedly, with equal values.
        self.gaps.scatter_(1, buckets, new + kept * (old - new))
        self.seen.scatter_(1, buckets, seen + occurrences)
        self.last.scatter_(1, buckets, self.clock.expand_as(buckets))

    def probability(self, rows: Tensor) -> Tensor:
        """Probability that a target is the item.

        Args:
            rows: Item rows, ``(C,)`` int64.

        Returns:
            ``(C,)`` float64, above 0 and at most 1.
        """
        buckets = self._buckets(rows)  # (M, C)
        gaps, since = self.gaps.gather(1, buckets), self.clock - self.last.gather(1, buckets)
        seen = self.seen.gather(1, buckets)  # (M, C)
        kept = self._kept(seen, torch.ones_like(seen))
        gaps = torch.maximum(gaps, since + kept * (gaps - since))  # (M, C)
        return 1 / gaps.amax(dim=0).clamp(min=1)

    def go_on(self, before: Mapping[str, Tensor], old_rows: Tensor, new_rows: Tensor) -> None:
        """Take over the estimate of an earlier run, whose items had other rows.

        Where several items fall into one bucket, what was seen most often counts. Items that are
        not named begin as if they had never been seen; the clock goes on.

        Args:
            before: The earlier state, the buffers of this class by name.
            old_rows: Rows that items had then, ``(I,)``.
            new_rows: Rows of the same items now, ``(I,)``.

        Raises:
            ValueError: When the earlier estimate had another number of hash functions.
        """
        num_hashes, old_buckets = before["gaps"].shape
        if num_hashes != len(self.gaps):
            raise ValueError(
                f"streaming frequency: {len(self.gaps)} `num_hashes`, the run that is gone on from "
                f"has {num_hashes}"
            )
        self.clock.copy_(before["clock"])
        hashed = (old_rows * before["factors"] + before["terms"]) % PRIME % old_buckets  # (M, I)
        seen = before["seen"].gather(1, hashed)
        order = torch.arange(seen.shape[1]).expand_as(seen)
        order = order.scatter(1, seen.argsort(dim=1, stable=True), order)  # (M, I) place by `seen`
        buckets = self._buckets(new_rows)  # (M, I)
        last = torch.full_like(self.seen, -1).scatter_reduce(1, buckets, order, "amax")  # (M, H)
        wins = last.gather(1, buckets) == order
        for name in ("gaps", "seen", "last"):
            own, old = getattr(self, name), before[name].gather(1, hashed)
            for number, won in enumerate(wins):
                own[number, buckets[number, won]] = old[number, won]

    def _buckets(self, rows: Tensor) -> Tensor:
        return (rows * self.factors + self.terms) % PRIME % self.num_buckets

    def _kept(self, seen: Tensor, new: Tensor) -> Tensor:
        """What the old average weighs after `new` gaps more: as in a mean, or by the rate."""
        return torch.minimum(seen / (seen + new).double(), (1 - self.rate) ** new.double())
