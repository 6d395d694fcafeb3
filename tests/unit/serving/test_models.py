"""Exported models: which columns they are given, and candidates scored in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from twotower.export.bundle import open_bundle
from twotower.serving import models
from twotower.serving.models import OnnxModel, score_candidates


class Sum:
    """A "ranker" that adds its columns up, and says how many queries and pairs it got."""

    def __init__(self) -> None:
        self.inputs = dict.fromkeys(("age", "price", "score"), np.float32) | {"tags": np.int64}
        self.inputs["owner"] = np.int64
        self.sizes: list[tuple[int, int]] = []

    def run(self, columns: dict[str, np.ndarray], output: int = 0) -> np.ndarray:
        assert set(columns) == self.inputs.keys()
        assert output == 1
        self.sizes.append((len(columns["age"]), len(columns["price"])))
        age = columns["age"][columns["owner"]]
        return age + columns["price"] + columns["tags"].sum(axis=1) + columns["score"]


QUERIES = {"age": np.array([100.0, 200.0, 300.0]), "unused": np.zeros(3)}
ITEMS = {
    "price": np.array([1.0, 2.0, 3.0, 4.0]),
    "tags": np.array([[0, 0], [10, 0], [10, 10], [0, 30]]),
    "title": np.zeros(4),
}
ROWS = np.array([[3, 0], [-1, -1], [1, -1]])
SCORES = np.array([[0.5, 0.25], [-np.inf, -np.inf], [0.125, -np.inf]])


@pytest.mark.parametrize(
    ("block", "sizes"),
    [(65_536, [(3, 3)]), (2, [(1, 2), (1, 1)]), (1, [(1, 1)] * 3)],
)
def test_every_candidate_gets_the_columns_of_its_query_and_item(
    block: int, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "PAIRS_OF_A_BLOCK", block)
    ranker = Sum()
    found = score_candidates(ranker, QUERIES, ITEMS, ROWS, {"score": SCORES})
    nan = np.nan
    # 100 + 4 + 30 + 0.5, 100 + 1 + 0 + 0.25, 300 + 2 + 10 + 0.125
    expected = [[134.5, 101.25], [nan, nan], [312.125, nan]]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert ranker.sizes == sizes


def test_no_candidate_at_all() -> None:
    found = score_candidates(Sum(), QUERIES, ITEMS, np.full((3, 2), -1), {})
    assert found.shape == (3, 2)
    assert np.isnan(found).all()


def test_a_model_takes_the_columns_it_knows(tiny_run) -> None:
    bundle = open_bundle(tiny_run.bundle)
    tower = OnnxModel(Path(bundle.item_tower))
    # Stored as int32 to save space; the model wants int64, and no column of users.
    assert bundle.items.columns["item_id"].dtype == np.int32
    vectors = tower.run({**bundle.items.columns, "more": np.zeros(len(bundle.items))})
    np.testing.assert_allclose(vectors, bundle.item_vectors, atol=1e-5)


def test_a_column_that_is_missing_is_named(tiny_run) -> None:
    bundle = open_bundle(tiny_run.bundle)
    with pytest.raises(KeyError, match="item_id"):
        OnnxModel(bundle.item_tower).run({})
