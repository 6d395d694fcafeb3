"""Parts of a window that are looked at alone: new and warm, popularity, values of a column.

A user is warm when the bundle knows an event of it, an item when the bundle knows an event of it;
the others are new. Deciles hold equal numbers of warm items, the first the least popular ones. Of a
categorical column the values that were most frequent in training are slices.

Shape letters: R rows of a window, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from twotower.data.schema import USER_ID
from twotower.features.transforms import Categorical
from twotower.metrics.catalogue import NUM_DECILES, popularity_deciles
from twotower.monitoring.scoring import UNKNOWN, BundleModels, WindowRows
from twotower.monitoring.windows import Window

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

ALL = "all"


def row_slices(
    models: BundleModels, window: Window, rows: WindowRows, *, max_values: int
) -> Iterator[tuple[str, Mask]]:
    """Slices of the rows of a window.

    Args:
        models: The bundle.
        window: The window.
        rows: Its rows.
        max_values: Of a column, at most so many values are slices.

    Yields:
        Name and (R,) which rows belong to it.
    """
    if USER_ID in window.interactions.column_names:
        yield from _of_users(models, rows.user_rows)
    if models.bundle.items is not None:
        yield from item_slices(models, rows.item_rows)
    context = models.bundle.pipeline.encode("context", window.interactions)
    yield from _of_columns(models, "context", context, None, max_values)
    for side, entities, places in (
        ("user", models.bundle.users, rows.user_rows),
        ("item", models.bundle.items, rows.item_rows),
    ):
        if entities is not None:
            yield from _of_columns(models, side, entities.columns, places, max_values)


def item_slices(models: BundleModels, item_rows: Array) -> Iterator[tuple[str, Mask]]:
    """New and warm items and deciles of popularity, for item rows (R,), -1 where unknown."""
    places = np.maximum(item_rows, 0)
    warm = (models.item_counts[places] > 0) & (item_rows != UNKNOWN)
    yield "items=new", ~warm
    yield "items=warm", warm
    decile = warm_deciles(models.item_counts)[places]
    for number in range(NUM_DECILES):
        yield f"popularity_decile={number + 1}", warm & (decile == number)


def warm_deciles(counts: Array) -> Array:
    """Decile (N,) of items with a count (N,) above 0, from 0 for the least popular; else -1."""
    warm = counts > 0
    deciles = np.full(len(counts), -1)
    deciles[warm] = popularity_deciles(counts[warm])
    return deciles


def _of_users(models: BundleModels, user_rows: Array) -> Iterator[tuple[str, Mask]]:
    places, offsets = np.maximum(user_rows, 0), models.bundle.offsets
    warm = user_rows != UNKNOWN
    if offsets is not None:
        warm &= (offsets[places + 1] > offsets[places]) if len(offsets) > 1 else False
    yield "users=new", ~warm
    yield "users=warm", warm


def _of_columns(
    models: BundleModels,
    side: Literal["user", "item", "context"] | str,
    columns: Mapping[str, Array],
    places: Array | None,
    max_values: int,
) -> Iterator[tuple[str, Mask]]:
    pipeline = models.bundle.pipeline
    for feature in pipeline.spec.features:
        transform = pipeline.transforms[feature.name]
        if feature.side != side or feature.kind != "categorical":
            continue
        if not isinstance(transform, Categorical):
            continue
        codes = np.asarray(columns[feature.name])
        if places is not None:
            codes = np.where(places == UNKNOWN, 0, codes[np.maximum(places, 0)])
        values = transform.vocabulary.values.slice(0, max_values).to_pylist()
        for number, value in enumerate(values, start=1):
            yield f"{side}.{feature.name}={value}", codes == number
