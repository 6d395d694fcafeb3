"""How good a bundle is on the test part: both stages together, and where positives are lost.

The bundle answers one query for every user of the test part, with the history at the cut, as it
would have online: of a history it knows the items of the catalogue alone. Every test positive that
is not in the top k was lost somewhere: by the retrieval (its exact rank is beyond the candidates),
by the approximate index, or by the ranker. Seen items are neither shown nor counted as truth where
the bundle removes them, so a filter loses none.

Shape letters: Q queries, K candidates, R test positives.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.prepared import Prepared, history_before
from twotower.data.queries import EvaluationSettings, Queries
from twotower.data.schema import TEST, TRAIN
from twotower.export.data_files import catalogue_only
from twotower.features.frequency import ItemFrequency
from twotower.index.base import index_recall
from twotower.index.flat import Flat
from twotower.metrics.attribution import Attribution, attribute
from twotower.metrics.bootstrap import bootstrap_difference, bootstrap_mean
from twotower.metrics.catalogue import catalogue_coverage
from twotower.metrics.cold_start import cold_start
from twotower.metrics.top_k import Relevant, contains, top_k_metrics
from twotower.serving.filters import search_allowed
from twotower.serving.queries import Columns, history_columns
from twotower.serving.recommender import Recommender

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

QUERY_BLOCK = 256
TWO_STAGE, RETRIEVAL = "two_stage", "retrieval_index"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of a bundle on the test part.

    Args:
        metrics: By ``<stage>/test/<metric>``; ends of intervals carry ``/low`` and ``/high``.
        attribution: What became of the test positives at the headline list length.
        k: That length.
    """

    metrics: dict[str, float]
    attribution: Attribution
    k: int


@dataclass(frozen=True, kw_only=True)
class _Lists:
    """Final lists, candidates in the order of the retrieval, and exact candidates; (Q, K) each."""

    final: Array
    candidates: Array
    exact: Array


def evaluate_bundle(
    recommender: Recommender,
    prepared: Prepared,
    settings: EvaluationSettings,
    *,
    progress: bool = False,
) -> Evaluation:
    """Ask the bundle for every test query and compare with what the users took.

    Args:
        recommender: Of the bundle.
        prepared: The data set that the bundle was trained on.
        settings: Lengths of lists, seen items, bootstrap.
        progress: Whether a progress bar is shown.

    Returns:
        Metrics of the two stages together and of the retrieval's order (``retrieval_index``), their
        paired difference, recall of cold and of warm items where some are cold, recall of the
        index against exact search, and the attribution.

    Raises:
        ValueError: When the settings do not fit the bundle.
    """
    ks = _list_lengths(recommender, settings)
    queries = settings.queries(prepared, TEST)
    truth = Relevant.of(queries.truth)
    lists = _ask(recommender, prepared, queries, progress=progress)
    train_rows = np.flatnonzero(prepared.interactions.split == TRAIN)
    counts = ItemFrequency.count(prepared, train_rows).counts
    metrics: dict[str, float] = {}
    values = {}
    for name, ranked in ((TWO_STAGE, lists.final), (RETRIEVAL, lists.candidates)):
        values[name] = top_k_metrics(ranked, truth, ks)
        for metric, per_query in values[name].items():
            interval = bootstrap_mean(per_query, num_resamples=settings.num_resamples)
            metrics |= interval.entries(f"{name}/test/{metric}")
        cold = cold_start(ranked, truth, counts, ks, num_resamples=settings.num_resamples)
        metrics |= {f"{name}/test/{figure}": value for figure, value in cold.items()}
    k = ks[0]
    for metric in (f"ndcg@{k}", f"hit_rate@{k}", f"mrr@{k}"):
        lift = bootstrap_difference(
            values[TWO_STAGE][metric],
            values[RETRIEVAL][metric],
            num_resamples=settings.num_resamples,
        )
        metrics |= lift.entries(f"{TWO_STAGE}/test/{metric}_over_retrieval")
    metrics[f"{TWO_STAGE}/test/coverage@{k}"] = catalogue_coverage(
        lists.final[:, :k], prepared.num_catalogue
    )
    metrics[f"index/test/recall@{recommender.num_candidates}"] = float(
        np.nanmean(index_recall(lists.candidates, lists.exact))
    )
    found = attribute(
        exact_candidate=contains(lists.exact, truth),
        ann_candidate=contains(lists.candidates, truth),
        passed_filter=np.ones(len(truth.item_rows), bool),
        in_top_k=contains(lists.final[:, :k], truth),
    )
    metrics |= {f"{TWO_STAGE}/test/{name}@{k}": share for name, share in found.shares().items()}
    return Evaluation(metrics=metrics, attribution=found, k=k)


def _list_lengths(recommender: Recommender, settings: EvaluationSettings) -> list[int]:
    """Lengths of lists that the bundle can fill."""
    longest, removes = recommender.num_candidates, recommender.bundle.manifest.remove_seen
    ks = [k for k in settings.ks if k <= longest]
    problems = []
    if settings.remove_seen != removes:
        problems.append(
            f"evaluation.remove_seen: got {_yaml(settings.remove_seen)}, the bundle was exported "
            f"with {_yaml(removes)}; say evaluation.remove_seen={_yaml(removes)}"
        )
    if not ks:
        problems.append(
            f"evaluation.ks: got {list(settings.ks)}; the bundle has {longest} candidates, at "
            "least one length must not exceed that"
        )
    if problems:
        raise ValueError("\n".join(problems))
    if len(ks) < len(settings.ks):
        left_out = ", ".join(str(k) for k in settings.ks if k > longest)
        log.warning("evaluation.ks: %s left out, the bundle has %d candidates", left_out, longest)
    return ks


def _yaml(value: bool) -> str:
    return str(value).lower()


def _ask(
    recommender: Recommender, prepared: Prepared, queries: Queries, *, progress: bool
) -> _Lists:
    from tqdm import tqdm

    num_candidates = recommender.num_candidates
    remove_seen = recommender.bundle.manifest.remove_seen
    served = catalogue_only(prepared)
    ends = history_before(served, TEST)[queries.user_rows]
    queries = replace(queries, history_end=ends)
    seen = queries.seen.below(len(recommender.items))
    exact = Flat(device="cpu").build(np.asarray(recommender.bundle.item_vectors))
    parts: list[tuple[Array, Array, Array]] = []
    blocks = list(_blocks(len(queries)))
    for start, stop in tqdm(blocks, desc="evaluate", unit="block", disable=not progress):
        columns = query_columns(served, recommender, queries, start, stop)
        left_out = seen.between(start, stop) if remove_seen else None
        ranked = recommender.rank(columns, num_candidates, left_out)
        best = search_allowed(exact, recommender.embed(columns), num_candidates, left_out)
        parts.append((ranked.rows, ranked.candidates.rows, best.rows))
    final, candidates, exact_rows = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Lists(final=final, candidates=candidates, exact=exact_rows)


def query_columns(
    prepared: Prepared, recommender: Recommender, queries: Queries, start: int, stop: int
) -> Columns:
    """Encoded columns of some evaluation queries, the history as it was at the cut."""
    events, users, items = prepared.require_events()
    history = recommender.bundle.pipeline.spec.history
    rows, user_rows = queries.interactions[start:stop], queries.user_rows[start:stop]
    columns = {name: values[rows] for name, values in prepared.interactions.context.items()}
    columns |= {name: values[user_rows] for name, values in users.columns.items()}
    return columns | history_columns(
        events.item_rows,
        prepared.event_times,
        events.offsets[user_rows],
        queries.history_end[start:stop],
        items.columns,
        history.features,
        history.length,
    )


def _blocks(total: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + QUERY_BLOCK, total)) for start in range(0, total, QUERY_BLOCK))
