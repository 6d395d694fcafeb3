"""Screened candidates: what is shown is what the exact ranker would show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import export_tiny
from twotower.export.bundle import Bundle, open_bundle
from twotower.index.base import SearchResult
from twotower.serving import candidate_ranker as module
from twotower.serving.candidate_ranker import CandidateRanker
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request

NUM_ITEMS, NUM_CANDIDATES = 200, 100


class Fake:
    """Says of a pair what stands in the item's column; an item that is 1 better for query 1."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.inputs = dict.fromkeys(("of_query", column, "retrieval_rank", "owner"), np.float32)
        self.sizes: list[int] = []

    def run(self, columns: dict[str, np.ndarray], output: int = 0) -> np.ndarray:
        self.sizes.append(len(columns["owner"]))
        of_query = columns["of_query"][columns["owner"]]
        return columns[self.column] + of_query - 1e-6 * columns["retrieval_rank"]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    made = {"exact": Fake("exact"), "estimate": Fake("estimate")}
    monkeypatch.setattr(module, "OnnxModel", lambda path, num_threads: made[path.name])
    return made


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=NUM_ITEMS).astype(np.float32)
    noise = rng.uniform(-0.05, 0.05, NUM_ITEMS).astype(np.float32)
    return {"exact": exact, "estimate": exact + noise}


QUERIES = {"of_query": np.array([0.0, 1.0, 0.5], np.float32)}


def found() -> SearchResult:
    """Candidates of three queries; the second has 90, the third 3."""
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(NUM_ITEMS)[:NUM_CANDIDATES] for _ in range(3)])
    rows[1, 90:] = rows[2, 3:] = -1
    return SearchResult(rows=rows, scores=np.where(rows < 0, -np.inf, 0.5).astype(np.float32))


@pytest.mark.parametrize("k", [1, 10, 40])
def test_the_exact_ranker_has_the_last_word(models, columns, k: int) -> None:
    plain = CandidateRanker(Path("exact"), None).rank(QUERIES, columns, found(), k)
    models["exact"].sizes.clear()
    ranking = CandidateRanker(Path("exact"), Path("estimate")).rank(QUERIES, columns, found(), k)
    assert ranking.places.tolist() == plain.places.tolist()
    shown = [np.take_along_axis(r.probabilities, r.places, axis=1) for r in (ranking, plain)]
    np.testing.assert_array_equal(*shown)
    finalists = max(32, 2 * k)
    assert models["estimate"].sizes == [100 + 90 + 3]
    assert models["exact"].sizes == [min(finalists, 100) + min(finalists, 90) + 3]
    # Who did not pass keeps the estimate, and what is padded is no number.
    rows = found().rows
    for query in range(3):
        for place in range(NUM_CANDIDATES):
            value, row = ranking.probabilities[query, place], rows[query, place]
            if row < 0:
                assert np.isnan(value)
                continue
            base = QUERIES["of_query"][query] - 1e-6 * (place + 1)
            known = [columns[name][row] + base for name in ("exact", "estimate")]
            assert np.abs(value - known).min() < 1e-6


@pytest.mark.parametrize("k", [50, 99, 100, 300])
def test_nobody_is_screened_where_all_would_pass(models, columns, k: int) -> None:
    ranking = CandidateRanker(Path("exact"), Path("estimate")).rank(QUERIES, columns, found(), k)
    plain = CandidateRanker(Path("exact"), None).rank(QUERIES, columns, found(), k)
    assert models["estimate"].sizes == []
    assert ranking.places.tolist() == plain.places.tolist()
    assert ranking.places.shape == (3, min(k, NUM_CANDIDATES))


@pytest.fixture(scope="module")
def screened(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    work = tmp_path_factory.mktemp("screened")
    return open_bundle(export_tiny(work, tiny_run.run, "ranker_precision=int8"))


def test_a_screened_bundle_answers_as_one_that_is_not(
    screened: Bundle, recommender: Recommender
) -> None:
    assert screened.manifest.ranker_precision == "int8"
    assert recommender.bundle.manifest.ranker_precision == "float32"
    assert screened.screen is not None
    assert screened.manifest.figures["export/int8/same_top_10"] >= 0.99
    assert "int8" in [gate["name"] for gate in screened.manifest.gates]
    fast = Recommender(screened)
    users = screened.users.ids.to_pylist()
    requests = [Request(user=user, k=8, seconds=1.705e9) for user in users]
    same = 0
    for one, other in zip(recommender.answer(requests), fast.answer(requests), strict=True):
        shown = [item.item_id for item in one.items]
        same += shown == [item.item_id for item in other.items]
        for first, second in zip(one.items, other.items, strict=True):
            if first.item_id == second.item_id:
                assert second.probability == pytest.approx(first.probability, abs=1e-5)
    assert same >= 0.99 * len(users)
