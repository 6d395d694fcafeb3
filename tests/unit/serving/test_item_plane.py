"""Principal components, against the singular value decomposition and against what was planted."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.serving import item_plane
from twotower.serving.item_plane import fit_plane


def planted(*spreads: float, num: int = 3000) -> np.ndarray:
    """Vectors with these standard deviations along the axes of a turned space."""
    rng = np.random.default_rng(5)
    turn, _ = np.linalg.qr(rng.normal(size=(len(spreads), len(spreads))))
    return (rng.normal(size=(num, len(spreads))) * spreads) @ turn.T + 3.0


def test_it_is_that_of_the_two_greatest_singular_values() -> None:
    vectors = planted(0.5, 4.0, 1.0, 2.0, 0.1)
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    expected = left[:, :2] * values[:2]
    places = fit_plane(vectors).places(vectors)
    # Up to one scale for both axes and the sign of each.
    scale = np.abs(places).max() / np.abs(expected).max()
    np.testing.assert_allclose(np.abs(places), np.abs(expected) * scale, atol=1e-9)
    assert np.mean(np.abs(places) <= 1) == pytest.approx(0.99, abs=1e-3)


def test_a_turned_space_is_drawn_the_same() -> None:
    vectors = planted(0.5, 4.0, 1.0, 2.0)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    turned = vectors @ turn + 7.0
    one, other = (np.abs(fit_plane(some).places(some)) for some in (vectors, turned))
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_a_sample_is_enough(monkeypatch) -> None:
    vectors = planted(4.0, 2.0, 0.1)
    whole = fit_plane(vectors).places(vectors)
    monkeypatch.setattr(item_plane, "SAMPLE", 1000)
    sampled = fit_plane(vectors).places(vectors)
    for axis in range(2):
        assert np.corrcoef(whole[:, axis], sampled[:, axis])[0, 1] > 0.99


def test_vectors_of_one_number_are_a_line() -> None:
    vectors = np.array([[1.0], [2.0], [5.0]])
    places = fit_plane(vectors).places(vectors)
    assert (places[:, 1] == 0).all()
    assert (np.diff(places[:, 0]) > 0).all()


def test_vectors_that_are_all_the_same_are_a_point() -> None:
    vectors = np.ones((4, 3))
    assert (fit_plane(vectors).places(vectors) == 0).all()
