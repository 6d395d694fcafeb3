"""Softmax over the catalogue, estimated from a pool of candidates.

With s the score, T the temperature and E_c the expected count of candidate c's item in the pool:

    loss = -s_t / T + log( exp(s_t / T) + sum_{c not masked} exp(s_c / T - log E_c) ).

Every item but the target enters the sum E_c times on average, with weight 1 / E_c: the argument of
the logarithm is an unbiased estimate of the full softmax's partition function. The temperature
comes first, or 1 / T would blow the correction up. The target is always there, it is not a draw: it
is not corrected, and it must be masked among the candidates.

Where an item is n times in the pool, its n equal terms are one with log E_c - log n.

Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", who
correct the target too; against that, "Correcting the LogQ Correction: Revisiting Sampled Softmax
for Large-Scale Retrieval", 2025.

Shapes: B queries, N targets, C candidates, D width of the vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twotower.losses.fused_softmax import fused_softmax
from twotower.losses.logits import Logits
from twotower.losses.masks import CandidateMask
from twotower.losses.negatives import OwnCandidates, Pool
from twotower.losses.pool_loss import check_temperature
from twotower.losses.scores import Scores, paired_products


def sampled_softmax(
    scores: Scores, log_expected_count: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """Loss of every target; see the formula of this module.

    Args:
        scores: Scores of targets and candidates.
        log_expected_count: ``(C,)``.
        masked: ``(B, C)`` bool, True where a candidate must not stand against the query.
        temperature: T, above 0.

    Returns:
        ``(N,)``; at least 0, and 0 for a query without candidates.
    """
    targets = scores.targets / temperature  # (N,)
    candidates = scores.candidates / temperature - log_expected_count  # (B, C)
    # Not minus infinity: a query without candidates shall have a gradient, zero.
    lowest = torch.finfo(candidates.dtype).min
    others = candidates.masked_fill(masked, lowest).logsumexp(dim=1)  # (B,)
    return torch.logaddexp(targets, scores.per_target(others)) - targets


class SampledSoftmax(nn.Module):
    """Sampled softmax with the correction for how often a candidate was to be expected.

    Args:
        temperature: Divides the scores; about 0.05 for cosines, 1 for dot products.
        corrected: Whether expected counts are looked at. Without them what is drawn often, a
            popular item of the batch, is pushed down as often.

    Raises:
        ValueError: When the temperature is not above 0.
    """

    counts_copies = True

    def __init__(self, *, temperature: float, corrected: bool = True) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        self.corrected = corrected

    def forward(
        self,
        queries: Tensor,
        targets: Tensor,
        pool: Pool,
        masked: CandidateMask,
        weights: Tensor | None = None,
        owners: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch, without a matrix of all scores or of the mask.

        Args:
            queries: ``(B, D)``.
            targets: ``(N, D)``.
            pool: The candidates.
            masked: Which candidates must not stand against which queries.
            weights: Weights of the targets ``(N,)``, or None.
            owners: Query of every target ``(N,)``; None where every query has the one of its place.

        Returns:
            A scalar, the weighted mean of what `sampled_softmax` gives.
        """
        logits = Logits(
            temperature=self.temperature, log_expected_count=self._counts(pool), masked=masked
        )
        return fused_softmax(
            queries,
            targets,
            pool.vectors,
            logits,
            further=self._log_sums(queries, pool.own),
            weights=weights,
            owners=owners,
        )

    def _log_sums(self, queries: Tensor, own: OwnCandidates | None) -> Tensor | None:
        """Logarithm of the sum over the candidates of each query alone, ``(B,)``."""
        if own is None:
            return None
        logits = paired_products(queries[own.queries], own.vectors) / self.temperature  # (S, H)
        lowest = torch.finfo(logits.dtype).min
        log_sums = logits.masked_fill(own.absent, lowest).logsumexp(dim=1)  # (S,)
        return logits.new_full((len(queries),), lowest).index_copy(0, own.queries, log_sums)

    def _counts(self, pool: Pool) -> Tensor:
        """Of its expected count and copies, what is taken off each logit, ``(C,)``."""
        if self.corrected:
            return pool.log_expected_count
        if pool.log_copies is not None:
            return -pool.log_copies
        return torch.zeros_like(pool.log_expected_count)


class FullSoftmax(SampledSoftmax):
    """Softmax over the whole catalogue: the same loss with every item as a candidate.

    For catalogues of which every item can be embedded in every step; goes with
    `twotower.losses.negatives.WholeCatalogue`.
    """

    def _counts(self, pool: Pool) -> Tensor:
        """Zeros.

        Raises:
            ValueError: When the candidates are a sample.
        """
        if bool(pool.log_expected_count.any()):
            raise ValueError(
                "FullSoftmax needs every item once as a candidate (negatives: WholeCatalogue), got "
                f"a sample of {pool.rows.numel()} candidates; use SampledSoftmax for samples"
            )
        return pool.log_expected_count
