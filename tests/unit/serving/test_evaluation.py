"""Figures of a bundle against a slow loop over the users, and where positives are lost."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest

from twotower.cli.load_run import LoadedRun
from twotower.data.prepared import Prepared
from twotower.data.queries import EvaluationSettings
from twotower.export.bundle import Bundle, open_bundle
from twotower.index.base import SearchResult
from twotower.serving.evaluation import Evaluation, evaluate_bundle
from twotower.serving.models import score_candidates
from twotower.serving.queries import history_columns
from twotower.serving.recommender import Recommender

TRAIN, VALIDATION, TEST = 0, 1, 2
SETTINGS = EvaluationSettings(ks=(5, 10), num_resamples=20)
NAMES = ("recall", "precision", "hit_rate", "ndcg", "mrr")


def shortened(bundle: Bundle, num_candidates: int, **changes: object) -> Recommender:
    """The same bundle with fewer candidates, so that the retrieval loses something."""
    manifest = replace(bundle.manifest, num_candidates=num_candidates, **changes)
    return Recommender(replace(bundle, manifest=manifest))


def user_events(prepared: Prepared, user: int, parts: tuple[int, ...]) -> list[int]:
    events = prepared.events
    span = range(events.offsets[user], events.offsets[user + 1])
    return [int(events.item_rows[at]) for at in span if events.split[at] in parts]


def lists_of(recommender: Recommender, prepared: Prepared, user: int, remove_seen: bool) -> dict:
    """One user's lists: all scores, a sort, a cut; no index and no block."""
    bundle, events = recommender.bundle, prepared.events
    num_items = len(bundle.items)
    history = [i for i in user_events(prepared, user, (TRAIN, VALIDATION)) if i < num_items]
    span = range(events.offsets[user], events.offsets[user + 1])
    first = next(at for at in span if events.split[at] == TEST)
    row = slice(events.interactions[first], events.interactions[first] + 1)
    columns = {name: c[row] for name, c in prepared.interactions.context.items()}
    columns |= {name: c[user : user + 1] for name, c in bundle.users.columns.items()}
    spec = bundle.pipeline.spec.history
    columns |= history_columns(
        *(np.array(history, np.int64), None, np.array([0]), np.array([len(history)])),
        *(bundle.items.columns, spec.features, spec.length),
    )
    scores = recommender.embed(columns)[0] @ np.asarray(bundle.item_vectors).T
    allowed = [i for i in range(num_items) if not (remove_seen and i in history)]
    candidates = sorted(allowed, key=lambda i: -scores[i])[: recommender.num_candidates]
    final = candidates
    if bundle.ranker is not None:
        given = {"retrieval_score": scores[None, candidates].astype(np.float32)}
        rows = np.array([candidates])
        ranker, items = recommender.ranker.model, bundle.items.columns
        probability = score_candidates(ranker, columns, items, rows, given)[0]
        final = [i for _, i in sorted(zip(-probability, candidates, strict=True))]
    seen = user_events(prepared, user, (TRAIN, VALIDATION)) if remove_seen else []
    truth = set(user_events(prepared, user, (TEST,))) - set(seen)
    return {"truth": truth, "two_stage": final, "retrieval_index": candidates}


def metrics_of(ranked: list[int], truth: set[int], k: int) -> dict[str, float]:
    places = [place for place, item in enumerate(ranked[:k], start=1) if item in truth]
    ideal = sum(1 / math.log2(n + 1) for n in range(1, min(k, len(truth)) + 1))
    return {
        f"recall@{k}": len(places) / len(truth),
        f"precision@{k}": len(places) / k,
        f"hit_rate@{k}": float(bool(places)),
        f"ndcg@{k}": sum(1 / math.log2(place + 1) for place in places) / ideal,
        f"mrr@{k}": 1 / places[0] if places else 0.0,
    }


def slow_slices(prepared: Prepared, asked: list[dict]) -> dict:
    """Recall of the items that somebody took in training, and of the others."""
    users = range(len(prepared.users))
    trained = {item for user in users for item in user_events(prepared, user, (TRAIN,))}
    figures: dict[str, float] = {}
    if not set().union(*(lists["truth"] for lists in asked)) - trained:
        return figures
    for kind, is_warm in (("cold", False), ("warm", True)):
        for stage in ("two_stage", "retrieval_index"):
            truths = [{i for i in x["truth"] if (i in trained) == is_warm} for x in asked]
            figures[f"{stage}/test/{kind}_positives"] = sum(map(len, truths))
            in_catalogue = trained & set(range(prepared.num_catalogue))
            figures[f"{stage}/test/{kind}_items"] = (
                len(in_catalogue) if is_warm else prepared.num_catalogue - len(in_catalogue)
            )
            for k in SETTINGS.ks:
                shares = [
                    len(truth & set(lists[stage][:k])) / len(truth)
                    for truth, lists in zip(truths, asked, strict=True)
                    if truth
                ]
                figures[f"{stage}/test/{kind}_recall@{k}"] = np.mean(shares)
    return figures


def slow_figures(recommender: Recommender, prepared: Prepared, *, remove_seen: bool) -> dict:
    asked = [
        lists_of(recommender, prepared, user, remove_seen)
        for user in range(len(prepared.users))
        if user_events(prepared, user, (TEST,))
    ]
    asked = [lists for lists in asked if lists["truth"]]
    figures = {}
    for stage in ("two_stage", "retrieval_index"):
        for k in SETTINGS.ks:
            rows = [metrics_of(lists[stage], lists["truth"], k) for lists in asked]
            figures |= {f"{stage}/test/{n}": np.mean([row[n] for row in rows]) for n in rows[0]}
    k = SETTINGS.ks[0]
    for name in ("ndcg", "hit_rate", "mrr"):
        two, one = (figures[f"{s}/test/{name}@{k}"] for s in ("two_stage", "retrieval_index"))
        figures[f"two_stage/test/{name}@{k}_over_retrieval"] = two - one
    figures |= slow_slices(prepared, asked)
    shown = {item for lists in asked for item in lists["two_stage"][:k]}
    figures[f"two_stage/test/coverage@{k}"] = len(shown) / len(recommender.items)
    pairs = [(lists, item) for lists in asked for item in lists["truth"]]
    found = sum(item in lists["two_stage"][:k] for lists, item in pairs)
    missed = sum(item not in lists["retrieval_index"] for lists, item in pairs)
    figures["counts"] = {
        "found": found,
        "lost_by_retrieval": missed,
        "lost_by_index": 0,
        "lost_by_filter": 0,
        "lost_by_ranker": len(pairs) - found - missed,
    }
    return figures


@pytest.fixture(scope="module")
def evaluated(bundle: Bundle, loaded: LoadedRun) -> Evaluation:
    return evaluate_bundle(shortened(bundle, 20), loaded.prepared, SETTINGS)


def check(evaluation: Evaluation, expected: dict) -> None:
    expected = dict(expected)
    assert evaluation.attribution.counts() == expected.pop("counts")
    for name, value in expected.items():
        assert evaluation.metrics[name] == pytest.approx(value, abs=1e-9), name


def test_figures_equal_a_loop_over_the_users(
    evaluated: Evaluation, bundle: Bundle, loaded: LoadedRun
) -> None:
    expected = slow_figures(shortened(bundle, 20), loaded.prepared, remove_seen=True)
    counts = expected["counts"]
    assert min(counts["found"], counts["lost_by_retrieval"], counts["lost_by_ranker"]) > 0
    assert expected["two_stage/test/ndcg@5"] != expected["retrieval_index/test/ndcg@5"]
    assert expected["two_stage/test/cold_positives"] > 0
    check(evaluated, expected)


def test_figures_with_seen_items(bundle: Bundle, loaded: LoadedRun) -> None:
    recommender = shortened(bundle, 20, remove_seen=False)
    settings = replace(SETTINGS, remove_seen=False)
    evaluation = evaluate_bundle(recommender, loaded.prepared, settings)
    check(evaluation, slow_figures(recommender, loaded.prepared, remove_seen=False))


def test_blocks_change_nothing(
    evaluated: Evaluation, bundle: Bundle, loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.serving.evaluation.QUERY_BLOCK", 7)
    again = evaluate_bundle(shortened(bundle, 20), loaded.prepared, SETTINGS)
    assert again.attribution == evaluated.attribution
    assert again.metrics == pytest.approx(evaluated.metrics, abs=1e-6)


def test_a_flat_index_is_exact_and_shares_sum_to_one(evaluated: Evaluation) -> None:
    assert evaluated.k == 5
    assert evaluated.metrics["index/test/recall@20"] == 1
    shares = [v for n, v in evaluated.metrics.items() if n.startswith("two_stage/test/lost_by_")]
    assert len(shares) == 4
    assert sum(shares) + evaluated.metrics["two_stage/test/found@5"] == pytest.approx(1)
    for name in ("two_stage/test/ndcg@5", "two_stage/test/ndcg@5_over_retrieval"):
        low, value, high = (evaluated.metrics[name + end] for end in ("/low", "", "/high"))
        assert low <= value <= high
        assert low < high


def test_retrieval_alone(csv_run) -> None:
    """Leave one out: one positive a user, and no ranker to lose any."""
    from twotower.cli.load_run import load_run

    recommender, run = shortened(open_bundle(csv_run.bundle), 15), load_run(csv_run.run)
    evaluation = evaluate_bundle(recommender, run.prepared, SETTINGS)
    check(evaluation, slow_figures(recommender, run.prepared, remove_seen=True))
    assert evaluation.metrics["two_stage/test/ndcg@5_over_retrieval"] == 0
    assert not [name for name in evaluation.metrics if "cold" in name or "warm" in name]


class Forgetful:
    """An index that does not return some items.

    Args:
        index: One that returns all.
        forgotten: Rows it does not return.
    """

    def __init__(self, index, forgotten: set[int]) -> None:
        self.index, self.forgotten = index, np.array(sorted(forgotten))
        self.num_items = index.num_items

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        every = self.index.search(queries, self.num_items)
        gone = np.isin(every.rows, self.forgotten)
        order = np.argsort(gone, axis=1, kind="stable")[:, :k]
        gone, rows, scores = (
            np.take_along_axis(a, order, 1) for a in (gone, every.rows, every.scores)
        )
        return SearchResult(rows=np.where(gone, -1, rows), scores=np.where(gone, -np.inf, scores))


def test_what_the_index_loses_is_laid_at_its_door(bundle: Bundle, loaded: LoadedRun) -> None:
    recommender = shortened(bundle, 20)
    exact = slow_figures(recommender, loaded.prepared, remove_seen=True)["counts"]
    recommender.index = Forgetful(recommender.index, set(range(0, len(bundle.items), 2)))
    evaluation = evaluate_bundle(recommender, loaded.prepared, SETTINGS)
    found = evaluation.attribution
    assert 0.2 < evaluation.metrics["index/test/recall@20"] < 0.8
    assert found.lost_by_index > 0
    assert found.total == sum(exact.values())
    # Odd items that move up to fill the list are candidates now.
    assert found.lost_by_retrieval <= exact["lost_by_retrieval"]
    assert sum(found.shares().values()) == pytest.approx(1)


def test_history_holds_the_catalogue_alone_as_online(bundle: Bundle, loaded: LoadedRun) -> None:
    """An item of a history that the bundle does not have changes nothing that it answers."""
    prepared = loaded.prepared
    expected = evaluate_bundle(shortened(bundle, 20), prepared, SETTINGS)
    assert len(prepared.items) == prepared.num_catalogue
    events = prepared.events
    ends = events.part_end(VALIDATION)
    order = np.sort(np.concatenate([np.arange(len(events.item_rows)), ends]), kind="stable")
    new = np.zeros(len(order), bool)
    new[ends + np.arange(len(ends))] = True  # at the end of every history, before the test part
    source = np.cumsum(~new) - 1
    rows = np.where(new, prepared.num_catalogue, events.item_rows[source])
    items = prepared.items
    columns = {name: np.concatenate([c, c[:1]]) for name, c in items.columns.items()}
    grown = replace(
        prepared,
        events=replace(
            events,
            offsets=events.offsets + np.arange(len(events.offsets)),
            item_rows=rows,
            interactions=events.interactions[source],
            split=np.where(new, VALIDATION, events.split[source]).astype(np.int8),
        ),
        items=replace(items, ids=items.ids.take([*range(len(items)), 0]), columns=columns),
    )
    found = evaluate_bundle(shortened(bundle, 20), grown, SETTINGS)
    assert found.attribution == expected.attribution
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-6)


def test_lists_longer_than_the_candidates_are_left_out_and_it_is_said(
    evaluated: Evaluation, bundle: Bundle, loaded: LoadedRun, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(SETTINGS, ks=(5, 10, 21, 50))
    with caplog.at_level(logging.WARNING):
        found = evaluate_bundle(shortened(bundle, 20), loaded.prepared, settings)
    assert found.metrics == evaluated.metrics
    assert [record.getMessage() for record in caplog.records] == [
        "evaluation.ks: 21, 50 left out, the bundle has 20 candidates"
    ]


def test_settings_that_do_not_fit_the_bundle(bundle: Bundle, loaded: LoadedRun) -> None:
    settings = EvaluationSettings(ks=(30, 40), remove_seen=False)
    with pytest.raises(ValueError, match="evaluation") as caught:
        evaluate_bundle(shortened(bundle, 20), loaded.prepared, settings)
    assert str(caught.value).splitlines() == [
        "evaluation.remove_seen: got false, the bundle was exported with true; say "
        "evaluation.remove_seen=true",
        "evaluation.ks: got [30, 40]; the bundle has 20 candidates, at least one length must not "
        "exceed that",
    ]
