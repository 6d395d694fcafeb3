"""Contents of a tensor as the Open Inference Protocol sends them: JSON, or binary data.

Binary data are little-endian, row by row; a text is its length in 4 bytes and then its bytes. In
JSON a tensor is one list, or a list of rows; what is no number goes out as null.

Shape letters: B requests of a call, W second dimension of a tensor.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.export.recommender_tensors import Datatype, TensorSpec
from twotower.serving.request_fields import shown
from twotower.serving.tensors import NUMPY_TYPES

Array = npt.NDArray[Any]

LENGTH = struct.Struct("<I")
JSON_TYPES: Mapping[Datatype, tuple[type, ...]] = {
    "BYTES": (str,),
    "BOOL": (bool,),
    "INT64": (int,),
    "FP32": (int, float),
    "FP64": (int, float),
}


class ProtocolError(ValueError):
    """An inference request that is not of the protocol, or not for the model.

    Args:
        problem: What was received and what is allowed.
        status: Of HTTP.
    """

    def __init__(self, problem: str, *, status: int = 400) -> None:
        self.status = status
        super().__init__(problem)


def from_json(spec: TensorSpec, shape: tuple[int, int], data: object) -> Array:
    """(B, W) contents out of JSON.

    Args:
        spec: The tensor.
        shape: B and W.
        data: What stands in JSON.

    Raises:
        ProtocolError: When there are more or fewer of them, or not of the tensor's type.
    """
    if not isinstance(data, list):
        raise ProtocolError(f"{spec.name}: data must be a list, got {shown(data)}")
    rows, width = shape
    if data and all(isinstance(row, list) for row in data):
        if len(data) != rows or any(len(row) != width for row in data):
            raise ProtocolError(f"{spec.name}: its data are not of its shape {list(shape)}")
        data = list(itertools.chain.from_iterable(data))
    if len(data) != rows * width:
        raise ProtocolError(
            f"{spec.name}: {len(data)} values, its shape {list(shape)} asks for {rows * width}"
        )
    for value in data:
        if not _is_of(spec.datatype, value):
            raise ProtocolError(f"{spec.name}: {shown(value)} is no {spec.datatype}")
    array = np.empty(len(data), NUMPY_TYPES[spec.datatype])
    array[:] = data
    return array.reshape(shape)  # (B, W)


def from_binary(spec: TensorSpec, shape: tuple[int, int], data: bytes) -> Array:
    """(B, W) contents out of binary data.

    Args:
        spec: The tensor.
        shape: B and W.
        data: Its bytes.

    Raises:
        ProtocolError: When they are more or fewer than the shape asks for.
    """
    count = shape[0] * shape[1]
    if spec.datatype == "BYTES":
        texts = _texts(spec.name, data)
        if len(texts) != count:
            raise ProtocolError(
                f"{spec.name}: {len(texts)} texts, its shape {list(shape)} asks for {count}"
            )
        array = np.empty(count, object)
        array[:] = texts
        return array.reshape(shape)  # (B, W)
    kind = np.dtype(NUMPY_TYPES[spec.datatype]).newbyteorder("<")
    if len(data) != count * kind.itemsize:
        raise ProtocolError(
            f"{spec.name}: {len(data)} bytes, its shape {list(shape)} asks for "
            f"{count * kind.itemsize}"
        )
    return np.frombuffer(data, kind).reshape(shape)  # (B, W)


def to_json(values: Array) -> list[Any]:
    """Contents of any shape as one list; what is no number is null."""
    flat: list[Any] = values.ravel().tolist()
    return [None if isinstance(v, float) and not math.isfinite(v) else v for v in flat]


def to_binary(datatype: Datatype, values: Array) -> bytes:
    """The contents as binary data.

    Args:
        datatype: Of the tensor.
        values: (B, W) its contents; texts as objects.
    """
    if datatype != "BYTES":
        return values.astype(values.dtype.newbyteorder("<")).tobytes()
    texts = [str(text).encode() for text in values.ravel()]
    return b"".join(part for text in texts for part in (LENGTH.pack(len(text)), text))


def _is_of(datatype: Datatype, value: object) -> bool:
    if not isinstance(value, JSON_TYPES[datatype]):
        return False
    if isinstance(value, bool):
        return datatype == "BOOL"
    if datatype == "INT64":
        return isinstance(value, int) and -(2**63) <= value < 2**63
    return not isinstance(value, int | float) or _is_finite(value)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # An integer beyond every float.
        return False


def _texts(name: str, data: bytes) -> list[bytes]:
    texts, place = [], 0
    while place < len(data):
        if place + LENGTH.size > len(data):
            raise ProtocolError(f"{name}: its binary data end within the length of a text")
        (length,) = LENGTH.unpack_from(data, place)
        place += LENGTH.size
        if place + length > len(data):
            raise ProtocolError(f"{name}: its binary data end within a text")
        texts.append(data[place : place + length])
        place += length
    return texts
