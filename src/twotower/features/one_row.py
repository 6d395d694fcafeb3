"""One row of values, as a request brings it, encoded without a table.

`twotower.features.pipeline.FeaturePipeline.encode` is made for columns: for one row it spends
almost all of its time on making Arrow arrays of one value, and looks through a whole vocabulary.
Here every feature has a function of one Python value, which shares numbers and vocabulary with the
feature's transform. It takes values of the types that JSON has and the feature is made of; any
other value goes the way of the columns, so that it means the same and is refused with the same
words. What both give is the same to the last bit.

Shapes of encoded columns: `twotower.features.spec`, with R = 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.schema import MICROSECONDS
from twotower.features.transforms import Categorical, Numeric, Tags, Time, Transform
from twotower.features.vocabulary import Vocabulary

Array = npt.NDArray[Any]
Encode: TypeAlias = Callable[[Any], Array]
Lookup: TypeAlias = Callable[[Any], int | None]

MAX_INT64 = 2**63 - 1
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")  # surely of 64 bits
SMALL_VOCABULARY = 65_536  # values that a dict holds; a longer one takes a tenth of its memory


def one_value(transform: Transform) -> Encode:
    """What encodes one value as the transform encodes a column of it.

    Args:
        transform: A fitted feature.

    Returns:
        A function that raises ValueError where the value cannot be encoded.
    """
    fast = _fast(transform)

    def encode(value: Any) -> Array:  # noqa: ANN401 - whatever a request holds
        encoded = fast(value)
        return transform.apply(column_of(value)) if encoded is None else encoded

    return encode


def column_of(value: Any) -> pa.Array:  # noqa: ANN401
    """A column of one value.

    Raises:
        ValueError: When there is no column of such values.
    """
    try:
        return pa.array([value])
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"cannot be a value of a column: {error}") from error


def _fast(transform: Transform) -> Callable[[Any], Array | None]:
    """Encodes the usual values of a feature, None for others."""
    if isinstance(transform, Categorical):
        return _categorical(transform)
    if isinstance(transform, Tags):
        return _tags(transform)
    if isinstance(transform, Numeric):
        return _numeric(transform)
    if isinstance(transform, Time):
        return _time(transform)
    return lambda value: None


def _categorical(transform: Categorical) -> Callable[[Any], Array | None]:
    row_of = _lookup(transform.vocabulary)

    def encode(value: Any) -> Array | None:  # noqa: ANN401
        row = row_of(value)
        return None if row is None else np.array([row], np.int32)

    return encode


def _tags(transform: Tags) -> Callable[[Any], Array | None]:
    row_of, separator, width = _lookup(transform.vocabulary), transform.separator, transform.width

    def encode(value: Any) -> Array | None:  # noqa: ANN401
        tags = [] if value is None else value
        if type(tags) is str and separator:
            tags = tags.split(separator)
        if type(tags) is not list or len({type(tag) for tag in tags if tag is not None}) > 1:
            return None
        rows = [row_of(tag) for tag in tags]
        if None in rows:
            return None
        known = [row for row in rows if row][:width]
        return np.array([known + [0] * (width - len(known))], np.int32)

    return encode


def _numeric(transform: Numeric) -> Callable[[Any], Array | None]:
    mean, scale = transform.mean, transform.scale

    def encode(value: Any) -> Array | None:  # noqa: ANN401
        if value is None:
            return np.array([[0, 1]], np.float32)
        if type(value) is not float and not (type(value) is int and abs(value) <= MAX_INT64):
            return None
        number = float(value)
        if transform.log:
            number = float(np.log1p(max(number, 0.0)))
        if not math.isfinite(number):
            return np.array([[0, 1]], np.float32)
        return np.array([[(number - mean) / scale, 0]], np.float32)

    return encode


def _time(transform: Time) -> Callable[[Any], Array | None]:
    def encode(value: Any) -> Array | None:  # noqa: ANN401
        if value is None:
            return np.zeros((1, transform.width), np.float32)
        if type(value) is not int or abs(value) > MAX_INT64:
            return None
        return transform.waves(np.array([float(value)]) / MICROSECONDS)

    return encode


def _lookup(vocabulary: Vocabulary) -> Lookup:
    """Row of a value in the table, 0 where it is unknown, None where that is for Arrow to say."""
    find = _finder(vocabulary)
    of_integers = pa.types.is_integer(vocabulary.values.type)

    def row_of(value: Any) -> int | None:  # noqa: ANN401
        if value is None:
            return 0
        if type(value) is int and abs(value) <= MAX_INT64:
            return find(value if of_integers else str(value))
        if type(value) is str:
            if not of_integers:
                return find(value)
            if WHOLE_NUMBER.fullmatch(value):
                return find(int(value))
        return None

    return row_of


def _finder(vocabulary: Vocabulary) -> Callable[[int | str], int]:
    """Row of a value of the type of the known ones; a null among these is a row of nobody."""
    if len(vocabulary.values) > SMALL_VOCABULARY:
        return vocabulary.row
    known = {value: row for row, value in enumerate(vocabulary.values.to_pylist(), start=1)}
    return lambda value: known.get(value, 0)
