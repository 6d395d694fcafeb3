"""Golden requests against a slow oracle: one query, one candidate at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from twotower.data.prepared import Prepared
from twotower.data.queries import evaluation_queries
from twotower.data.schema import TEST, DataError
from twotower.export import golden as module
from twotower.export.build import ExportParts, ExportResult
from twotower.export.bundle import Bundle, Golden, open_bundle
from twotower.export.golden import (
    blocks,
    grid,
    impression_requests,
    pairs,
    query_requests,
    spaced,
)
from twotower.features.spec import ModelInputs
from twotower.models.columns import stage_columns

Row = dict[str, Tensor]


@pytest.fixture(scope="module")
def bundle(exported: ExportResult) -> Bundle:
    return open_bundle(exported.folder)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> Golden:
    return bundle.golden()


def as_tensor(value: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(np.array(value))[None]
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def history_of(bundle: Bundle, golden: Golden, query: int) -> np.ndarray:
    """All earlier items of a query, from what the bundle holds."""
    start = bundle.offsets[golden.user_rows[query]]
    return np.asarray(bundle.item_rows[start : golden.history_ends[query]])


def request_row(bundle: Bundle, golden: Golden, inputs: ModelInputs, query: int) -> Row:
    """Features of one query, (1, ...) each, put together from the bundle by hand."""
    row = {f.name: as_tensor(golden.context[f.name][query]) for f in inputs.of("context")}
    user = golden.user_rows[query]
    row |= {f.name: as_tensor(bundle.users.columns[f.name][user]) for f in inputs.of("user")}
    latest = history_of(bundle, golden, query)[-inputs.history_length :]
    missing = inputs.history_length - len(latest)
    for feature in inputs.history():
        column = bundle.items.columns[feature.name]
        values = np.concatenate([np.zeros((missing, *column.shape[1:]), column.dtype)])
        row[f"history.{feature.name}"] = as_tensor(np.concatenate([values, column[latest]]))
    row["history.mask"] = as_tensor(np.arange(inputs.history_length) >= missing)
    return row


def item_row(bundle: Bundle, inputs: ModelInputs, item: int) -> Row:
    return {f.name: as_tensor(bundle.items.columns[f.name][item]) for f in inputs.of("item")}


def test_every_query_has_answers_in_shape(golden: Golden, bundle: Bundle) -> None:
    count = len(golden.user_rows)
    assert 20 < count <= 64
    assert golden.query_vectors.shape == (count, 8)
    for answers in (golden.candidates, golden.candidate_scores, golden.logits):
        assert answers.shape == (count, 20)
    assert golden.probabilities.shape == (count, 20)
    assert set(golden.context) == {"position", "device", "timestamp"}
    assert bundle.manifest.remove_seen


def test_queries_are_those_of_the_test_part(prepared: Prepared, golden: Golden) -> None:
    queries = evaluation_queries(prepared, TEST, remove_seen=True)
    assert golden.user_rows.tolist() == queries.user_rows.tolist()


def test_candidates_are_the_best_that_were_not_seen(bundle: Bundle, golden: Golden) -> None:
    some_excluded = False
    for query in range(len(golden.user_rows)):
        scores = np.asarray(bundle.item_vectors, np.float64) @ golden.query_vectors[query]
        seen = history_of(bundle, golden, query)
        unseen = np.setdiff1d(np.arange(50), seen)
        best = unseen[np.argsort(-scores[unseen], kind="stable")][:20]
        assert golden.candidates[query].tolist() == best.tolist()
        np.testing.assert_allclose(golden.candidate_scores[query], scores[best], atol=1e-6)
        some_excluded |= bool(np.isin(np.argsort(-scores)[:20], seen).any())
    assert some_excluded


def test_answers_can_be_repeated_one_by_one(
    bundle: Bundle, golden: Golden, parts: ExportParts
) -> None:
    towers, ranker = parts.two_tower.eval(), parts.ranker.eval()
    retrieval, ranking = (parts.pipeline.inputs(s) for s in ("retrieval", "ranking"))
    for query in range(0, len(golden.user_rows), 7):
        with torch.no_grad():
            vector = towers.embed_queries(request_row(bundle, golden, retrieval, query))[0]
        np.testing.assert_allclose(golden.query_vectors[query], vector.numpy(), atol=1e-6)
        request = request_row(bundle, golden, ranking, query)
        for place in (0, 19):
            item = golden.candidates[query, place]
            score = as_tensor(golden.candidate_scores[query, place])
            pair = request | item_row(bundle, ranking, item) | {"retrieval_score": score}
            pair["retrieval_rank"] = torch.tensor([place + 1.0])
            with torch.no_grad():
                logit = float(ranker(pair)[0])
            assert golden.logits[query, place] == pytest.approx(logit, abs=1e-5)
            odds = np.sqrt(np.exp(logit) * 0.25) * np.exp(0.3)
            assert golden.probabilities[query, place] == pytest.approx(odds / (1 + odds), abs=1e-5)


def test_padding_is_left_out_of_the_pairs_and_comes_back_as_nan(parts: ExportParts) -> None:
    queries = evaluation_queries(parts.prepared, TEST, remove_seen=False)
    requests = query_requests(queries, np.array([0, 1]), remove_seen=False)
    columns = stage_columns(parts.prepared, parts.pipeline.inputs("ranking"))
    candidates = np.array([[7, 3, -1], [9, -1, -1]])
    scores = np.array([[0.5, 0.25, -np.inf], [0.75, -np.inf, -np.inf]], np.float32)
    asked = pairs(columns, requests, candidates, scores)
    batch = asked.one_by_one()
    assert batch["retrieval_score"].tolist() == [0.5, 0.25, 0.75]
    assert batch["retrieval_rank"].tolist() == [1, 2, 1]
    expected = parts.prepared.items.columns["item_id"][[7, 3, 9]]
    assert batch["item_id"].tolist() == expected.tolist()
    expected = parts.prepared.users.columns["user_id"][requests.user_rows[[0, 0, 1]]]
    assert batch["user_id"].tolist() == expected.tolist()
    by_owner = asked.by_owner()
    assert by_owner["owner"].tolist() == [0, 0, 1]
    for name, column in batch.items():
        of_query = name in asked.queries
        assert len(by_owner[name]) == (2 if of_query else 3)
        found = by_owner[name][by_owner["owner"]] if of_query else by_owner[name]
        assert torch.equal(found, column)
    table = grid(np.array([1.0, 2.0, 3.0], np.float32), candidates)
    np.testing.assert_array_equal(table, [[1, 2, np.nan], [3, np.nan, np.nan]])


def test_seen_items_are_excluded_when_they_are_removed(prepared: Prepared) -> None:
    queries = evaluation_queries(prepared, TEST, remove_seen=True)
    assert query_requests(queries, np.array([0]), remove_seen=False).excluded is None
    chosen = np.array([3, 1])
    excluded = query_requests(queries, chosen, remove_seen=True).excluded
    for place, query in enumerate(chosen):
        assert excluded[place].tolist() == queries.seen[query].tolist()


def test_impressions_of_the_catalogue_in_the_test_part(prepared: Prepared) -> None:
    log = prepared.interactions
    requests = impression_requests(prepared)
    assert len(requests.interactions) == 64
    assert (log.split[requests.interactions] == TEST).all()
    assert requests.item_rows.tolist() == log.item_rows[requests.interactions].tolist()
    assert requests.history_ends.tolist() == log.history_end[requests.interactions].tolist()
    assert requests.candidates().shape == (64, 1)
    few = replace(prepared, manifest={"counts": {"catalogue": 2}})
    assert set(impression_requests(few).item_rows.tolist()) <= {0, 1}


def test_a_test_part_without_the_catalogue_is_refused(prepared: Prepared) -> None:
    none = replace(prepared, manifest={"counts": {"catalogue": 0}})
    with pytest.raises(DataError, match="no row with an item of the catalogue"):
        impression_requests(none)


def test_blocks_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    batch = {"a": torch.arange(7), "b": torch.arange(14).view(7, 2)}
    cut = blocks(batch)
    assert [len(block["a"]) for block in cut] == [3, 3, 1]
    for name, column in batch.items():
        assert torch.equal(torch.cat([block[name] for block in cut]), column)


def test_spaced() -> None:
    assert spaced(3).tolist() == [0, 1, 2]
    many = spaced(1000)
    assert (len(many), many[0], many[-1]) == (64, 0, 999)
    assert (np.diff(many) > 0).all()
