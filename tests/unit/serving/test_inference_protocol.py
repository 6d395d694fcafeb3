"""What goes back by the protocol, read by NVIDIA's client."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tritonclient.http import InferResult

from tests.golden_requests import assert_same_answers, golden_requests
from twotower.export.recommender_tensors import OUTPUTS
from twotower.export.triton_config import recommender_config
from twotower.serving.inference_call import Call
from twotower.serving.inference_protocol import (
    check_model,
    error_body,
    model_metadata,
    server_metadata,
    write_response,
)
from twotower.serving.protocol_tensors import ProtocolError
from twotower.serving.recommender import Recommender
from twotower.serving.replies import Reply, reply_to
from twotower.serving.requests import Answer, Request, RequestError

ALL = [spec.name for spec in OUTPUTS]


def call(requests: list[Request], outputs: dict[str, bool], name: str | None = None) -> Call:
    return Call(id=name, requests=requests, outputs=outputs, seconds=None)


def test_the_server_says_what_it_speaks() -> None:
    found = server_metadata()
    assert found["name"] == "twotower"
    assert found["version"].count(".") == 2
    assert found["extensions"] == ["binary_tensor_data"]


def test_the_model_is_described_as_to_triton() -> None:
    found = model_metadata("2026-11-25_14-01-13")
    assert (found["name"], found["platform"]) == ("recommender", "twotower")
    assert found["versions"] == ["2026-11-25_14-01-13"]
    config = recommender_config()
    for tensors, kind in ((config.inputs, "inputs"), (config.outputs, "outputs")):
        assert found[kind] == [
            {
                "name": tensor.name,
                "datatype": {"TYPE_STRING": "BYTES"}.get(
                    tensor.data_type, tensor.data_type.removeprefix("TYPE_")
                ),
                "shape": [-1, *tensor.dims],
            }
            for tensor in tensors
        ]


def test_what_is_served_and_what_is_not() -> None:
    check_model("recommender", None, "v1")
    check_model("recommender", "v1", "v1")
    for name, version, message in (
        ("ranker", None, "unknown model 'ranker'; there is recommender"),
        ("x" * 1000, None, "unknown model 'xxx.*"),
        ("recommender", "v2", "unknown version 'v2' of recommender; v1 is served"),
    ):
        with pytest.raises(ProtocolError, match=f"^{message}$") as error:
            check_model(name, version, "v1")
        assert error.value.status == 404
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("binary", [True, False])
def test_answers_survive_the_protocol(recommender: Recommender, bundle, raw, binary: bool) -> None:
    requests = golden_requests(bundle, raw.users.to_pylist())[:64]
    replies = reply_to(recommender, requests)
    served = bundle.manifest.version
    found = write_response(call(requests, dict.fromkeys(ALL, binary), "r1"), replies, served)
    kind = "application/octet-stream" if binary else "application/json"
    assert found.headers["Content-Type"] == kind
    assert ("Inference-Header-Content-Length" in found.headers) == binary
    result = InferResult.from_response_body(found.body, header_length=found.header_length)
    assert result.get_response()["id"] == "r1"
    assert result.get_response()["model_name"] == "recommender"
    assert result.get_response()["model_version"] == served
    assert [one["name"] for one in result.get_response()["outputs"]] == ALL
    assert_same_answers(requests, replies, {name: result.as_numpy(name) for name in ALL})


def test_only_wanted_outputs_and_each_in_its_way(recommender: Recommender) -> None:
    requests = [Request(k=2)]
    replies = reply_to(recommender, requests)
    found = write_response(call(requests, {"version": False, "missing": True}), replies, "v1")
    assert found.header_length < len(found.body)
    document = json.loads(found.body[: found.header_length])
    missing, version = document["outputs"]
    assert (missing["name"], missing["parameters"]) == ("missing", {"binary_data_size": 8})
    assert found.body[found.header_length :] == b"\x00" * 8
    assert (version["name"], version["shape"]) == ("version", [1, 1])
    assert version["data"] == [recommender.bundle.manifest.version]
    assert "id" not in document


def test_json_holds_no_nan(recommender: Recommender) -> None:
    requests = [Request(k=2)]
    found = write_response(
        call(requests, {"probability": False}), reply_to(recommender, requests), "v1"
    )

    def refuse(name: str) -> None:
        raise AssertionError(name)

    document = json.loads(found.body, parse_constant=refuse)
    assert document["outputs"][0]["data"] == [None, None]
    values = InferResult.from_response_body(found.body).as_numpy("probability")
    assert np.isnan(values).all()


def test_a_request_without_an_answer_is_an_error() -> None:
    answer = Answer(items=[], version="v", source="model", missing=10, seconds={})
    replies = [Reply(answer=answer, known_user=False), RequestError("k", "no")]
    with pytest.raises(RequestError, match=r"^row 1, k: no$"):
        write_response(call([Request(), Request()], {}), replies, "v")
    assert json.loads(error_body('k: \ud800 is "no"')) == {"error": 'k: \ud800 is "no"'}
