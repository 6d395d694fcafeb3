"""The figures of a finished run: test metrics with intervals, baselines, slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.queries import Queries
from twotower.data.schema import TEST
from twotower.losses.calibration import Calibration
from twotower.metrics.bootstrap import bootstrap_difference, bootstrap_mean
from twotower.metrics.calibration import (
    ReliabilityTable,
    expected_calibration_error,
    reliability,
)
from twotower.metrics.catalogue import (
    NUM_DECILES,
    catalogue_coverage,
    novelty,
    popularity_deciles,
)
from twotower.metrics.cold_start import cold_start
from twotower.metrics.top_k import contains, top_k_metrics
from twotower.models.dcn import DCNv2
from twotower.training.baselines import ITEM_KNN, rank_baselines
from twotower.training.context import Context
from twotower.training.evaluation import rank_catalogue, relevant
from twotower.training.examples import ExampleBatches
from twotower.training.ranking import click_metrics, probabilities, task_metrics
from twotower.training.stages import RANKING, RETRIEVAL, Trained

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Test figures of the retrieval stage.

    Args:
        metrics: By ``<stage>/test/<metric>``; ends of intervals carry ``/low`` and ``/high``.
        deciles: (10,) recall of test positives by popularity of the item, least popular first; NaN
            where no positive falls into a decile.
    """

    metrics: Mapping[str, float]
    deciles: Array


def report_retrieval(context: Context, trained: Trained) -> RetrievalReport | None:
    """Rank the catalogue for every test query, with the model and both baselines.

    Args:
        context: Data and settings.
        trained: The trained stage.

    Returns:
        The figures; None in all processes but the first.
    """
    prepared, settings = context.prepared, context.evaluation
    queries = settings.queries(prepared, TEST)
    longest = max(settings.ks)
    ranked = rank_catalogue(
        trained.retriever.model,
        trained.retriever.columns,
        queries,
        num_catalogue=prepared.num_catalogue,
        k=longest,
        remove_seen=settings.remove_seen,
        ranks=context.ranks,
    )
    if context.ranks.rank:
        return None
    lists = {RETRIEVAL: ranked} | dict(
        rank_baselines(prepared, queries, k=longest, remove_seen=settings.remove_seen)
    )
    metrics: dict[str, float] = {}
    values = {}
    for name, rows in lists.items():
        values[name] = top_k_metrics(rows, relevant(queries), settings.ks)
        for metric, per_query in values[name].items():
            interval = bootstrap_mean(per_query, num_resamples=settings.num_resamples)
            metrics |= interval.entries(f"{name}/test/{metric}")
        metrics[f"{name}/test/coverage@{longest}"] = catalogue_coverage(
            rows, prepared.num_catalogue
        )
    for metric in (f"hit_rate@{settings.ks[0]}", f"ndcg@{settings.ks[0]}"):
        lift = bootstrap_difference(
            values[RETRIEVAL][metric],
            values[ITEM_KNN][metric],
            num_resamples=settings.num_resamples,
        )
        metrics |= lift.entries(f"{RETRIEVAL}/test/{metric}_over_item_knn")
    counts = trained.frequency.counts
    metrics[f"{RETRIEVAL}/test/novelty@{longest}"] = float(np.nanmean(novelty(ranked, counts)))
    cold = cold_start(
        *(ranked, queries.truth, counts, settings.ks), num_resamples=settings.num_resamples
    )
    metrics |= {f"{RETRIEVAL}/test/{name}": value for name, value in cold.items()}
    deciles = recall_by_popularity(ranked, queries, counts)
    return RetrievalReport(metrics=metrics, deciles=deciles)


@dataclass(frozen=True, kw_only=True)
class RankingReport:
    """Test figures of the ranking stage.

    Args:
        metrics: By ``ranking/test/<metric>``.
        reliability: Predicted against observed rates on the test examples.
    """

    metrics: Mapping[str, float]
    reliability: ReliabilityTable


def report_ranking(
    context: Context, model: DCNv2, calibration: Calibration, examples: ExampleBatches
) -> RankingReport | None:
    """Score the test examples.

    Args:
        context: Data and settings.
        model: The trained ranker.
        calibration: From its logits to probabilities.
        examples: Examples of the test part.

    Returns:
        Figures of the calibrated probabilities; ``calibration_error_before`` is that of the ranker
        as it was trained. None in all processes but the first.
    """
    labels, ranks = examples.examples.labels, context.ranks
    predicted = probabilities(model, examples, calibration, ranks)
    as_trained = Calibration(negative_rate=calibration.negative_rate)
    before = reliability(labels, probabilities(model, examples, as_trained, ranks))
    of_tasks = task_metrics(model, examples, ranks)
    if ranks.rank:
        return None
    table = reliability(labels, predicted)
    values = click_metrics(context.prepared, examples, predicted) | of_tasks
    metrics = {f"{RANKING}/test/{name}": value for name, value in values.items()}
    metrics[f"{RANKING}/test/calibration_error_before"] = expected_calibration_error(before)
    metrics[f"{RANKING}/test/examples"] = float(len(labels))
    metrics[f"{RANKING}/test/positive_rate"] = float(labels.mean())
    return RankingReport(metrics=metrics, reliability=table)


def recall_by_popularity(ranked: Array, queries: Queries, counts: Array) -> Array:
    """Recall of the test positives by decile of popularity.

    Args:
        ranked: (Q, K) lists.
        queries: The queries.
        counts: (C,) training events of every item.

    Returns:
        (10,), least popular items first; deciles hold equal numbers of items.
    """
    hits = contains(ranked, relevant(queries))  # (R,)
    decile = popularity_deciles(counts)
    inside = queries.truth.item_rows < len(counts)
    groups = decile[queries.truth.item_rows[inside]]
    totals = np.bincount(groups, minlength=NUM_DECILES)
    found = np.bincount(groups, weights=hits[inside], minlength=NUM_DECILES)
    recall: Array = np.divide(found, totals, out=np.full(NUM_DECILES, np.nan), where=totals > 0)
    return recall
