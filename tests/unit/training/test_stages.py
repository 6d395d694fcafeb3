"""The two stages put together, and what they pass on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twotower.data.schema import TEST, TRAIN, VALIDATION, DataError
from twotower.losses.calibration import AsTrained, Calibration
from twotower.losses.negatives import MixedNegatives
from twotower.losses.objective import Objective
from twotower.losses.ranking import BinaryLogLoss
from twotower.losses.sampled_softmax import SampledSoftmax
from twotower.metrics.click import auc, grouped_auc
from twotower.metrics.top_k import metric_names
from twotower.training.batches import EventBatches
from twotower.training.candidates import CandidateExamples
from twotower.training.evaluation import mean_metrics, rank_catalogue
from twotower.training.examples import ImpressionExamples
from twotower.training.fit import seed_everything
from twotower.training.optimizers import OptimizerSettings
from twotower.training.ranking import click_metrics, probabilities
from twotower.training.retrieval import embed_catalogue
from twotower.training.retriever import Retriever
from twotower.training.settings import StageSettings
from twotower.training.stages import (
    ranking_examples,
    train_ranking,
    train_retrieval,
    validation_metrics,
)

OPTIMIZER = OptimizerSettings(learning_rate=0.01, table_learning_rate=0.1)


def stage_settings(monitor):
    return StageSettings(
        batch_size=64, max_epochs=2, patience=2, monitor=monitor, optimizer=OPTIMIZER
    )


@pytest.fixture(scope="module")
def retrieval(world, tmp_path_factory):
    """A trained retrieval stage with its context."""
    context = world.context(tmp_path_factory.mktemp("run"))
    seed_everything(0)
    trained = train_retrieval(
        context,
        model=world.towers(),
        inputs=world.pipeline.inputs("retrieval"),
        objective=Objective(
            loss=SampledSoftmax(temperature=0.2),
            negatives=MixedNegatives(in_batch=True, num_uniform=8),
        ),
        batches=EventBatches(),
        settings=stage_settings("ndcg@10"),
    )
    return context, trained


def train_ranker(world, context, retriever, source=None, calibrator=None):
    seed_everything(0)
    model = world.ranker(retrieval_score=retriever is not None)
    return train_ranking(
        context,
        model=model,
        inputs=world.pipeline.inputs("ranking"),
        loss=BinaryLogLoss(),
        source=source or ImpressionExamples(),
        retriever=retriever,
        calibrator=calibrator or AsTrained(),
        settings=stage_settings("auc"),
    )


class TestRetrieval:
    def test_best_value_is_that_of_the_weights_returned(self, world, retrieval):
        context, trained = retrieval
        queries = context.evaluation.queries(world.prepared, VALIDATION)
        ranked = rank_catalogue(
            trained.retriever.model,
            trained.retriever.columns,
            queries,
            num_catalogue=world.prepared.num_catalogue,
            k=10,
            remove_seen=True,
        )
        means = mean_metrics(ranked, queries, (5, 10))
        assert trained.fitted.best == pytest.approx(means["ndcg@10"], abs=1e-6)
        assert (
            set(means)
            == set(validation_metrics("retrieval", (5, 10)))
            == set(metric_names((5, 10)))
        )

    def test_vectors_are_those_of_the_best_weights(self, world, retrieval):
        _, trained = retrieval
        model = trained.retriever.model
        assert not model.training
        columns, num_items = trained.retriever.columns, world.prepared.num_catalogue
        torch.testing.assert_close(
            trained.retriever.items, embed_catalogue(model, columns, num_items)
        )

    def test_frequency_counts_training_positives(self, world, retrieval):
        log = world.prepared.interactions
        inside = (log.split == TRAIN) & log.positive
        expected = np.bincount(log.item_rows[inside], minlength=world.prepared.num_catalogue)
        assert retrieval[1].frequency.counts.tolist() == expected.tolist()

    def test_training_sees_the_training_positives_once_an_epoch(self, world, retrieval):
        log = world.prepared.interactions
        num_examples = int(((log.split == TRAIN) & log.positive).sum())
        assert retrieval[1].fitted.steps == 2 * -(-num_examples // 64)


class TestRanking:
    def test_on_impressions_alone(self, world, tmp_path):
        ranker = train_ranker(world, world.context(tmp_path), None)
        assert ranker.calibration.negative_rate == 1.0
        assert not ranker.model.training
        examples = ranking_examples(
            world.context(tmp_path),
            ImpressionExamples(),
            VALIDATION,
            ranker.model,
            ranker.columns,
            None,
        )
        as_trained = Calibration(negative_rate=1.0)
        predicted = probabilities(ranker.model, examples, as_trained)
        values = click_metrics(world.prepared, examples, predicted)
        assert ranker.fitted.best == pytest.approx(values["auc"], abs=1e-6)
        assert set(values) == set(validation_metrics("ranking", ()))

    def test_with_the_score_of_the_retriever(self, world, retrieval, tmp_path):
        _, trained = retrieval
        ranker = train_ranker(world, world.context(tmp_path), trained.retriever)
        assert ranker.model.score_scale is not None

    def test_calibration_is_fitted_on_validation_alone(self, world, tmp_path):
        """The calibrator is given its labels, with the logits of the best weights."""
        given = {}

        class Recorder:
            def fit(self, logits, labels, *, kept, trained):
                given.update(logits=logits, labels=labels, kept=kept, trained=trained)
                return Calibration(negative_rate=trained, scale=2.0, bias=-1.0)

        context = world.context(tmp_path)
        ranker = train_ranker(world, context, None, calibrator=Recorder())
        log = world.prepared.interactions
        assert given["labels"].tolist() == log.positive[log.split == VALIDATION].tolist()
        assert (given["kept"], given["trained"]) == (1.0, 1.0)
        assert ranker.calibration == Calibration(negative_rate=1.0, scale=2.0, bias=-1.0)
        examples = ranking_examples(
            context, ImpressionExamples(), VALIDATION, ranker.model, ranker.columns, None
        )
        predicted = probabilities(ranker.model, examples, ranker.calibration)
        np.testing.assert_allclose(predicted, 1 / (1 + np.exp(1 - 2 * given["logits"])), rtol=1e-9)

    def test_the_rank_of_no_retriever_is_refused(self, world, tmp_path):
        model, columns = world.ranker(retrieval_rank=True), world.columns("ranking")
        with pytest.raises(DataError, match=r"set models\.ranking\.retrieval_rank=false"):
            ranking_examples(
                world.context(tmp_path), ImpressionExamples(), TEST, model, columns, None
            )

    def test_on_candidates(self, world, retrieval, tmp_path):
        _, trained = retrieval
        source = CandidateExamples(num_candidates=20, num_negatives=4, positives_per_user=0)
        ranker = train_ranker(world, world.context(tmp_path), trained.retriever, source)
        assert 0 < ranker.calibration.negative_rate < 1

    def test_every_parameter_has_a_gradient(self, world, retrieval):
        _, trained = retrieval
        model = world.ranker(retrieval_score=True, retrieval_rank=True)
        examples = ranking_examples(
            retrieval[0],
            ImpressionExamples(),
            TRAIN,
            model,
            world.columns("ranking"),
            trained.retriever,
        )
        batch = examples.batch(torch.arange(200))
        BinaryLogLoss()(model(batch), batch["labels"], batch["weights"]).backward()
        without = [
            name
            for name, p in model.named_parameters()
            if p.grad is None or not p.grad.abs().sum() > 0
        ]
        assert without == []


def test_click_metrics_group_by_user(world):
    model = world.ranker()
    retriever = Retriever.of(world.towers(), world.columns("retrieval"), 40)
    examples = ranking_examples(
        world.context(world.prepared.folder),
        ImpressionExamples(),
        TEST,
        model,
        world.columns("ranking"),
        retriever,
    )
    predicted = probabilities(model, examples, Calibration(negative_rate=1.0))
    labels, log = examples.examples.labels, world.prepared.interactions
    users = [int(log.user_rows[i]) for i in examples.examples.interactions]
    values = click_metrics(world.prepared, examples, predicted)
    assert values["grouped_auc"] == pytest.approx(grouped_auc(labels, predicted, users))
    assert values["auc"] == pytest.approx(auc(labels, predicted))
