"""Vectors of different spaces are never compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from twotower.serving.freshness import Freshness
from twotower.serving.item_journal import ItemJournal
from twotower.serving.recommender import Recommender
from twotower.serving.space import SpaceError, StoredVectors, nearest_items


def of_another_space(bundle):
    return replace(bundle, manifest=replace(bundle.manifest, space="0ther"))


def stored(bundle):
    golden = bundle.golden()
    return StoredVectors(vectors=golden.query_vectors, space=bundle.manifest.space)


def test_stored_vectors_find_what_they_found(bundle, recommender, tmp_path):
    path = tmp_path / "users.npz"
    stored(bundle).save(path)
    read = StoredVectors.load(path)
    assert read.space == bundle.manifest.space
    found = nearest_items(recommender, read, 3)
    scores = bundle.golden().query_vectors @ np.asarray(bundle.item_vectors).T
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :3], atol=1e-5)


def test_stored_vectors_of_another_space_are_refused(bundle):
    with pytest.raises(SpaceError, match=r"stored vectors: .*space \w+, those of .* lie in 0ther"):
        nearest_items(Recommender(of_another_space(bundle)), stored(bundle), 3)


def test_items_of_another_space_are_refused(bundle, recommender):
    """What was upserted was embedded by the towers of its own bundle."""
    fresh = Freshness(recommender)
    fresh.upsert([{"item_id": "brand-new", "category": "jazz"}])
    items = fresh.recommender.items
    with pytest.raises(SpaceError, match="the items: vectors of the space"):
        Recommender(of_another_space(bundle)).with_items(items)


def test_a_journal_holds_rows_that_every_bundle_embeds_itself(bundle, recommender, tmp_path):
    """So it may be read by the next version, whatever its space is."""
    path = tmp_path / "items.journal"
    Freshness(recommender, ItemJournal(path, bundle="tiny")).upsert(
        [{"item_id": "brand-new", "category": "jazz"}]
    )
    assert b"vector" not in path.read_bytes()
    later = Recommender(of_another_space(bundle))
    items = Freshness(later, ItemJournal(path, bundle="tiny")).recommender.items
    (row,) = items.find(["brand-new"])
    encoded = {n: np.asarray(items.columns[n][np.array([row])]) for n in items.columns}
    own = later.item_tower.run(encoded)
    np.testing.assert_allclose(items.vectors[np.array([row])], own, atol=1e-6)
