"""Calls of the model ``recommender``: tensors to requests, replies to tensors.

The tensors are those of `twotower.export.recommender_tensors`; whoever hands them in has held their
types and shapes against it.

Shape letters: B requests of a call, L length of a history, k the largest number of items wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.export.recommender_tensors import ANY, OUTPUTS, Datatype, TensorSpec
from twotower.serving.replies import Reply
from twotower.serving.request_fields import (
    END_OF_9999,
    MAX_HISTORY,
    MAX_K,
    MAX_TEXT,
    is_text,
    read_columns,
    read_filters,
)
from twotower.serving.requests import Answer, Request, RequestError

Array = npt.NDArray[Any]

NUMPY_TYPES: Mapping[Datatype, npt.DTypeLike] = {
    "BYTES": np.object_,
    "BOOL": np.bool_,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}
# Where there is no item, or it has no such value.
PADDING: Mapping[Datatype, str | float] = {
    "BYTES": "",
    "BOOL": False,
    "INT64": 0,
    "FP32": math.nan,
    "FP64": math.nan,
}


def requests_of(inputs: Mapping[str, Array]) -> list[Request]:
    """The requests of one call.

    Args:
        inputs: At least one of the inputs by name, (B, 1) or (B, L) each; texts as objects that are
            bytes in UTF-8 or text.

    Returns:
        B requests.

    Raises:
        RequestError: When one of them is no request; it names the row where there are several.
    """
    num_rows = len(next(iter(inputs.values())))
    requests: list[Request] = []
    for row in range(num_rows):
        fields = {name: values[row] for name, values in inputs.items()}
        try:
            requests.append(_request(fields))
        except RequestError as error:
            raise in_row(row, num_rows, error) from error
    return requests


def tensors_of(
    requests: Sequence[Request], replies: Sequence[Reply | RequestError]
) -> dict[str, Array]:
    """The outputs of one call.

    Args:
        requests: B requests.
        replies: As many replies.

    Returns:
        All outputs by name, (B, k) or (B, 1) each.

    Raises:
        RequestError: The first that stands in the place of a reply.
    """
    good: list[Reply] = []
    for row, reply in enumerate(replies):
        if isinstance(reply, RequestError):
            raise in_row(row, len(replies), reply)
        good.append(reply)
    width = max(request.k for request in requests)
    return {spec.name: _output(spec, good, width) for spec in OUTPUTS}


def in_row(row: int, num_rows: int, error: RequestError) -> RequestError:
    """An error that says which request of a call it is about, where the call has several."""
    if num_rows == 1:
        return error
    return RequestError(f"row {row}, {error.place}", str(error).removeprefix(f"{error.place}: "))


def _request(fields: Mapping[str, Array]) -> Request:
    texts = {
        name: _texts(name, values) for name, values in fields.items() if values.dtype == object
    }
    history = [text for text in texts.get("history", ()) if text]
    if len(history) > MAX_HISTORY:
        raise RequestError("history", f"at most {MAX_HISTORY} items, got {len(history)}")
    for name, ids in (("user", texts.get("user", ())), ("history", history)):
        if not all(is_text(text) for text in ids):
            raise RequestError(name, f"an id is text of at most {MAX_TEXT} characters")
    k = int(fields["k"][0]) if "k" in fields else Request.k
    if not 1 <= k <= MAX_K:
        raise RequestError("k", f"must be 1 to {MAX_K}, got {k}")
    return Request(
        user=_one(texts, "user") or None,
        history=history,
        user_features=read_columns("user_features", _one(texts, "user_features")),
        context=read_columns("context", _one(texts, "context")),
        k=k,
        filters=read_filters("filters", _one(texts, "filters")),
        seconds=_seconds(float(fields["seconds"][0])) if "seconds" in fields else None,
    )


def _seconds(given: float) -> float | None:
    if math.isnan(given):
        return None
    if not 0 <= given <= END_OF_9999:
        raise RequestError("seconds", f"must be 0 to {END_OF_9999}, got {given:g}")
    return given


def _one(texts: Mapping[str, Sequence[str]], name: str) -> str:
    return texts[name][0] if name in texts else ""


def _texts(name: str, values: Array) -> list[str]:
    try:
        return [
            value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()
        ]
    except UnicodeDecodeError as error:
        raise RequestError(name, f"must be UTF-8: {error.reason}") from error


def _output(spec: TensorSpec, replies: Sequence[Reply], width: int) -> Array:
    """One output; of items (B, k), padded, else (B, 1)."""
    of_items = spec.width == ANY
    shape = (len(replies), width if of_items else spec.width)
    values = np.full(shape, PADDING[spec.datatype], NUMPY_TYPES[spec.datatype])
    for row, reply in enumerate(replies):
        holders = reply.answer.items if of_items else [_holder(spec.name, reply)]
        for place, holder in enumerate(holders):
            value = getattr(holder, spec.name)
            if value is not None:
                values[row, place] = str(value) if spec.datatype == "BYTES" else value
    return values


def _holder(name: str, reply: Reply) -> Reply | Answer:
    return reply if hasattr(reply, name) else reply.answer
