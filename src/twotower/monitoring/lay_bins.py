"""Lays the bins over the training part of a prepared data set; see `twotower.monitoring.bins`.

Edges of numbers are quantiles of a sample of rows that is drawn with a fixed seed, so that the same
data set gets the same bins; what is counted into them later is exact.

Shape letters: R rows, N entities, V rows of a vocabulary, T tags.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.prepared import Entities, Prepared
from twotower.data.schema import TRAIN
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature
from twotower.features.transforms import Categorical, Tags
from twotower.monitoring.bins import (
    HOURS,
    LABEL_COLUMN,
    SCORE_COLUMN,
    Bins,
    column_name,
    number_edges,
    parts_of,
    vocabulary_edges,
)

Array = npt.NDArray[Any]

SAMPLE_ROWS = 1 << 20
BLOCK_ROWS = 1 << 20
SEED = 20_260


def lay_bins(prepared: Prepared, pipeline: FeaturePipeline, scores: Array | None) -> list[Bins]:
    """How every column is cut, features in the order of the spec, then label and score.

    Args:
        prepared: The data set.
        pipeline: Its features.
        scores: (R,) of a model on the validation part; None without a ranker.
    """
    sample = _sample(prepared)
    found = [
        _of_feature(prepared, pipeline, feature, part, sample)
        for feature in pipeline.spec.features
        for part in parts_of(feature)
    ]
    if prepared.manifest["label"] is not None:
        labels = np.asarray(prepared.interactions.labels[sample], np.float64)
        found.append(_outcome(LABEL_COLUMN, labels))
    if scores is not None:
        found.append(_outcome(SCORE_COLUMN, scores.astype(np.float64)))
    return found


def blocks_of(num_rows: int) -> Iterator[slice]:
    """Stretches of rows that are looked at together."""
    return (
        slice(start, min(start + BLOCK_ROWS, num_rows)) for start in range(0, num_rows, BLOCK_ROWS)
    )


def _sample(prepared: Prepared) -> npt.NDArray[np.int64]:
    """Training rows, ascending; all of them where there are few, some of them twice otherwise."""
    split = prepared.interactions.split
    if len(split) <= SAMPLE_ROWS:
        return np.flatnonzero(np.asarray(split) == TRAIN)
    share = prepared.manifest["counts"]["train"] / len(split)
    drawn = np.random.default_rng(SEED).integers(0, len(split), int(SAMPLE_ROWS / max(share, 1e-3)))
    drawn.sort()
    return np.asarray(drawn[np.asarray(split[drawn]) == TRAIN])


def _of_feature(
    prepared: Prepared,
    pipeline: FeaturePipeline,
    feature: Feature,
    part: int | None,
    sample: npt.NDArray[np.int64],
) -> Bins:
    transform = pipeline.transforms[feature.name]
    edges: tuple[float, ...] = tuple(map(float, range(1, HOURS)))
    values = 0
    if isinstance(transform, (Categorical, Tags)):
        edges = vocabulary_edges(_row_counts(prepared, feature, transform.num_rows))
        values = len(transform.vocabulary.values)
    laid = Bins(
        name=column_name(feature, part),
        feature=feature.name,
        side=feature.side,
        kind=feature.kind,
        edges=edges,
        direction=part,
        values=values,
        told_apart=feature.side != "context" or not values,
    )
    if values or feature.kind in ("time", "id", "categorical", "tags"):
        return laid
    numbers = laid.numbers(_encoded(prepared, feature, sample))
    return Bins(**{**vars(laid), "edges": number_edges(numbers)})


def _encoded(prepared: Prepared, feature: Feature, rows: npt.NDArray[np.int64]) -> Array:
    """Encoded values (R, ...) of some interactions."""
    log = prepared.interactions
    if feature.side == "context":
        return np.asarray(log.context[feature.name][rows])
    entities, of_rows = entity_rows(prepared, feature.side)
    return np.asarray(entities.columns[feature.name][of_rows[rows]])


def entity_rows(prepared: Prepared, side: str) -> tuple[Entities, Array]:
    """Users or items, and those (R,) of the interactions.

    Raises:
        ValueError: When the log has none.
    """
    log = prepared.interactions
    entities, rows = {
        "user": (prepared.users, log.user_rows),
        "item": (prepared.items, log.item_rows),
    }[side]
    if entities is None or rows is None:
        raise ValueError(f"{prepared.folder}: there are {side} features and no {side}s")
    return entities, rows


def _row_counts(prepared: Prepared, feature: Feature, num_rows: int) -> npt.NDArray[np.int64]:
    """How often every vocabulary row (V,) stands in the training part."""
    log = prepared.interactions
    if feature.side == "context":
        counts = np.zeros(num_rows, np.int64)
        for block in blocks_of(len(log.split)):
            kept = np.asarray(log.split[block]) == TRAIN
            rows = np.asarray(log.context[feature.name][block])[kept]
            counts += np.bincount(rows.ravel(), minlength=num_rows)
        return counts
    entities, of_rows = entity_rows(prepared, feature.side)
    seen = np.zeros(len(entities), np.int64)
    for block in blocks_of(len(log.split)):
        kept = np.asarray(log.split[block]) == TRAIN
        seen += np.bincount(np.asarray(of_rows[block])[kept], minlength=len(seen))
    encoded = np.asarray(entities.columns[feature.name]).reshape(len(seen), -1)  # (N, T)
    weights = np.broadcast_to(seen[:, None], encoded.shape).ravel()
    found = np.bincount(encoded.ravel(), weights=weights, minlength=num_rows)
    return found.astype(np.int64)


def _outcome(name: str, numbers: npt.NDArray[np.float64]) -> Bins:
    return Bins(name=name, feature="", side="outcome", kind="numeric", edges=number_edges(numbers))
