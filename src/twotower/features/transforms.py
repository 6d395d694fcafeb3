"""One class a kind of feature: fitted on training values, stored as plain numbers.

Shapes of encoded columns: `twotower.features.spec`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.schema import MICROSECONDS
from twotower.data.training_part import Column
from twotower.features.pairwise_sum import pairwise_sum
from twotower.features.spec import Feature
from twotower.features.vocabulary import Vocabulary, as_array, chunks_of

Array = npt.NDArray[Any]
Values: TypeAlias = pa.Array | Column

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
        """Encode R raw values, ``(R,)`` or ``(R, width)``."""


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
    """``numeric``: standardised value and whether it was missing.

    Args:
        mean: Of the finite values of the training part.
        scale: Their standard deviation.
        log: Whether log(1 + x) is taken first.
        has_missing: Whether a value of the training part was missing; else models do not read the
            second column, of which nothing could be learned: what is missing later is the mean.
    """

    mean: float
    scale: float
    log: bool
    has_missing: bool = True
    width: int = 2
    num_rows: int = 0

    @staticmethod
    def fit(values: Values, *, log: bool) -> Numeric:
        """Mean and standard deviation of the finite values; a constant column has scale 1."""

        def known() -> Iterator[Array]:
            for chunk in chunks_of(values):
                numbers = _numbers(chunk, log=log)
                yield numbers[np.isfinite(numbers)]

        count, low, high = 0, np.inf, -np.inf
        num_values = sum(len(chunk) for chunk in chunks_of(values))
        for numbers in known():
            count += len(numbers)
            low, high = (
                min(low, numbers.min(initial=np.inf)),
                max(high, numbers.max(initial=-np.inf)),
            )
        if not count:
            return Numeric(mean=0.0, scale=1.0, log=log)
        mean = pairwise_sum(known(), count) / count
        squares = ((numbers - mean) * (numbers - mean) for numbers in known())
        varies = low < high  # rounding leaves a constant a deviation above 0
        scale = math.sqrt(pairwise_sum(squares, count) / count) if varies else 1.0
        return Numeric(mean=mean, scale=scale, log=log, has_missing=count < num_values)

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
        lists = as_lists(values)
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
        numbers = np.nan_to_num(flat, posinf=0.0, neginf=0.0)
        encoded[lengths == self.width] = numbers.reshape(-1, self.width)
        norms = np.linalg.norm(encoded, axis=1, keepdims=True)
        return np.asarray(encoded / np.where(norms == 0, 1, norms), np.float32)


@dataclass(frozen=True)
class Time:
    """``time``: sine and cosine of the hour of day and day of week (UTC); zeros where missing.

    Integers are microseconds since 1970, as in the ``timestamp`` column.
    """

    width: int = 4
    num_rows: int = 0

    def apply(self, values: Values) -> Array:
        """See `Transform`.

        Raises:
            ValueError: When the values are neither times nor integers.
        """
        array = as_array(values)
        kind = pa.types
        is_integer = kind.is_integer(array.type)
        allowed = is_integer or kind.is_timestamp(array.type) or kind.is_date(array.type)
        if not (allowed or kind.is_null(array.type)):
            raise ValueError(
                "needs timestamps, dates or integer microseconds since 1970, got a column of type "
                f"{array.type}"
            )
        return self.waves(_numbers(array, log=False) / (MICROSECONDS if is_integer else 1))

    def waves(self, seconds: npt.NDArray[np.float64]) -> Array:
        """Encode seconds since 1970 (R,), NaN where they are missing."""
        waves = np.empty((len(seconds), self.width), np.float32)
        for place, turns in enumerate((seconds / DAY, (seconds + EPOCH_TO_MONDAY) / WEEK)):
            angles = turns * 2 * np.pi
            waves[:, place], waves[:, place + 2] = np.sin(angles), np.cos(angles)
        waves[~np.isfinite(seconds)] = 0.0
        return waves


def fit_transform(feature: Feature, values: Values) -> Transform:
    """Fit the transform of a feature on its values in the training part.

    Args:
        feature: What the user declared.
        values: Raw training values.

    Raises:
        ValueError: When the column's type does not fit the kind.
    """
    if feature.kind in ("id", "categorical"):
        return Categorical(Vocabulary.fit(values, min_count=feature.min_count))
    if feature.kind == "tags":
        longest = _longest(values, feature.separator) or 1
        tags = _Tags(values, feature.separator)
        vocabulary = Vocabulary.fit(tags, min_count=feature.min_count)
        return Tags(vocabulary, max(1, min(longest, feature.max_tags)), feature.separator)
    if feature.kind == "vector":
        width = _longest(values)
        if not width:
            raise ValueError("there is no vector in the training part; leave the feature out")
        return Vector(width=width)
    if feature.kind == "numeric":
        return Numeric.fit(values, log=feature.log)
    Time().apply(pa.array([], values.type))
    return Time()


def _longest(values: Values, separator: str = "") -> int:
    """Length of the longest list."""
    as_lists(pa.array([], values.type), separator)
    lengths = (pc.list_value_length(as_lists(chunk, separator)) for chunk in chunks_of(values))
    return max((pc.max(length).as_py() or 0 for length in lengths), default=0)


class _Tags:
    """All tags of a column of lists."""

    def __init__(self, values: Values, separator: str) -> None:
        self._values = values
        self._separator = separator
        self.type = pc.list_flatten(as_lists(pa.array([], values.type), separator)).type

    def iterchunks(self) -> Iterator[pa.Array]:
        for chunk in chunks_of(self._values):
            tags = pc.list_flatten(as_lists(chunk, self._separator))
            yield tags.filter(pc.not_equal(tags, "")) if is_text(tags.type) else tags


def as_lists(values: Values, separator: str = "") -> pa.Array:
    """Lists as lists, text split at a separator, if there is one.

    Raises:
        ValueError: When the column is of another type.
    """
    array = as_array(values)
    kind = pa.types
    if kind.is_null(array.type):
        return array.cast(pa.list_(pa.null()))
    if kind.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    if separator and is_text(array.type):
        array = pc.split_pattern(array.cast(pa.string()), separator)
    if not (kind.is_list(array.type) or kind.is_large_list(array.type)):
        wanted = "lists or text with separators" if separator else "lists"
        raise ValueError(f"needs {wanted}, got a column of type {array.type}")
    return array


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _numbers(values: Values, *, log: bool) -> npt.NDArray[np.float64]:
    array = as_array(values)
    kind = array.type
    try:
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            array = array.cast(pa.timestamp("s"), safe=False)
        if pa.types.is_temporal(kind):
            array = array.view(pa.int64() if array.type.bit_width == 64 else pa.int32())
        numbers = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"needs numbers, got a column of type {kind}: {error}") from error
    return np.log1p(np.maximum(numbers, 0.0)) if log else np.asarray(numbers, np.float64)
