"""Two versions of a bundle: what turns, what moves, and what may not be mixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from twotower.metrics.catalogue import gini, top_share
from twotower.monitoring.model_drift import ModelDriftSettings, model_drift
from twotower.monitoring.scoring import BundleModels
from twotower.monitoring.vector_drift import (
    best_items,
    best_rotation,
    neighbour_overlap,
    vector_shift,
)
from twotower.monitoring.version_pair import VersionPair

SETTINGS = ModelDriftSettings(k=5)


def unit(rng, count: int, dim: int = 8) -> np.ndarray:
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rotation(rng, dim: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32)


def by_key(findings):
    return {(one.subject, one.statistic): one for one in findings}


def test_a_rotation_moves_no_item():
    rng = np.random.default_rng(0)
    old = unit(rng, 300)
    new = old @ rotation(rng, 8)
    assert vector_shift(old, new) > 0.5
    found = best_rotation(old, new)
    np.testing.assert_allclose(found @ found.T, np.eye(8), atol=1e-6)
    assert vector_shift(old, new, found) == pytest.approx(0, abs=1e-6)
    assert neighbour_overlap(old, new, np.arange(300), 10) == pytest.approx(1, abs=0.01)


def test_neighbour_overlap_against_a_sort_of_everything():
    rng = np.random.default_rng(1)
    old = unit(rng, 60)
    new = old + 0.3 * unit(rng, 60)
    rows = np.array([3, 17, 40])
    shares = []
    for row in rows:
        near = []
        for vectors in (old, new):
            scores = vectors @ vectors[row]
            near.append(
                {int(n) for n in np.argsort(-scores) if n != row}
                and set([int(n) for n in np.argsort(-scores) if n != row][:7])
            )
        shares.append(len(near[0] & near[1]) / 7)
    expected = np.mean(shares)
    assert 0 < expected < 1
    assert neighbour_overlap(old, new, rows, 7) == pytest.approx(expected)


def test_unrelated_vectors_share_neighbours_by_chance_only():
    rng = np.random.default_rng(2)
    overlap = neighbour_overlap(unit(rng, 500), unit(rng, 500), np.arange(500), 10)
    assert overlap == pytest.approx(10 / 499, abs=0.01)


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(3)
    old, new = unit(rng, 90), unit(rng, 90)
    whole = (
        best_rotation(old, new),
        vector_shift(old, new),
        neighbour_overlap(old, new, np.arange(90), 4),
    )
    monkeypatch.setattr("twotower.monitoring.vector_drift.BLOCK", 7)
    monkeypatch.setattr("twotower.monitoring.vector_drift.QUERIES", 7)
    np.testing.assert_allclose(best_rotation(old, new), whole[0], atol=1e-6)
    assert vector_shift(old, new) == pytest.approx(whole[1])
    assert neighbour_overlap(old, new, np.arange(90), 4) == whole[2]


def test_concentration_by_hand():
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
    assert gini(np.zeros(4, np.int64)) == 0
    assert top_share(np.array([1, 1, 1, 7]), 0.25) == pytest.approx(0.7)
    assert top_share(np.ones(10, np.int64)) == pytest.approx(0.1)


def test_a_version_and_itself(models: BundleModels):
    findings = model_drift(models, models, SETTINGS)
    found = by_key(findings)
    assert not any(one.alert for one in findings)
    assert found["items", "neighbour_overlap@5"].value == 1
    assert found["items", "vector_shift"].value == pytest.approx(0, abs=1e-6)
    assert found["old users, new items", "recall_of_own@5"].value == 1
    assert found["lists", "score_psi"].value == 0
    gini_found = found["lists", "gini@5"]
    assert gini_found.value == gini_found.reference


def test_versions_that_are_turned_may_not_be_mixed(models: BundleModels, bundle):
    """Both towers turned alike is another space and the same recommendations."""
    turn = rotation(np.random.default_rng(4), bundle.manifest.dim)
    vectors = np.asarray(bundle.item_vectors) @ turn
    other = BundleModels(replace(bundle, item_vectors=vectors), num_threads=1)
    embed = other.recommender.embed
    other.recommender.embed = lambda queries: embed(queries) @ turn
    pair = VersionPair.of(models, other, num_users=50, seed=0)
    found = by_key(one for one in model_drift(models, other, SETTINGS) if one.subject != "lists")
    assert found["items", "neighbour_overlap@5"].value > 0.95
    assert found["items", "vector_shift_rotated"].value == pytest.approx(0, abs=1e-5)
    for name in ("old users, new items", "new users, old items"):
        mixed = found[name, "recall_of_own@5"]
        assert mixed.alert
        assert mixed.value < 0.6
        assert "do not fit together" in mixed.advice
    same = best_items(pair.new.users, pair.new.items, pair.seen, 5)
    np.testing.assert_array_equal(same, best_items(pair.old.users, pair.old.items, pair.seen, 5))


def test_recall_is_of_what_users_took_in_the_window(models: BundleModels, cut):
    window = cut(14, 19)
    rows = models.rows(window, 1.0)
    # Of a bundle that knows nothing: else all that was taken has been seen.
    ignorant = BundleModels(
        replace(models.bundle, manifest=replace(models.bundle.manifest, remove_seen=False)),
        num_threads=1,
    )
    found = by_key(model_drift(ignorant, ignorant, SETTINGS, rows))
    one = found["old users, new items", "recall@5"]
    assert 0 < one.value < 1
    assert one.value == one.reference
    assert one.threshold == pytest.approx(0.95 * one.reference)


def test_bundles_without_vectors_or_anything_in_common(models: BundleModels, click_run, bundle):
    from twotower.export.bundle import open_bundle

    flat = BundleModels(open_bundle(click_run.bundle))
    with pytest.raises(ValueError, match="0 users and 0 items in common"):
        model_drift(flat, models, SETTINGS)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match=r"`k` must be at least 1, got 0\n.*`max_psi`"):
        ModelDriftSettings(k=0, max_psi=-1)
