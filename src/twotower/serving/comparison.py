"""Two bundles on the newest window: the same users, the same right answers, paired intervals.

Each bundle answers as it would online: with its own catalogue, its own features of users and items,
and of a user's history the items that it knows. What it lacks it cannot show; that is what a window
with new items is about.

Shapes: Q queries, K candidates, N items of the window, C items of a bundle, S impressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.prepared import FEATURES_FOLDER, Entities, Prepared, history_before
from twotower.data.queries import EvaluationSettings, Queries
from twotower.data.schema import TEST
from twotower.export.data_files import events_of
from twotower.features.continuation import translated
from twotower.features.pipeline import FeaturePipeline
from twotower.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from twotower.metrics.top_k import Relevant, top_k_metrics
from twotower.serving.ids import find_rows
from twotower.serving.recommender import Recommender
from twotower.serving.shown import Shown

Array = npt.NDArray[Any]

QUERY_BLOCK = 256
TWO_STAGE, RETRIEVAL = "two_stage", "retrieval"
USER_AUC = "ranking/user_auc"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One metric of both bundles.

    Args:
        name: ``<stage>/<metric>``.
        old: Of the old bundle.
        new: Of the new one.
        difference: New less old, over the same users.
        judged: Whether the new bundle must not be worse in it.
    """

    name: str
    old: Interval
    new: Interval
    difference: Interval
    judged: bool

    @property
    def is_worse(self) -> bool:
        """Whether the new bundle is worse beyond the interval: all of it lies below 0."""
        return self.judged and self.difference.high < 0


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """Lists of a bundle in the item rows of the window, (Q, K) each, and scores of impressions.

    Scores are (S,), or None without a ranker.
    """

    final: Array
    candidates: Array
    shown: Array | None


def compare_bundles(
    old: Recommender, new: Recommender, prepared: Prepared, settings: EvaluationSettings
) -> list[Compared]:
    """Ask both bundles for every query of the test part.

    Args:
        old: Of the bundle that is published.
        new: Of the one that may take its place.
        prepared: The window.
        settings: Lengths of lists, users, bootstrap; lists are no longer than the candidates.

    Returns:
        Both stages together at every length, the candidates at the longest, the recall of items
        that the old bundle lacks, and where both have a ranker and users took some of what they
        were shown, the AUC within each user among items that both know. Judged are the ranking of
        the shortest list, the recall of the longest, and that AUC.

    Raises:
        ValueError: When the test part holds nothing to be found, or lists that are too long.
    """
    queries = settings.queries(prepared, TEST)
    longest = min(old.num_candidates, new.num_candidates)
    ks = [k for k in settings.ks if k <= longest] or [longest]
    made_by = FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)
    rows_in = [_rows_in(bundle, prepared) for bundle in (old, new)]
    shown = Shown.of(prepared, queries, np.min(rows_in, axis=0) >= 0)
    answers = [
        _ask(bundle, to_bundle, prepared, made_by, queries, longest, shown)
        for bundle, to_bundle in zip((old, new), rows_in, strict=True)
    ]
    truth = Relevant.of(queries.truth)
    judged = {f"{TWO_STAGE}/ndcg@{ks[0]}", f"{RETRIEVAL}/recall@{longest}"}
    values = [_values(answer, truth, ks, longest) for answer in answers]
    found = [
        _compared(name, [of_bundle[name] for of_bundle in values], settings, name in judged)
        for name in values[0]
    ]
    of_shown = [shown.auc_by_query(a.shown) for a in answers if a.shown is not None]
    if len(of_shown) == len(answers) and np.isfinite(of_shown[0]).any():
        found.append(_compared(USER_AUC, of_shown, settings, True))
    known = rows_in[0] >= 0  # (N,)
    is_new = queries.truth.where(~known[queries.truth.item_rows])
    if len(is_new.item_rows):
        right, name = Relevant.of(is_new), f"recall@{longest}"
        of_new = [top_k_metrics(a.candidates, right, [longest])[name] for a in answers]
        found.append(_compared(f"{RETRIEVAL}/new_items_{name}", of_new, settings, False))
    return found


def _values(
    answers: _Answers, truth: Relevant, ks: Sequence[int], longest: int
) -> dict[str, Array]:
    values = top_k_metrics(answers.final, truth, ks)
    chosen = {
        f"{TWO_STAGE}/{metric}@{k}": values[f"{metric}@{k}"]
        for k in ks
        for metric in ("ndcg", "recall", "hit_rate")
    }
    name = f"recall@{longest}"
    return chosen | {
        f"{RETRIEVAL}/{name}": top_k_metrics(answers.candidates, truth, [longest])[name]
    }


def _compared(
    name: str, values: Sequence[Array], settings: EvaluationSettings, judged: bool
) -> Compared:
    old, new = values
    size = settings.num_resamples
    return Compared(
        name=name,
        old=bootstrap_mean(old, num_resamples=size),
        new=bootstrap_mean(new, num_resamples=size),
        difference=bootstrap_difference(new, old, num_resamples=size),
        judged=judged,
    )


def _rows_in(recommender: Recommender, prepared: Prepared) -> Array:
    """(N,) rows of the window's items in a bundle, -1 for those that it lacks."""
    _, _, items = prepared.require_events()
    return find_rows(recommender.items.ids, items.ids.to_pylist())


def _ask(
    recommender: Recommender,
    to_bundle: Array,
    prepared: Prepared,
    made_by: FeaturePipeline,
    queries: Queries,
    k: int,
    shown: Shown,
) -> _Answers:
    """Lists of one bundle, in which the window's items have rows `to_bundle` (N,)."""
    from twotower.serving.evaluation import query_columns

    known = to_bundle >= 0
    to_window = len(known) + np.arange(len(recommender.items))  # (C,) rows of nothing, at first
    to_window[to_bundle[known]] = np.flatnonzero(known)
    view = events_of(_as_encoded_by(recommender.bundle.pipeline, prepared, made_by), known)
    queries = replace(queries, history_end=history_before(view, TEST)[queries.user_rows])
    removed = queries.seen.where(known[queries.seen.item_rows])
    removed = replace(removed, item_rows=to_bundle[removed.item_rows])
    remove_seen = recommender.bundle.manifest.remove_seen
    parts: list[tuple[Array, Array]] = []
    scores: list[Array] = []
    for start in range(0, len(queries), QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, len(queries))
        columns = query_columns(view, recommender, queries, start, stop)
        left_out = removed.between(start, stop) if remove_seen else None
        ranked = recommender.rank(columns, k, left_out)
        parts.append((ranked.rows[:, :k], ranked.candidates.rows[:, :k]))
        if recommender.ranker is not None:
            model = recommender.ranker.model
            scores.append(shown.scores(recommender, model, to_bundle, columns, ranked, start))
    final, candidates = (
        np.where(rows >= 0, to_window[rows], -1)
        for rows in (np.concatenate(part) for part in zip(*parts, strict=True))
    )
    of_shown = np.concatenate(scores) if scores else None
    return _Answers(final=final, candidates=candidates, shown=of_shown)


def _as_encoded_by(
    pipeline: FeaturePipeline, prepared: Prepared, made_by: FeaturePipeline
) -> Prepared:
    """The window with the features of a bundle."""
    if pipeline.digest() == made_by.digest():
        return prepared
    _, users, items = prepared.require_events()
    context: Mapping[str, Array] = {
        name: np.asarray(values) for name, values in prepared.interactions.context.items()
    }
    return replace(
        prepared,
        users=Entities(
            ids=users.ids, table=users.table, columns=pipeline.encode("user", users.table)
        ),
        items=Entities(
            ids=items.ids, table=items.table, columns=pipeline.encode("item", items.table)
        ),
        interactions=replace(
            prepared.interactions, context=translated(dict(context), made_by, pipeline)
        ),
    )
