"""Requests to encoded query columns, without torch; the same columns as a training batch has.

Shape letters: Q queries, L history length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.schema import (
    HISTORY_MASK,
    HISTORY_PREFIX,
    HISTORY_TIME,
    MICROSECONDS,
    POSITION,
    TIMESTAMP,
)
from twotower.features.pipeline import FeaturePipeline

Array = npt.NDArray[Any]
Columns = dict[str, Array]


def history_columns(
    item_rows: Array,
    times: Array | None,
    starts: Array,
    ends: Array,
    item_columns: Mapping[str, Array],
    names: Sequence[str],
    length: int,
) -> Columns:
    """The latest events before some ends, oldest first, padded on the left.

    Args:
        item_rows: (E,) items of all events.
        times: (E,) int64 seconds at which they happened, or None.
        starts: (Q,) first event of each history.
        ends: (Q,) end of each history.
        item_columns: Encoded item features, (N, ...) each.
        names: Features that describe an event.
        length: ``L``.

    Returns:
        ``history.<feature>`` (Q, L, ...), ``history.mask`` (Q, L) bool and, with times,
        ``history.time`` (Q, L); nothing for L = 0.
    """
    if not length or not names:
        return {}
    positions = ends[:, None] - np.arange(length, 0, -1)  # (Q, L)
    mask = positions >= starts[:, None]

    def of_events(values: Array) -> Array:
        if not len(values):
            return np.zeros(positions.shape, np.int64)
        return np.where(mask, values[np.where(mask, positions, 0)], 0)  # (Q, L)

    rows = of_events(item_rows)
    columns: Columns = {HISTORY_MASK: mask}
    if times is not None:
        columns[HISTORY_TIME] = of_events(times)
    for name in names:
        values = item_columns[name][rows]  # (Q, L, ...)
        keep = mask.reshape(mask.shape + (1,) * (values.ndim - 2))
        columns[HISTORY_PREFIX + name] = np.where(keep, values, 0).astype(values.dtype)
    return columns


def encode_context(
    pipeline: FeaturePipeline, context: Mapping[str, Any], *, seconds: float
) -> Columns:
    """Context columns (1, ...) of one request.

    Args:
        pipeline: The fitted features.
        context: Values by column; what is missing counts as unknown. The slot of an item is not
            known before the page is laid out, so the ranker is asked for the first slot.
        seconds: Time of the request, seconds since 1970 UTC.
    """
    values = {POSITION: 1, TIMESTAMP: int(seconds * MICROSECONDS), **context}
    return pipeline.encode_row("context", values)


def encode_user(pipeline: FeaturePipeline, features: Mapping[str, Any]) -> Columns:
    """User columns (1, ...) of a user who is not in the bundle.

    Args:
        pipeline: The fitted features.
        features: Values by column; what is missing counts as unknown.
    """
    return pipeline.encode_row("user", features)
