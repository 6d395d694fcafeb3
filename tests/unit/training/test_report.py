"""The figures of a run: deciles and new items by hand, intervals around their values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from twotower.data.item_lists import ItemLists
from twotower.data.queries import evaluation_queries
from twotower.data.schema import TEST, TRAIN
from twotower.features.frequency import ItemFrequency
from twotower.losses.calibration import Calibration
from twotower.metrics.calibration import expected_calibration_error, reliability
from twotower.training.cross_version import new_space
from twotower.training.evaluation import mean_metrics, rank_catalogue
from twotower.training.examples import ExampleBatches, ImpressionExamples
from twotower.training.fit import Fitted
from twotower.training.ranking import probabilities
from twotower.training.report import recall_by_popularity, report_ranking, report_retrieval
from twotower.training.retriever import Retriever
from twotower.training.stages import Trained

AS_TRAINED = Calibration(negative_rate=1.0)


@pytest.fixture
def queries(world):
    """Three queries with the positives {0, 19}, {18} and {1, 19, 30}."""
    three = evaluation_queries(world.prepared, TEST, remove_seen=True, max_users=3)
    rows = np.array([0, 19, 18, 1, 19, 30])
    return replace(three, truth=ItemLists(offsets=np.array([0, 2, 3, 6]), item_rows=rows))


class TestRecallByPopularity:
    def test_by_hand(self, queries):
        """20 items with counts 20 down to 1: items 19 and 18 are the least popular decile.

        Item 30 lies outside the catalogue of 20 and counts for no decile.
        """
        ranked = np.array([[19, 5, -1], [17, 16, 15], [1, 0, 19]])
        deciles = recall_by_popularity(ranked, queries, np.arange(20, 0, -1))
        assert deciles[0] == pytest.approx(2 / 3)
        assert deciles[9] == pytest.approx(1 / 2)
        assert np.isnan(deciles[1:9]).all()

    def test_ties_go_by_the_row(self, queries):
        """All equally popular: rows 0 and 1 come first, rows 18 and 19 last."""
        ranked = np.array([[0, 5, -1], [18, 16, 15], [7, 8, 9]])
        deciles = recall_by_popularity(ranked, queries, np.full(20, 4))
        assert deciles[0] == pytest.approx(1 / 2)
        assert deciles[9] == pytest.approx(1 / 3)

    def test_fewer_items_than_deciles(self, queries):
        rows = np.array([0, 1, 2, 0, 1, 2])
        few = replace(queries, truth=replace(queries.truth, item_rows=rows))
        deciles = recall_by_popularity(np.array([[0], [2], [2]]), few, np.array([3, 2, 1]))
        assert np.isnan(deciles).sum() == 7
        assert deciles[[0, 3, 6]].tolist() == [1.0, 0.0, 0.5]


@pytest.fixture
def trained(world):
    prepared, columns = world.prepared, world.columns("retrieval")
    train_rows = np.flatnonzero(prepared.interactions.split == TRAIN)
    towers = world.towers()
    return Trained(
        retriever=Retriever.of(towers, columns, prepared.num_catalogue),
        frequency=ItemFrequency.count(prepared, train_rows),
        fitted=Fitted(epochs=1, steps=1, seconds=1.0, best=0.0),
        space=new_space(towers),
    )


class TestRetrieval:
    def test_values_are_means_over_queries(self, world, trained, tmp_path):
        context = world.context(tmp_path)
        metrics = report_retrieval(context, trained).metrics
        queries = evaluation_queries(world.prepared, TEST, remove_seen=True)
        ranked = rank_catalogue(
            trained.retriever.model,
            trained.retriever.columns,
            queries,
            num_catalogue=world.prepared.num_catalogue,
            k=10,
            remove_seen=True,
        )
        for name, value in mean_metrics(ranked, queries, (5, 10)).items():
            full = f"retrieval/test/{name}"
            assert metrics[full] == pytest.approx(value)
            assert metrics[f"{full}/low"] <= value <= metrics[f"{full}/high"]
        shown = np.unique(ranked[ranked >= 0])
        assert metrics["retrieval/test/coverage@10"] == len(shown) / world.prepared.num_catalogue

    def test_lift_is_the_difference(self, world, trained, tmp_path):
        metrics = report_retrieval(world.context(tmp_path), trained).metrics
        for name in ("hit_rate@5", "ndcg@5"):
            difference = metrics[f"retrieval/test/{name}"] - metrics[f"item_knn/test/{name}"]
            assert metrics[f"retrieval/test/{name}_over_item_knn"] == pytest.approx(difference)

    def test_new_items(self, world, trained, tmp_path):
        """Positives whose item nobody took in training, counted one by one."""
        context, counts = world.context(tmp_path), trained.frequency.counts.copy()
        queries = evaluation_queries(world.prepared, TEST, remove_seen=True)
        counts[queries.truth.item_rows[0]] = 0
        known = replace(trained, frequency=replace(trained.frequency, counts=counts))
        metrics = report_retrieval(context, known).metrics
        model, columns = trained.retriever.model, trained.retriever.columns
        num_catalogue = world.prepared.num_catalogue
        ranked = rank_catalogue(
            model, columns, queries, num_catalogue=num_catalogue, k=10, remove_seen=True
        )
        for kind, chosen in (("cold", counts == 0), ("warm", counts > 0)):
            truths = [[i for i in queries.truth[q] if chosen[i]] for q in range(len(queries))]
            shares = [np.isin(t, r).mean() for t, r in zip(truths, ranked, strict=True) if t]
            assert metrics[f"retrieval/test/{kind}_positives"] == sum(map(len, truths))
            assert metrics[f"retrieval/test/{kind}_recall@10"] == pytest.approx(np.mean(shares))
            assert metrics[f"retrieval/test/{kind}_items"] == chosen.sum()

    def test_no_slice_where_no_item_is_new(self, world, trained, tmp_path):
        counts = np.maximum(trained.frequency.counts, 1)
        known = replace(trained, frequency=replace(trained.frequency, counts=counts))
        metrics = report_retrieval(world.context(tmp_path), known).metrics
        assert not [name for name in metrics if "cold" in name or "warm" in name]

    def test_every_list_is_there(self, world, trained, tmp_path):
        report = report_retrieval(world.context(tmp_path), trained)
        for name in ("retrieval", "popularity", "item_knn"):
            assert f"{name}/test/map@10/high" in report.metrics
        assert report.deciles.shape == (10,)


class TestRanking:
    def test_figures_of_the_examples(self, world, tmp_path):
        examples = ExampleBatches(
            examples=ImpressionExamples().examples(world.prepared, TEST, None),
            columns=world.columns("ranking"),
            with_scores=False,
        )
        model = world.ranker()
        calibration = Calibration(negative_rate=1.0, scale=0.5, bias=-1.0)
        report = report_ranking(world.context(tmp_path), model, calibration, examples)
        predicted = probabilities(model, examples, calibration)
        labels = examples.examples.labels
        positives, negatives = predicted[labels == 1], predicted[labels == 0]
        above = (positives[:, None] > negatives).mean() + (
            positives[:, None] == negatives
        ).mean() / 2
        assert report.metrics["ranking/test/auc"] == pytest.approx(above)
        taken = np.where(labels == 1, predicted, 1 - predicted)
        assert report.metrics["ranking/test/log_loss"] == pytest.approx(-np.log(taken).mean())
        assert report.metrics["ranking/test/examples"] == len(labels)
        assert report.metrics["ranking/test/positive_rate"] == pytest.approx(labels.mean())
        assert report.reliability.counts.sum() == len(labels)
        before = probabilities(model, examples, Calibration(negative_rate=1.0))
        for name, values in (("", predicted), ("_before", before)):
            expected = expected_calibration_error(reliability(labels, values))
            assert report.metrics[f"ranking/test/calibration_error{name}"] == expected
        assert abs(predicted - before).min() > 0.05


class TestProbabilities:
    def test_sampling_is_undone(self, world):
        """Of the negatives a quarter was kept: odds 4 times too high are divided by 4.

        Among examples that were sampled at 1/8 the odds are 8 times higher than in truth.
        """
        examples = ExampleBatches(
            examples=ImpressionExamples().examples(world.prepared, TEST, None),
            columns=world.columns("ranking"),
            with_scores=False,
        )
        model = world.ranker(dropout=0.5)
        raw = probabilities(model, examples, AS_TRAINED)
        undone = probabilities(model, examples, Calibration(negative_rate=0.25))
        np.testing.assert_allclose(undone / (1 - undone), raw / (1 - raw) / 4, rtol=1e-6)
        sampled = replace(examples, examples=replace(examples.examples, negative_rate=1 / 8))
        among = probabilities(model, sampled, Calibration(negative_rate=0.25))
        np.testing.assert_allclose(among / (1 - among), raw / (1 - raw) * 2, rtol=1e-6)
        assert raw.dtype == np.float64
        assert model.training

    def test_blocks_do_not_matter(self, world, monkeypatch):
        examples = ExampleBatches(
            examples=ImpressionExamples().examples(world.prepared, TEST, None),
            columns=world.columns("ranking"),
            with_scores=False,
        )
        model = world.ranker()
        whole = probabilities(model, examples, AS_TRAINED)
        monkeypatch.setattr("twotower.training.ranking.EVALUATION_BLOCK", 17)
        np.testing.assert_allclose(probabilities(model, examples, AS_TRAINED), whole, rtol=1e-5)
        logits = model.eval()(examples.batch(torch.arange(3)))
        np.testing.assert_allclose(whole[:3], logits.sigmoid().detach().numpy(), rtol=1e-5)
