"""Inference requests of the Open Inference Protocol: bytes to requests of the recommender.

What is wrong with one is said with the name of the field, what was received and what is allowed.

Shape letters: B requests of a call, W second dimension of a tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy.typing as npt

from twotower.export.recommender_tensors import ANY, INPUTS, MAX_ROWS, MODEL, OUTPUTS, TensorSpec
from twotower.serving.protocol_tensors import ProtocolError, from_binary, from_json
from twotower.serving.request_fields import shown
from twotower.serving.requests import Request
from twotower.serving.tensors import requests_of

Array = npt.NDArray[Any]
Json: TypeAlias = dict[str, Any]

HEADER_LENGTH = "Inference-Header-Content-Length"
BINARY_SIZE = "binary_data_size"
REFUSED_PARAMETERS = ("sequence_id", "shared_memory_region", "classification")
MAX_TIMEOUT = 60_000_000  # microseconds
LENGTH = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One inference request.

    Args:
        id: What the client calls it; None for nothing.
        requests: B of them.
        outputs: Wanted outputs in order, and whether each goes as binary data.
        seconds: How long the client waits; None where it does not say.
    """

    id: str | None
    requests: Sequence[Request]
    outputs: Mapping[str, bool]
    seconds: float | None


def read_call(body: bytes, header_length: str | None) -> Call:
    """An inference request.

    Args:
        body: Of the HTTP request.
        header_length: Value of `HEADER_LENGTH`; None where the body is JSON alone.

    Raises:
        ProtocolError: When it is not of the protocol, or not of the model.
        RequestError: When a request in it is none.
    """
    length = _header_length(header_length, len(body))
    document = _document(body[:length])
    parameters = _parameters("request", document)
    inputs = _inputs(document.get("inputs"), body[length:])
    name = document.get("id")
    if name is not None and not isinstance(name, str):
        raise ProtocolError(f"id: must be text, got {shown(name)}")
    return Call(
        id=name,
        requests=requests_of(inputs),
        outputs=_outputs(document.get("outputs"), _flag(parameters, "binary_data_output")),
        seconds=_timeout(parameters.get("timeout")),
    )


def _header_length(given: str | None, size: int) -> int:
    if given is None:
        return size
    if LENGTH.fullmatch(given) is None or int(given) > size:
        raise ProtocolError(
            f"{HEADER_LENGTH}: must be 0 to the length of the body, {size}, got {shown(given)}"
        )
    return int(given)


def _document(header: bytes) -> Json:
    try:
        document = json.loads(header, parse_constant=_not_finite)
    except RecursionError as error:
        raise ProtocolError("no JSON that is allowed: nested too deeply") from error
    except ValueError as error:
        raise ProtocolError(f"no JSON that is allowed: {error}") from error
    if not isinstance(document, dict):
        raise ProtocolError(f"the body must be a JSON object, got {shown(document)}")
    return document


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _inputs(given: object, data: bytes) -> dict[str, Array]:
    """Arrays (B, W) by name of the inputs."""
    if not isinstance(given, list) or not 1 <= len(given) <= len(INPUTS):
        received = len(given) if isinstance(given, list) else shown(given)
        raise ProtocolError(f"inputs: must be a list of 1 to {len(INPUTS)}, got {received}")
    specs = {spec.name: spec for spec in INPUTS}
    arrays: dict[str, Array] = {}
    place = 0
    for number, one in enumerate(given):
        if not isinstance(one, dict):
            raise ProtocolError(f"inputs[{number}]: must be an object, got {shown(one)}")
        name = one.get("name")
        spec = specs.get(name) if isinstance(name, str) else None
        if spec is None:
            raise ProtocolError(f"unknown input {shown(name)}; {MODEL} takes {', '.join(specs)}")
        if spec.name in arrays:
            raise ProtocolError(f"input {spec.name} is given twice")
        size = _parameters(spec.name, one).get(BINARY_SIZE)
        shape = _shape(spec, one)
        if size is None:
            arrays[spec.name] = from_json(spec, shape, one.get("data"))
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(data):
            problem = f"must be 0 to {len(data)}, the binary data, got {shown(size)}"
            raise ProtocolError(f"{spec.name}: {BINARY_SIZE} {problem}")
        arrays[spec.name] = from_binary(spec, shape, data[place : place + size])
        place += size
    if place != len(data):
        raise ProtocolError(f"{len(data)} bytes of binary data, the inputs name {place}")
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise ProtocolError(f"all inputs must have as many rows, got {rows}")
    return arrays


def _shape(spec: TensorSpec, given: Json) -> tuple[int, int]:
    if given.get("datatype") != spec.datatype:
        received = shown(given.get("datatype"))
        raise ProtocolError(f"{spec.name}: must be of datatype {spec.datatype}, got {received}")
    shape = given.get("shape")
    sizes = shape if isinstance(shape, list) else []
    whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    if (
        not whole
        or len(sizes) != 2
        or not 1 <= sizes[0] <= MAX_ROWS
        or (sizes[1] < 0 if spec.width == ANY else sizes[1] != spec.width)
    ):
        allowed = f"[1 to {MAX_ROWS}, {'any' if spec.width == ANY else spec.width}]"
        raise ProtocolError(f"{spec.name}: must be of shape {allowed}, got {shown(shape)}")
    return sizes[0], sizes[1]


def _outputs(given: object, binary: bool) -> dict[str, bool]:
    """Whether each wanted output goes as binary data."""
    names = [spec.name for spec in OUTPUTS]
    if given is None or given == []:
        return dict.fromkeys(names, binary)
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise ProtocolError(f"outputs: must be a list of objects, got {shown(given)}")
    wanted: dict[str, bool] = {}
    for one in given:
        name = one.get("name")
        if name not in names:
            raise ProtocolError(f"unknown output {shown(name)}; {MODEL} gives {', '.join(names)}")
        wanted[name] = _flag(_parameters(name, one), "binary_data", default=binary)
    return wanted


def _parameters(place: str, given: Json) -> Json:
    parameters = given.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ProtocolError(f"{place}: parameters must be an object, got {shown(parameters)}")
    for name in REFUSED_PARAMETERS:
        if name in parameters:
            raise ProtocolError(f"{place}: parameter {name} is not supported")
    return parameters


def _flag(parameters: Json, name: str, *, default: bool = False) -> bool:
    flag = parameters.get(name, default)
    if not isinstance(flag, bool):
        raise ProtocolError(f"parameter {name}: must be true or false, got {shown(flag)}")
    return flag


def _timeout(given: object) -> float | None:
    """Seconds of Triton's parameter in microseconds."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ProtocolError(f"parameter timeout: must be microseconds from 1, got {shown(given)}")
    return min(given, MAX_TIMEOUT) / 1_000_000
