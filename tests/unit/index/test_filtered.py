"""Search among some items by every way, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.index import filtered
from twotower.index.allowed import AllowedRows
from twotower.index.base import index_recall
from twotower.index.faiss_index import FaissIndex
from twotower.index.filtered import FilteredIndex
from twotower.index.flat import Flat
from twotower.index.graph import HNSW
from twotower.index.inverted_file import IVFPQ, IVFFlat

KINDS = {
    "flat": Flat(device="cpu"),
    "flat in shards": Flat(device="cpu", num_shards=3),
    "ivf_flat in shards": IVFFlat(device="cpu", num_probes=16, num_shards=3),
    "ivf_pq in shards": IVFPQ(device="cpu", num_probes=16, num_shards=2),
    "ivf_flat": IVFFlat(device="cpu", num_probes=16),
    "ivf_pq": IVFPQ(device="cpu", num_probes=16),
    "hnsw": HNSW(device="cpu", ef_construction=60),
}
K = 20


@pytest.fixture(scope="module", params=KINDS)
def index(request: pytest.FixtureRequest, clustered) -> FaissIndex:
    return KINDS[request.param].build(clustered[0])


@pytest.fixture(params=["cheapest", "index", "exact"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way that costs least, or one that is made to."""
    if request.param == "index":
        monkeypatch.setattr(filtered, "READ_NS", 1e9)
    elif request.param == "exact":
        monkeypatch.setattr(filtered, "READ_NS", 0.0)
        monkeypatch.setattr(filtered, "MULTIPLY_NS", 0.0)
    return request.param


def brute_force(items: np.ndarray, queries: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    scores = np.where(mask, queries @ items.T, -np.inf)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.isneginf(np.take_along_axis(scores, rows, 1)), -1, rows)


def check(
    index: FaissIndex, world: tuple, mask: np.ndarray, k: int = K, least: float = 0.95
) -> float:
    """Check the form of an answer and its mean recall, which is returned."""
    items, queries = world
    found = FilteredIndex(index, items).search(queries, k, AllowedRows(mask))
    expected = brute_force(items, queries, mask, k)
    assert found.rows.shape == found.scores.shape == expected.shape
    real = found.rows >= 0
    assert mask[found.rows[real]].all()
    assert (real.sum(axis=1) == min(k, mask.sum())).all()  # k results come back, if there are k
    scores = np.einsum("qkd,qd->qk", items[found.rows], queries)
    np.testing.assert_allclose(found.scores[real], scores[real], atol=1e-5)
    assert np.isneginf(found.scores[~real]).all()
    assert (found.scores[:, 1:] <= found.scores[:, :-1]).all()  # best first, padding last
    assert all(len({*rows[rows >= 0]}) == (rows >= 0).sum() for rows in found.rows)
    recall = float(np.mean(index_recall(found.rows, expected))) if mask.any() else 1.0
    assert recall >= least
    return recall


@pytest.mark.parametrize("share", [0.999, 0.5, 0.1, 0.01])
def test_filters_that_know_nothing_of_the_query(index, way, clustered, share: float) -> None:
    check(index, clustered, np.random.default_rng(2).random(3_000) < share)


def test_one_item_and_none(index, way, clustered) -> None:
    mask = np.zeros(3_000, bool)
    check(index, clustered, mask)
    mask[77] = True
    check(index, clustered, mask)


def test_more_than_are_allowed(index, clustered) -> None:
    check(index, clustered, np.arange(3_000) % 100 == 0, k=45)


def test_the_best_items_of_a_query_are_those_that_are_not_allowed(index, way, clustered) -> None:
    """Of the best tenth of the items one in a hundred is left, of the others half."""
    items, queries = clustered
    rng = np.random.default_rng(4)
    recalls = []
    for query in queries[:30]:
        best = np.argsort(-(items @ query))[:300]
        mask = rng.random(3_000) < 0.5
        mask[best] = rng.random(300) < 0.01
        recalls.append(check(index, (items, query[None]), mask, least=0.7))
    assert np.mean(recalls) >= 0.95


def test_all_allowed_is_as_unfiltered(index, clustered) -> None:
    items, queries = clustered
    searches = FilteredIndex(index, items)
    expected = index.search(queries, K)
    for allowed in (None, AllowedRows(np.ones(3_000, bool))):
        found = searches.search(queries, K, allowed)
        np.testing.assert_array_equal(found.rows, expected.rows)


def test_queries_together_are_as_alone(index, clustered) -> None:
    items, queries = clustered
    searches = FilteredIndex(index, items)
    allowed = AllowedRows(np.random.default_rng(6).random(3_000) < 0.4)
    together = searches.search(queries, K, allowed).rows
    alone = np.concatenate([searches.search(query[None], K, allowed).rows for query in queries])
    if index.kind != "ivf_pq":  # its codes are searched deeper where another query needs it
        assert index_recall(together, alone).mean() > 0.99
    else:
        assert index_recall(together, alone).mean() > 0.97


def test_no_queries(index, clustered) -> None:
    searches = FilteredIndex(index, clustered[0])
    for allowed in (None, AllowedRows(np.arange(3_000) < 5)):
        found = searches.search(np.empty((0, 16), np.float32), 3, allowed)
        assert found.rows.shape == (0, 3)


def test_bad_searches(index, clustered) -> None:
    searches = FilteredIndex(index, clustered[0])
    some = AllowedRows(np.arange(3_000) < 5)
    with pytest.raises(ValueError, match=r"queries must have shape \(n, 16\), got \(1, 3\)"):
        searches.search(np.zeros((1, 3), np.float32), 3, some)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        searches.search(np.zeros((1, 16), np.float32), 0, some)


def ways_taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the ways of all searches from now on, in order."""
    taken: list[str] = []
    ways = (
        ("search_rows", filtered, "exact"),
        ("search_cells", filtered, "index"),
        ("search", FaissIndex, "index"),
    )
    for name, where, way in ways:
        real = getattr(where, name)

        def noted(*given, real=real, way=way, **options):
            taken.append(way)
            return real(*given, **options)

        monkeypatch.setattr(where, name, noted)
    return taken


@pytest.mark.parametrize(
    ("kind", "share", "expected"),
    [
        ("flat", 0.9, ["index"]),
        ("flat", 0.001, ["exact"]),
        ("ivf_flat", 0.7, ["index"]),
        ("ivf_flat", 0.01, ["exact"]),
        ("hnsw", 0.9, ["index"]),
        ("hnsw", 0.01, ["exact"]),
    ],
)
def test_the_cheapest_way_is_taken(
    kind: str, share: float, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(40_000 if kind != "hnsw" else 8_000, 8)).astype(np.float32)
    small = {"num_cells": 64, "num_probes": 4} if kind == "ivf_flat" else {}
    builder = {"flat": Flat, "ivf_flat": IVFFlat}.get(kind)
    if builder is None:
        searches = FilteredIndex(HNSW(num_links=8, ef_construction=20).build(items), items)
    else:
        searches = FilteredIndex(builder(device="cpu", **small).build(items), items)
    taken = ways_taken(monkeypatch)
    searches.search(items[:1], 5, AllowedRows(rng.random(len(items)) < share))
    assert taken == expected


def test_a_graph_gives_up_fetching_where_it_is_hopeless(
    clustered, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, queries = clustered
    index = HNSW(device="cpu", ef_construction=60).build(items)
    mask = np.ones(3_000, bool)
    mask[np.argsort(-(items @ queries[0]))[:1_000]] = False
    taken = ways_taken(monkeypatch)
    found = FilteredIndex(index, items).search(queries[:1], 5, AllowedRows(mask))
    assert taken == ["index", "exact"]
    assert found.rows.tolist() == brute_force(items, queries[:1], mask, 5).tolist()


def test_a_gpu_that_cannot_select_so_many(clustered, moves) -> None:
    """Lists that are longer than a GPU can select, and filters that ask for more, are exact."""
    items, queries = clustered
    index = IVFFlat(device="gpu").build(items)
    assert (index.device, index.cells, index.max_k) == ("gpu", None, 2_048)
    searches = FilteredIndex(index, items)
    found = searches.search(queries[:2], 2_500)
    assert (
        found.rows.tolist() == brute_force(items, queries[:2], np.ones(3_000, bool), 2_500).tolist()
    )
    check(index, clustered, np.random.default_rng(2).random(3_000) < 0.5, least=0.6)
    check(index, clustered, np.random.default_rng(2).random(3_000) < 0.005)


def test_a_graph_searches_with_a_beam_that_holds_what_is_wanted(clustered) -> None:
    items, queries = clustered
    index = HNSW(device="cpu", ef_construction=60, ef_search=4).build(items)
    expected = brute_force(items, queries, np.ones(3_000, bool), 400)
    assert index_recall(index.search(queries, 400).rows, expected).mean() > 0.95


def test_cells_that_a_search_looks_into(clustered, monkeypatch: pytest.MonkeyPatch) -> None:
    items, queries = clustered
    index = IVFFlat(device="cpu", num_cells=40, num_probes=5).build(items)
    searches = FilteredIndex(index, items)
    half, few = AllowedRows(np.arange(3_000) % 2 == 0), AllowedRows(np.arange(3_000) < 5)
    assert searches.num_probes(queries, 3, None).tolist() == [5] * 100
    assert searches.num_probes(queries, 3, few).tolist() == [40] * 100  # exact: as if all
    monkeypatch.setattr(filtered, "READ_NS", 1e9)
    found = searches.num_probes(queries, 3, half)
    least = index.cells.needed(queries, half, 375)  # 5 of 40 cells of 75 items
    assert (found >= least).all()
    assert (found == least).any()
    assert (searches.num_probes(queries, 200, half) >= index.cells.needed(queries, half, 800)).all()
    with pytest.raises(ValueError, match=r"flat \(exact\) on cpu: .* has no cells; an inverted"):
        FilteredIndex(Flat(device="cpu").build(items), items).num_probes(queries, 3, None)
