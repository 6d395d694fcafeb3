"""From the logits of a ranker to probabilities that mean what they say.

A ranker that was trained on a share of the negatives sees positives too often; that is undone
first. What is then still too steep or too high is mended by Platt scaling on the validation part:

    logit of the truth = a (logit as trained + log r) + b,    a > 0,

with r the share of the negatives that was kept. It rises with the logit, so no order is changed.

Platt 1999, "Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized
Likelihood Methods"; a is the inverse of the temperature of Guo et al. 2017, "On Calibration of
Modern Neural Networks".

Shapes: n examples.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from twotower.losses.ranking import undo_sampling

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

GRADIENT_LIMIT = 1e-9  # nats a unit of a coefficient; the fit ends below it


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What stands between the logits of a ranker and the probability.

    Args:
        negative_rate: Share of the negatives that the ranker was trained on, in (0, 1].
        scale: Factor a of the logits, above 0.
        bias: What is added to them, b.

    Raises:
        ValueError: When a number is out of range.
    """

    negative_rate: float
    scale: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.negative_rate <= 1:
            problems.append(f"`negative_rate` must lie in (0, 1], got {self.negative_rate}")
        if not 0 < self.scale < math.inf:
            problems.append(f"`scale` must be finite and above 0, got {self.scale}")
        if not math.isfinite(self.bias):
            problems.append(f"`bias` must be finite, got {self.bias}")
        if problems:
            raise ValueError("\n".join(f"calibration: {problem}" for problem in problems))

    def probability(self, logits: Tensor, *, kept: float = 1.0) -> Tensor:
        """How likely a positive is.

        Args:
            logits: What the ranker says, any shape.
            kept: Share of the negatives that is there where the question is asked: 1 for the truth,
                less among examples that were sampled.

        Returns:
            Probabilities of the same shape.
        """
        true = undo_sampling(logits, self.negative_rate) * self.scale + self.bias
        return (true - math.log(kept)).sigmoid()


class Calibrator(Protocol):
    """Fits a `Calibration`."""

    def fit(self, logits: Array, labels: Array, *, kept: float, trained: float) -> Calibration:
        """Fit on examples that the ranker was not trained on.

        Args:
            logits: (n,) what the ranker says.
            labels: (n,) 1 for a positive and 0 for a negative.
            kept: Share of the negatives that is among the examples.
            trained: Share of the negatives that the ranker was trained on.
        """


class AsTrained:
    """No correction but that for the sampling of negatives."""

    def fit(self, logits: Array, labels: Array, *, kept: float, trained: float) -> Calibration:
        """See `Calibrator`."""
        return Calibration(negative_rate=trained)


class Platt:
    """Slope and bias that make the validation labels most likely.

    Labels are pulled towards the middle as Platt does it, 1 to (p + 1) / (p + 2) and 0 to
    1 / (q + 2) for p positives and q negatives, so that no fit runs off to infinity. Rows count the
    same, whatever they weigh in the loss: a probability is held against what happened.
    """

    def fit(self, logits: Array, labels: Array, *, kept: float, trained: float) -> Calibration:
        """See `Calibrator`."""
        values = np.asarray(logits, np.float64) + math.log(trained)  # (n,)
        positives = float(np.sum(labels))
        targets = np.where(
            np.asarray(labels) > 0,
            (positives + 1) / (positives + 2),
            1 / (len(values) - positives + 2),
        )
        offset = -math.log(kept)
        scale, bias = _fit(np.stack([values, np.ones_like(values)], axis=1), targets, offset)
        if scale <= 0:
            log.warning(
                "Calibration: on validation the ranker is right the wrong way round (slope %.3g); "
                "its order is kept and the mean alone is mended",
                scale,
            )
            scale = 1.0
            bias = _fit(np.ones((len(values), 1)), targets, offset + values)[0]
        return Calibration(negative_rate=trained, scale=float(scale), bias=float(bias))


def _fit(design: Array, targets: Array, offset: float | Array) -> Array:
    """Coefficients (c,) of the most likely logistic regression.

    Args:
        design: (n, c).
        targets: (n,) in (0, 1).
        offset: Added to the logits, (n,) or one for all.
    """

    def loss(coefficients: Array) -> tuple[float, Array]:
        logits = design @ coefficients + offset  # (n,)
        gradient = design.T @ (expit(logits) - targets) / len(targets)  # (c,)
        return float(np.mean(np.logaddexp(0, logits) - targets * logits)), gradient

    start = np.zeros(design.shape[1])
    start[0] = float(design.shape[1] > 1)  # a slope begins at 1
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": GRADIENT_LIMIT})
    return np.asarray(found.x)
