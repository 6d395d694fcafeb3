"""Exponentials of a block of logits and their sums, in as few passes over the block as can be.

An exponential does not overflow once something at least as large as every logit of its row was
taken off. The largest logit takes a pass to find. On a CPU a bound is taken off instead, which is
known beforehand: with query q, candidate c and offset o of a logit, by Cauchy and Schwarz

    logit = q c / T + o <= |q| max |c| / T + max o,

and that is a column more of the product that gives the logits, as the offsets are another; both are
hardly noticed there. One pass is left. It computes sigmoid(x) = exp(x) / (1 + exp(x)), which is
exp(x) to the last digit when the bound is some 17 higher: torch does that itself on every
processor, and leaves exp(x) to a library that is slow on some. A bound that is so far above that
sums come near the smallest number gives way to the largest logits.

Shapes: B queries, C candidates, D width of the vectors, b queries of a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from twotower.losses.logits import Logits
from twotower.losses.masks import hide_


class Exponentials:
    """What the softmax weighs candidates with.

    Args:
        logits: How scores become logits.
        queries: ``(B, D)``.
        candidates: ``(C, D)``, at least one.
    """

    def __init__(self, logits: Logits, queries: Tensor, candidates: Tensor) -> None:
        self._masked = logits.masked
        limits = torch.finfo(queries.dtype)
        # What is lost of a sum above this is below eps**1.5 of it for each candidate.
        self._smallest_sum = limits.tiny / limits.eps**1.5
        queries, offset = queries / logits.temperature, -logits.log_expected_count.to(queries.dtype)
        self._offset, self._bounds = None, None
        if queries.device.type != "cpu":  # a GPU may round factors
            self._left, self._right, self._offset = queries, candidates, offset
            return
        longest = candidates.norm(dim=1).max()
        # The logarithm: exp(x) below eps does not change 1 + exp(x).
        bounds = queries.norm(dim=1) * longest + (offset.max() + 1 - math.log(limits.eps))  # (B,)
        ones = torch.ones_like
        self._left = torch.cat([queries, ones(queries[:, :1]), -bounds.unsqueeze(1)], dim=1)
        self._right = torch.cat([candidates, offset.unsqueeze(1), ones(candidates[:, :1])], dim=1)
        self._bounds = bounds

    def of(self, start: int, out: Tensor) -> tuple[Tensor, Tensor]:
        """Write those of the queries from `start` on, each row divided by some number of its own.

        Args:
            start: The first query.
            out: ``(b, C)``.

        Returns:
            Sums of the rows of `out` ``(b,)``, and the logarithm of the sums that would be there
            without the division ``(b,)``: about the lowest number for a query without candidates.
        """
        if self._bounds is not None:
            self._write(start, out)
            sums = out.sigmoid_().sum(dim=1)
            if bool((sums > self._smallest_sum).all()):
                return sums, sums.log() + self._bounds[start : start + len(out)]
            self._bounds = None
            self._left, self._right = self._left[:, :-1], self._right[:, :-1]
        self._write(start, out)
        largest = out.amax(dim=1)
        sums = out.sub_(largest.unsqueeze(1)).exp_().sum(dim=1)
        return sums, sums.log() + largest

    def _write(self, start: int, out: Tensor) -> None:
        """Logits, less their bounds where there are any."""
        block = self._left[start : start + len(out)]
        if self._offset is None:
            torch.mm(block, self._right.T, out=out)
        else:
            torch.addmm(self._offset, block, self._right.T, out=out)
        # Not minus infinity: a query without candidates shall have a gradient, zero.
        hide_(out, self._masked, start, torch.finfo(out.dtype).min)
