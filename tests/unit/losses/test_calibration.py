"""Calibration: groups worked out by hand, planted distortions, sampling, and what never changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from twotower.losses.calibration import AsTrained, Calibration, Platt


def drawn(num_rows: int, scale: float, bias: float, kept: float, seed: int = 0):
    """Logits as trained and labels, of which a share of the negatives was kept.

    The logit of the truth is ``scale * logit + bias``.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.0, 1.5, num_rows)
    labels = rng.random(num_rows) < 1 / (1 + np.exp(-(scale * logits + bias)))
    there = labels | (rng.random(num_rows) < kept)
    return logits[there], labels[there].astype(np.float32)


class TestPlatt:
    def test_two_groups_by_hand(self) -> None:
        """Logit 0 for 3 positives of 4, logit 1 for 9 of 10: the line through both log odds.

        Targets are pulled: p = 12 and q = 2 make 13/14 of a positive and 1/4 of a negative.
        """
        logits = np.array([0.0] * 4 + [1.0] * 10)
        labels = np.array([1, 1, 1, 0] + [1] * 9 + [0])
        found = Platt().fit(logits, labels, kept=1.0, trained=1.0)
        first, second = (3 * 13 / 14 + 1 / 4) / 4, (9 * 13 / 14 + 1 / 4) / 10
        low, high = (math.log(p / (1 - p)) for p in (first, second))
        assert found.bias == pytest.approx(low, abs=1e-6)
        assert found.scale == pytest.approx(high - low, abs=1e-6)
        assert found.negative_rate == 1.0

    @pytest.mark.parametrize("kept", [1.0, 0.05])
    @pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (0.4, -0.7), (2.5, 1.0)])
    def test_a_planted_distortion_is_found(self, scale: float, bias: float, kept: float) -> None:
        """Also from examples of which most negatives are gone, and for the true rate."""
        logits, labels = drawn(400_000, scale, bias, kept)
        found = Platt().fit(logits, labels, kept=kept, trained=1.0)
        assert found.scale == pytest.approx(scale, rel=0.03)
        assert found.bias == pytest.approx(bias, abs=0.03)

    def test_a_ranker_of_sampled_negatives_needs_no_more_than_the_undoing(self) -> None:
        """Trained at 1:20 its logits are log 20 too high; slope 1 and bias 0 are left to find."""
        logits, labels = drawn(400_000, 1.0, 0.0, 1.0)
        found = Platt().fit(logits + math.log(20), labels, kept=1.0, trained=1 / 20)
        assert found.scale == pytest.approx(1.0, rel=0.03)
        assert found.bias == pytest.approx(0.0, abs=0.03)

    def test_classes_that_fall_apart_stay_finite(self) -> None:
        logits = np.array([-3.0, -2.0, 2.0, 3.0])
        found = Platt().fit(logits, np.array([0, 0, 1, 1]), kept=1.0, trained=1.0)
        assert 0 < found.scale < 10
        predicted = found.probability(torch.from_numpy(logits))
        # The most likely fit gives each class its pulled target, 3/4 and 1/4, on average.
        assert predicted.sum().item() == pytest.approx(2.0)
        assert predicted[2:].mean().item() == pytest.approx(0.75, abs=0.02)

    def test_logits_that_are_all_the_same(self) -> None:
        """All that can be mended is the mean: 3 of 4, with pulled targets 3 * 4/5 and 1/3."""
        logits, labels = np.full(4, 2.0), np.array([1, 1, 1, 0])
        found = Platt().fit(logits, labels, kept=1.0, trained=1.0)
        (predicted,) = found.probability(torch.tensor([2.0], dtype=torch.float64)).tolist()
        assert predicted == pytest.approx((3 * 4 / 5 + 1 / 3) / 4, abs=1e-6)

    def test_a_ranker_that_is_wrong_keeps_its_order(self, caplog) -> None:
        logits, labels = drawn(5000, -1.0, 0.0, 1.0)
        found = Platt().fit(logits, labels, kept=1.0, trained=1.0)
        assert found.scale == 1.0
        assert "right the wrong way round (slope -" in caplog.text
        predicted = found.probability(torch.from_numpy(logits))
        assert predicted.mean().item() == pytest.approx(labels.mean(), abs=1e-3)


def test_as_trained_undoes_the_sampling_alone() -> None:
    logits, labels = drawn(50, 1.0, 0.0, 1.0)
    found = AsTrained().fit(logits, labels, kept=0.5, trained=0.1)
    assert found == Calibration(negative_rate=0.1, scale=1.0, bias=0.0)


class TestProbability:
    def test_by_hand(self) -> None:
        """Odds 16 of a sample with a quarter of the negatives are odds 4; squared 16; times 3."""
        calibration = Calibration(negative_rate=0.25, scale=2.0, bias=math.log(3))
        logits = torch.tensor([math.log(16)], dtype=torch.float64)
        assert calibration.probability(logits).item() == pytest.approx(48 / 49)
        # Among examples that kept half the negatives the odds are twice as high.
        assert calibration.probability(logits, kept=0.5).item() == pytest.approx(96 / 97)

    def test_the_order_stays(self) -> None:
        logits = torch.randn(100, generator=torch.Generator().manual_seed(0)).double()
        calibration = Calibration(negative_rate=0.01, scale=0.3, bias=-2.0)
        assert torch.equal(calibration.probability(logits).argsort(), logits.argsort())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"negative_rate": 0.0}, r"`negative_rate` must lie in \(0, 1\], got 0.0"),
        ({"negative_rate": 1.5}, r"`negative_rate` must lie in \(0, 1\], got 1.5"),
        ({"negative_rate": math.nan}, r"`negative_rate` must lie in \(0, 1\], got nan"),
        ({"negative_rate": 1.0, "scale": 0.0}, "`scale` must be finite and above 0, got 0.0"),
        ({"negative_rate": 1.0, "bias": math.inf}, "`bias` must be finite, got inf"),
    ],
)
def test_impossible_numbers_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"calibration: {message}"):
        Calibration(**given)
