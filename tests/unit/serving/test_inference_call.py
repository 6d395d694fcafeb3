"""Inference requests as a client writes them, and as nobody should."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from tests.golden_requests import golden_requests, tensors_of_requests
from twotower.export.recommender_tensors import INPUTS, OUTPUTS
from twotower.serving.inference_call import read_call
from twotower.serving.protocol_tensors import ProtocolError
from twotower.serving.requests import RequestError

DATATYPES = {spec.name: spec.datatype for spec in INPUTS}
ALL = [spec.name for spec in OUTPUTS]


def client_body(
    tensors: dict[str, np.ndarray],
    *,
    binary: bool = True,
    outputs: Sequence[InferRequestedOutput] | None = None,
    **options: object,
) -> tuple[bytes, str | None]:
    """Body and length of its JSON as NVIDIA's client writes them."""
    inputs = []
    for name, values in tensors.items():
        one = InferInput(name, list(values.shape), DATATYPES[name])
        one.set_data_from_numpy(values, binary_data=binary)
        inputs.append(one)
    body, length = InferenceServerClient.generate_request_body(inputs, outputs=outputs, **options)
    return bytes(body), None if length is None else str(length)


def document(*inputs: dict, **further: object) -> bytes:
    return json.dumps({"inputs": list(inputs), **further}).encode()


def k(**changes: object) -> dict:
    return {"name": "k", "datatype": "INT64", "shape": [1, 1], "data": [3]} | changes


@pytest.mark.parametrize("binary", [True, False])
def test_what_the_client_sends_is_read(bundle, raw, binary: bool) -> None:
    requests = golden_requests(bundle, raw.users.to_pylist())[:64]
    body, length = client_body(tensors_of_requests(requests), binary=binary, request_id="r1")
    call = read_call(body, length)
    assert list(call.requests) == requests
    assert call.id == "r1"
    assert call.outputs == dict.fromkeys(ALL, True)  # as the client asks for by default
    assert call.seconds is None


def test_outputs_and_how_they_go() -> None:
    wanted = [
        InferRequestedOutput("version", binary_data=False),
        InferRequestedOutput("item_id", binary_data=True),
    ]
    call = read_call(*client_body({"k": np.array([[3]])}, outputs=wanted, timeout=2_500_000))
    assert call.outputs == {"version": False, "item_id": True}
    assert call.seconds == 2.5


@pytest.mark.parametrize(
    ("further", "outputs"),
    [
        ({}, dict.fromkeys(ALL, False)),
        ({"outputs": []}, dict.fromkeys(ALL, False)),
        ({"parameters": {"binary_data_output": True}}, dict.fromkeys(ALL, True)),
        ({"parameters": {"mine": 3}, "outputs": [{"name": "title"}]}, {"title": False}),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [
                    {"name": "title"},
                    {"name": "reason", "parameters": {"binary_data": False}},
                ],
            },
            {"title": True, "reason": False},
        ),
    ],
)
def test_which_outputs_go_as_binary_data(further: dict, outputs: dict[str, bool]) -> None:
    call = read_call(document(k(), **further), None)
    assert call.outputs == outputs
    assert call.id is None


def test_a_long_timeout_is_cut() -> None:
    call = read_call(document(k(), parameters={"timeout": 10**400}), None)
    assert call.seconds == 60


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON that is allowed: Expecting value"),
        (b"{", "no JSON that is allowed: Expecting property name"),
        (b"\xff", "no JSON that is allowed: "),
        (b"[" * 100_000, "no JSON that is allowed: nested too deeply"),
        (b'{"inputs": [NaN]}', "no JSON that is allowed: NaN is no number of JSON"),
        (b"[]", r"the body must be a JSON object, got \[\]"),
        (b"{}", "inputs: must be a list of 1 to 7, got None"),
        (document(), "inputs: must be a list of 1 to 7, got 0"),
        (document(*[k()] * 8), "inputs: must be a list of 1 to 7, got 8"),
        (b'{"inputs": {"k": 1}}', r"inputs: must be a list of 1 to 7, got \{'k': 1\}"),
        (document(3), r"inputs\[0\]: must be an object, got 3"),
        (document(k(name="x")), "unknown input 'x'; recommender takes user, history, .*seconds"),
        (document(k(name=["k"])), r"unknown input \['k'\]; recommender takes"),
        (document(k(), k()), "input k is given twice"),
        (document(k(datatype="INT32")), "k: must be of datatype INT64, got 'INT32'"),
        (document(k(datatype=None)), "k: must be of datatype INT64, got None"),
        (document(k(shape=[1])), r"k: must be of shape \[1 to 64, 1\], got \[1\]"),
        (document(k(shape=[1, 2])), r"k: must be of shape \[1 to 64, 1\], got \[1, 2\]"),
        (document(k(shape=[0, 1])), r"k: must be of shape \[1 to 64, 1\], got \[0, 1\]"),
        (document(k(shape=[65, 1])), r"k: must be of shape \[1 to 64, 1\], got \[65, 1\]"),
        (document(k(shape=[-1, 1])), r"k: must be of shape \[1 to 64, 1\], got \[-1, 1\]"),
        (document(k(shape=[1.0, 1])), r"k: must be of shape \[1 to 64, 1\], got \[1.0, 1\]"),
        (document(k(shape=[True, 1])), r"k: must be of shape \[1 to 64, 1\], got \[True, 1\]"),
        (document(k(shape="11")), r"k: must be of shape \[1 to 64, 1\], got '11'"),
        (
            document({"name": "history", "datatype": "BYTES", "shape": [1, -1], "data": []}),
            r"history: must be of shape \[1 to 64, any\], got \[1, -1\]",
        ),
        (
            document({"name": "history", "datatype": "BYTES", "shape": [1, 10**30], "data": []}),
            r"history: 0 values, its shape .* asks for 10{30}",
        ),
        (document(k(data=None)), "k: data must be a list, got None"),
        (document(k(parameters=3)), "k: parameters must be an object, got 3"),
        (
            document(k(parameters={"shared_memory_region": "x"})),
            "k: parameter shared_memory_region is not supported",
        ),
        (
            document(k(parameters={"binary_data_size": 8})),
            "k: binary_data_size must be 0 to 0, the binary data, got 8",
        ),
        (document(k(parameters={"binary_data_size": True})), "k: binary_data_size must be .*True"),
        (document(k(parameters={"binary_data_size": -1})), "k: binary_data_size must be .*-1"),
        (
            document(
                k(), {"name": "user", "datatype": "BYTES", "shape": [2, 1], "data": ["a", ""]}
            ),
            r"all inputs must have as many rows, got \{'k': 1, 'user': 2\}",
        ),
        (document(k(), id=3), "id: must be text, got 3"),
        (document(k(), outputs={"name": "title"}), "outputs: must be a list of objects, got"),
        (document(k(), outputs=["title"]), r"outputs: must be a list of objects, got \['title'\]"),
        (document(k(), outputs=[{}]), "unknown output None; recommender gives item_id, title, "),
        (document(k(), outputs=[{"name": ["x"]}]), r"unknown output \['x'\]; recommender gives"),
        (
            document(k(), outputs=[{"name": "title", "parameters": {"classification": 2}}]),
            "title: parameter classification is not supported",
        ),
        (
            document(k(), outputs=[{"name": "title", "parameters": {"binary_data": 1}}]),
            "parameter binary_data: must be true or false, got 1",
        ),
        (
            document(k(), parameters={"binary_data_output": "yes"}),
            "parameter binary_data_output: must be true or false, got 'yes'",
        ),
        (document(k(), parameters={"sequence_id": 1}), "request: parameter sequence_id is not sup"),
        (document(k(), parameters={"timeout": 0}), "parameter timeout: must be microseconds from"),
        (document(k(), parameters={"timeout": 1.5}), "parameter timeout: must be microseconds fr"),
        (document(k(), parameters=[]), r"request: parameters must be an object, got \[\]"),
    ],
)
def test_what_is_not_of_the_protocol(body: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{message}") as error:
        read_call(body, None)
    assert error.value.status == 400
    assert len(str(error.value)) < 400


def test_binary_data_must_be_all_that_the_inputs_name() -> None:
    header = document(k(parameters={"binary_data_size": 8}))
    eight = (3).to_bytes(8, "little")
    assert read_call(header + eight, str(len(header))).requests[0].k == 3
    with pytest.raises(ProtocolError, match=r"^9 bytes of binary data, the inputs name 8$"):
        read_call(header + eight + b"x", str(len(header)))
    with pytest.raises(ProtocolError, match=r"^k: binary_data_size must be 0 to 7, the binary dat"):
        read_call(header + eight[:7], str(len(header)))


@pytest.mark.parametrize("length", ["-1", "x", "", "1.5", "999", " 3", "٣", "9" * 5000])
def test_what_is_no_length_of_the_json(length: str) -> None:
    body = document(k())
    with pytest.raises(ProtocolError, match=r"^Inference-Header-Content-Length: must be 0 to the"):
        read_call(body, length)


def test_what_is_wrong_with_a_request_is_not_wrong_with_the_protocol() -> None:
    with pytest.raises(RequestError, match=r"^k: must be 1 to 500, got 0$"):
        read_call(document(k(data=[0])), None)


BODY, LENGTH = client_body(
    {
        "user": np.array([["u1"], ["é"]], object),
        "history": np.array([["a", "b"], ["c", ""]], object),
        "k": np.array([[1], [2]]),
    }
)


@settings(max_examples=400, deadline=None)
@given(
    place=st.integers(0, len(BODY) - 1),
    cut=st.integers(0, 6),
    put=st.binary(max_size=6),
    length=st.sampled_from([LENGTH, None, "0", str(len(BODY))]),
)
def test_a_damaged_body_is_refused_or_read(
    place: int, cut: int, put: bytes, length: str | None
) -> None:
    body = BODY[:place] + put + BODY[place + cut :]
    with suppress(ProtocolError, RequestError):
        call = read_call(body, length)
        assert 1 <= len(call.requests) <= 64


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = ("name", "datatype", "shape", "data", "parameters")


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(FIELDS), spec=st.sampled_from(INPUTS), value=VALUES)
def test_any_json_in_any_field_is_refused_or_read(name: str, spec, value: object) -> None:
    one = {"name": spec.name, "datatype": spec.datatype, "shape": [1, 1], "data": [""]}
    bodies = (
        {"inputs": [one | {name: value}]},
        {"inputs": [k()], "outputs": value},
        {"inputs": value},
        {"inputs": [k()], "parameters": value},
    )
    for body in bodies:
        with suppress(ProtocolError, RequestError):
            read_call(json.dumps(body).encode(), None)
