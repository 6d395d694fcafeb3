"""Open Inference Protocol (KServe v2) over HTTP: what the server says, and how it answers.

The model ``recommender`` takes and gives the tensors of `twotower.export.recommender_tensors`, as
JSON or with the binary data extension, in which the tensors follow the JSON and a header tells its
length. `twotower.serving.inference_call` reads what comes in. No web framework is used here.

Sources: the protocol, https://github.com/kserve/open-inference-protocol, and Triton's extension
``binary_tensor_data``; `tritonclient.http` speaks both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from twotower.export.recommender_tensors import INPUTS, MODEL, OUTPUTS, TensorSpec
from twotower.serving.inference_call import BINARY_SIZE, HEADER_LENGTH, Call, Json
from twotower.serving.protocol_tensors import ProtocolError, to_binary, to_json
from twotower.serving.replies import Reply
from twotower.serving.request_fields import shown
from twotower.serving.requests import RequestError
from twotower.serving.tensors import tensors_of

SERVER = "twotower"


@dataclass(frozen=True, kw_only=True)
class Response:
    """What goes back.

    Args:
        body: JSON, and binary data behind it.
        header_length: Length of the JSON where binary data follow; None where none do.
    """

    body: bytes
    header_length: int | None

    @property
    def headers(self) -> dict[str, str]:
        """Headers of HTTP."""
        if self.header_length is None:
            return {"Content-Type": "application/json"}
        kind = {"Content-Type": "application/octet-stream"}
        return kind | {HEADER_LENGTH: str(self.header_length)}


def server_metadata() -> Json:
    """What the server says about itself."""
    return {"name": SERVER, "version": version(SERVER), "extensions": ["binary_tensor_data"]}


def model_metadata(served: str) -> Json:
    """What the model takes and gives.

    Args:
        served: Version of the bundle.
    """

    def tensors(specs: Sequence[TensorSpec]) -> list[Json]:
        return [
            {"name": spec.name, "datatype": spec.datatype, "shape": [-1, spec.width]}
            for spec in specs
        ]

    return {
        "name": MODEL,
        "versions": [served],
        "platform": SERVER,
        "inputs": tensors(INPUTS),
        "outputs": tensors(OUTPUTS),
    }


def check_model(name: str, wanted: str | None, served: str) -> None:
    """Refuse what is not served.

    Args:
        name: Of the model.
        wanted: Its version, or None for any.
        served: Version of the bundle.

    Raises:
        ProtocolError: With status 404.
    """
    if name != MODEL:
        raise ProtocolError(f"unknown model {shown(name)}; there is {MODEL}", status=404)
    if wanted not in (None, served):
        problem = f"unknown version {shown(wanted)} of {MODEL}; {served} is served"
        raise ProtocolError(problem, status=404)


def write_response(call: Call, replies: Sequence[Reply | RequestError], served: str) -> Response:
    """The answer to an inference request.

    Args:
        call: The request.
        replies: One for each of its B requests.
        served: Version of the bundle that gave them.

    Raises:
        RequestError: When one of the requests cannot be answered.
    """
    tensors = tensors_of(call.requests, replies)
    listed, chunks = [], []
    for spec in OUTPUTS:
        if spec.name not in call.outputs:
            continue
        values = tensors[spec.name]
        one: Json = {"name": spec.name, "datatype": spec.datatype, "shape": list(values.shape)}
        if call.outputs[spec.name]:
            chunks.append(to_binary(spec.datatype, values))
            one["parameters"] = {BINARY_SIZE: len(chunks[-1])}
        else:
            one["data"] = to_json(values)
        listed.append(one)
    document: Json = {"model_name": MODEL, "model_version": served, "outputs": listed}
    if call.id is not None:
        document["id"] = call.id
    header = json.dumps(document, allow_nan=False).encode()
    return Response(body=header + b"".join(chunks), header_length=len(header) if chunks else None)


def error_body(problem: str) -> bytes:
    """What goes back where there is no answer."""
    return json.dumps({"error": problem}).encode()
