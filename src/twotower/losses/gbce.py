"""Generalised binary cross-entropy: the target's part weighs less, as negatives are but a sample.

With k candidates c that are not masked, r the share of the catalogue that is sampled and t in
[0, 1]:

    loss = ( beta * log(1 + exp(-s_t / T)) + sum_c log(1 + exp(s_c / T)) ) / (k + 1),
    beta = r * (t * (1 - 1 / r) + 1 / r) = 1 - t * (1 - r).

Binary cross-entropy with a few sampled negatives (t = 0, beta = 1) is least where sigmoid(s_j / T)
= P_j / (P_j + r (1 - P_j)), near 1 for many items: the model is overconfident and tells its best
items apart badly. With t = 1, beta = r, it is least at the true probabilities P_j.

Petrov and Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained
with Negative Sampling". The rate r is that of an item, the number of times that it is to be
expected among the candidates; it must be one number. Where popular items are drawn more often, no
beta calibrates all items, and weights 1 / r_j would give a rare item the weight of thousands: such
candidates are refused.

Shapes: B queries, N targets, C candidates.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from twotower.losses.negatives import Pool
from twotower.losses.pool_loss import PoolLoss, check_temperature
from twotower.losses.scores import Scores


def generalised_cross_entropy(
    scores: Scores, masked: Tensor, beta: Tensor, temperature: float
) -> Tensor:
    """Loss of every target; see the formula of this module.

    Args:
        scores: Scores of targets and candidates.
        masked: ``(B, C)`` bool, True where a candidate must not stand against the query.
        beta: Weight of the target's part, a scalar.
        temperature: T, above 0.

    Returns:
        ``(N,)``.
    """
    of_targets = beta * functional.softplus(-scores.targets / temperature)  # (N,)
    of_candidates = functional.softplus(scores.candidates / temperature)  # (B, C)
    of_candidates = of_candidates.masked_fill(masked, 0)
    num_candidates = scores.per_target((~masked).sum(dim=1))  # (N,)
    return (of_targets + scores.per_target(of_candidates.sum(dim=1))) / (num_candidates + 1)


class GBCE(PoolLoss):
    """Generalised binary cross-entropy; candidates are uniform draws or the whole catalogue.

    Args:
        calibration: t; 0 is binary cross-entropy, 1 is calibrated. The authors use 0.75.
        temperature: Divides the scores; 1 for dot products, about 0.05 for cosines, which could
            not say else that an item is unlikely.

    Raises:
        ValueError: When calibration or temperature is out of range.
    """

    def __init__(self, *, calibration: float, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 <= calibration <= 1:
            raise ValueError(f"`calibration` must lie in [0, 1], got {calibration}")
        self.calibration = calibration
        self.temperature = check_temperature(temperature)

    def losses(self, scores: Scores, pool: Pool, masked: Tensor) -> Tensor:
        """Loss of every target (N,).

        Raises:
            ValueError: When some candidates were to be expected more often than others.
        """
        low, high = pool.log_expected_count.aminmax()
        if bool(low != high):
            raise ValueError(
                "GBCE needs candidates that are all expected equally often (negatives: "
                "MixedNegatives with in_batch: false, or WholeCatalogue), got expected counts from "
                f"{low.exp().item():.3g} to {high.exp().item():.3g}"
            )
        beta = 1 - self.calibration * (1 - high.exp())
        return generalised_cross_entropy(scores, masked, beta, self.temperature)
