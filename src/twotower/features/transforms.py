"""One class a kind of feature: fitted on training values, stored as plain numbers.

Shapes of encoded columns: `twotower.features.spec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.schema import MICROSECONDS
from twotower.features.spec import Feature
from twotower.features.vocabulary import Vocabulary

Array = npt.NDArray[Any]
Values = pa.Array | pa.ChunkedArray

HOUR, DAY, WEEK = 3600, 86_400, 604_800
EPOCH_TO_MONDAY = 3 * DAY  # 1970-01-01 was a Thursday


class Transform(Protocol):
    """A fitted feature."""

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table; 0 where there is none."""

    @property
    def width(self) -> int:
        """Second dimension of the encoded column; 0 for (R,)."""

    def apply(self, values: Values) -> Array:
        """Encode raw values."""


@dataclass(frozen=True)
class Categorical:
    """``id`` and ``categorical``: row of the embedding table."""

    vocabulary: Vocabulary
    width: int = 0

    @property
    def num_rows(self) -> int:
        """See `Transform`."""
        return self.vocabulary.num_rows

    def apply(self, values: Values) -> Array:
        """See `Transform`."""
        return self.vocabulary.rows(values)


@dataclass(frozen=True)
class Tags:
    """``tags``: several rows, padded with 0; unknown tags are left out."""

    vocabulary: Vocabulary
    width: int
    separator: str

    @property
    def num_rows(self) -> int:
        """See `Transform`."""
        return self.vocabulary.num_rows

    def apply(self, values: Values) -> Array:
        """See `Transform`."""
        lists = as_lists(values, self.separator)
        owners = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        rows = self.vocabulary.rows(pc.list_flatten(lists))
        owners, rows = owners[rows > 0], rows[rows > 0]
        starts = np.searchsorted(owners, owners, side="left")
        slots = np.arange(len(owners)) - starts
        encoded = np.zeros((len(lists), self.width), np.int32)
        kept = slots < self.width
        encoded[owners[kept], slots[kept]] = rows[kept]
        return encoded


@dataclass(frozen=True)
class Numeric:
    """``numeric``: standardised value and whether it was missing."""

    mean: float
    scale: float
    log: bool
    width: int = 2
    num_rows: int = 0

    @staticmethod
    def fit(values: Values, *, log: bool) -> Numeric:
        """Mean and standard deviation of the finite values."""
        numbers = _numbers(values, log=log)
        known = numbers[np.isfinite(numbers)]
        scale = float(known.std()) if len(known) else 1.0
        return Numeric(mean=float(known.mean()) if len(known) else 0.0, scale=scale or 1.0, log=log)

    def apply(self, values: Values) -> Array:
        """See `Transform`."""
        numbers = _numbers(values, log=self.log)
        missing = ~np.isfinite(numbers)
        standard = np.where(missing, 0.0, (numbers - self.mean) / self.scale)
        return np.stack([standard, missing], axis=1).astype(np.float32)


@dataclass(frozen=True)
class Vector:
    """``vector``: scaled to unit length; zeros where it is missing."""

    width: int
    num_rows: int = 0

    def apply(self, values: Values) -> Array:
        """See `Transform`.

        Raises:
            ValueError: When a vector is of another width.
        """
        lists = as_lists(values, "")
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero((lengths != self.width) & (lengths != 0))
        if len(wrong):
            first, count = wrong[0], len(wrong)
            raise ValueError(
                f"vectors must have {self.width} numbers, as in the training part; row {first + 1} "
                f"has {lengths[first]} ({count} such rows)"
            )
        encoded = np.zeros((len(lists), self.width), np.float32)
        flat = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.float32)
        encoded[lengths == self.width] = np.nan_to_num(flat.reshape(-1, self.width))
        norms = np.linalg.norm(encoded, axis=1, keepdims=True)
        return np.asarray(encoded / np.where(norms == 0, 1, norms), np.float32)


@dataclass(frozen=True)
class Time:
    """``time``: sine and cosine of the hour of day and day of week (UTC); zeros where missing."""

    width: int = 4
    num_rows: int = 0

    def apply(self, values: Values) -> Array:
        """See `Transform`."""
        seconds = _numbers(values, log=False) / (MICROSECONDS if _is_integer(values) else 1)
        angles = np.stack([seconds / DAY, (seconds + EPOCH_TO_MONDAY) / WEEK], axis=1) * 2 * np.pi
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return np.nan_to_num(waves).astype(np.float32)


def fit_transform(feature: Feature, values: Values) -> Transform:
    """Fit the transform of a feature on its values in the training part.

    Args:
        feature: What the user declared.
        values: Raw training values.

    Raises:
        ValueError: When the column's type does not fit the kind.
    """
    kind, array = feature.kind, values
    if kind in ("id", "categorical"):
        return Categorical(Vocabulary.fit(array, min_count=feature.min_count))
    if kind == "tags":
        lists = as_lists(array, feature.separator)
        vocabulary = Vocabulary.fit(pc.list_flatten(lists), min_count=feature.min_count)
        longest = pc.max(pc.list_value_length(lists)).as_py() or 1
        return Tags(vocabulary, max(1, min(longest, feature.max_tags)), feature.separator)
    if kind == "vector":
        lengths = pc.list_value_length(as_lists(array, ""))
        return Vector(width=int(pc.max(lengths).as_py() or 0))
    return Numeric.fit(array, log=feature.log) if kind == "numeric" else Time()


def as_lists(values: Values, separator: str) -> pa.Array:
    """Lists as lists, text split at a separator; nulls become empty lists."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = pc.split_pattern(array.cast(pa.string()), separator)
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise ValueError(f"needs lists or text with separators, got a column of type {array.type}")
    return array


def _is_integer(values: Values) -> bool:
    return pa.types.is_integer(values.type)


def _numbers(values: Values, *, log: bool) -> npt.NDArray[np.float64]:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_temporal(array.type):
        array = array.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    try:
        numbers = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"needs numbers, got a column of type {array.type}: {error}") from error
    return np.log1p(np.maximum(numbers, 0.0)) if log else np.asarray(numbers, np.float64)
