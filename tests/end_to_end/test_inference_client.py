"""NVIDIA's client of the Open Inference Protocol against `twotower serve` as a process."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from tests.golden_requests import assert_same_answers, golden_requests, tensors_of_requests
from twotower.cli.load_run import load_run
from twotower.data.synthetic import SyntheticSource
from twotower.export.bundle import Bundle, open_bundle
from twotower.export.recommender_tensors import ANY, INPUTS, OUTPUTS
from twotower.serving.inference_protocol import model_metadata, server_metadata
from twotower.serving.recommender import Recommender
from twotower.serving.replies import reply_to
from twotower.serving.server.body import MAX_BODY_BYTES

PATIENCE = 120.0
PAGE = Path(__file__).parents[2] / "docs" / "triton.md"
MODEL = "recommender"
ALL = [spec.name for spec in OUTPUTS]
DATATYPES = {spec.name: spec.datatype for spec in INPUTS}


@pytest.fixture(scope="module")
def bundle(tiny_run) -> Bundle:
    return open_bundle(tiny_run.bundle)


@pytest.fixture(scope="module")
def address(tiny_run) -> Iterator[str]:
    """Host and port of a server."""
    command = [sys.executable, "-m", "twotower.cli.main", "serve", f"bundle={tiny_run.bundle}"]
    process = subprocess.Popen(
        [*command, "port=0", "deadline_ms=60000"], stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving"), line
        # Access lines follow; a full pipe would stop the server.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield line.strip().rpartition("http://")[2]
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def client(address: str) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(
        address, concurrency=4, connection_timeout=PATIENCE, network_timeout=PATIENCE
    ) as client:
        yield client


def inputs(tensors: Mapping[str, np.ndarray], *, binary: bool = True) -> list[InferInput]:
    made = []
    for name, values in tensors.items():
        one = InferInput(name, list(values.shape), DATATYPES[name])
        one.set_data_from_numpy(values, binary_data=binary)
        made.append(one)
    return made


def wanted(names: Sequence[str], *, binary: bool) -> list[InferRequestedOutput]:
    return [InferRequestedOutput(name, binary_data=binary) for name in names]


def texts(*values: str) -> np.ndarray:
    return np.array([[value] for value in values], object)


def refused(client: InferenceServerClient, *given: object, **options: object) -> tuple[str, str]:
    """Status and message of a call that must fail."""
    with pytest.raises(InferenceServerException) as error:
        client.infer(*given, **options)
    return error.value.status(), error.value.message()


def test_it_lives_and_is_ready(client: InferenceServerClient, bundle: Bundle) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, bundle.manifest.version)
    assert not client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("ranker")


def test_metadata(client: InferenceServerClient, bundle: Bundle) -> None:
    served = bundle.manifest.version
    assert client.get_server_metadata() == server_metadata()
    assert client.get_model_metadata(MODEL) == model_metadata(served)
    assert client.get_model_metadata(MODEL, served) == model_metadata(served)


@pytest.mark.parametrize("binary", [True, False])
def test_golden_requests_by_rows(client: InferenceServerClient, tiny_run, bundle, binary) -> None:
    world = load_run(tiny_run.run).config.data
    users = SyntheticSource(**{k: v for k, v in world.items() if k[0] != "_"}).read().users
    requests = golden_requests(bundle, users.to_pylist())
    replies = reply_to(Recommender(bundle), requests)
    for start in range(0, len(requests), 50):
        part = requests[start : start + 50]
        found = client.infer(
            MODEL,
            inputs(tensors_of_requests(part), binary=binary),
            outputs=wanted(ALL, binary=binary),
            request_id=f"part {start}",
        )
        assert found.get_response()["id"] == f"part {start}"
        assert found.get_response()["model_version"] == bundle.manifest.version
        values = {name: found.as_numpy(name) for name in ALL}
        assert_same_answers(part, replies[start : start + 50], values)


def test_single_requests_side_by_side(client: InferenceServerClient, bundle: Bundle) -> None:
    requests = golden_requests(bundle, [{"user_id": "", "country": "SE"}])[:60]
    replies = reply_to(Recommender(bundle), requests)
    pending = [client.async_infer(MODEL, inputs(tensors_of_requests([r]))) for r in requests]
    for request, reply, waiting in zip(requests, replies, pending, strict=True):
        found = waiting.get_result()
        assert_same_answers([request], [reply], {name: found.as_numpy(name) for name in ALL})


def test_only_the_outputs_that_are_wanted(client: InferenceServerClient, bundle: Bundle) -> None:
    found = client.infer(
        MODEL, inputs({"k": np.array([[2]])}), outputs=wanted(["version"], binary=False)
    )
    assert [one["name"] for one in found.get_response()["outputs"]] == ["version"]
    assert found.as_numpy("version").tolist() == [[bundle.manifest.version]]


def test_unknown_models_and_versions(client: InferenceServerClient, bundle: Bundle) -> None:
    given = inputs({"k": np.array([[2]])})
    assert refused(client, "ranker", given) == (
        "404",
        "unknown model 'ranker'; there is recommender",
    )
    assert refused(client, MODEL, given, model_version="7") == (
        "404",
        f"unknown version '7' of recommender; {bundle.manifest.version} is served",
    )
    with pytest.raises(InferenceServerException, match="unknown model 'ranker'"):
        client.get_model_metadata("ranker")


def test_tensors_that_do_not_fit(client: InferenceServerClient) -> None:
    k = InferInput("k", [1, 1], "INT32")
    k.set_data_from_numpy(np.array([[2]], np.int32))
    assert refused(client, MODEL, [k]) == (
        "400",
        "k: must be of datatype INT64, got 'INT32'",
    )
    assert refused(client, MODEL, inputs({"k": np.array([[2, 3]])})) == (
        "400",
        "k: must be of shape [1 to 64, 1], got [1, 2]",
    )
    assert refused(client, MODEL, inputs({"k": np.ones((65, 1), np.int64)}))[0] == "400"
    extra = InferInput("price", [1, 1], "INT64")
    extra.set_data_from_numpy(np.array([[2]]))
    status, message = refused(client, MODEL, [extra])
    assert (status, message[:21]) == ("400", "unknown input 'price'")
    status, message = refused(
        client, MODEL, inputs({"k": np.array([[2]])}), outputs=wanted(["vector"], binary=True)
    )
    assert (status, message[:23]) == ("400", "unknown output 'vector'")


def test_requests_that_cannot_be_answered(client: InferenceServerClient, bundle: Bundle) -> None:
    assert refused(client, MODEL, inputs({"history": texts("nothing")})) == (
        "400",
        "history: unknown items nothing; known are 80 items such as i00000, i00001, i00002",
    )
    user = bundle.users.ids[0].as_py()
    rows = {"user": texts(user, user), "user_features": texts("", "{")}
    status, message = refused(client, MODEL, inputs(rows))
    assert status == "400"
    assert message.startswith("row 1, user_features: no JSON that is allowed")


def test_what_is_too_long_or_compressed(client: InferenceServerClient) -> None:
    history = np.full((1, 300_000), "i00001", object)
    assert history.size * 10 > MAX_BODY_BYTES
    status, message = refused(client, MODEL, inputs({"history": history}))
    assert status == "413"
    assert message.startswith(f"body: at most {MAX_BODY_BYTES} bytes are read")
    given = inputs({"k": np.array([[2]])})
    assert refused(client, MODEL, given, request_compression_algorithm="gzip") == (
        "415",
        "compressed requests are not supported",
    )
    assert (
        client.infer(MODEL, given, response_compression_algorithm="gzip").as_numpy("missing") == 0
    )


def test_the_example_of_the_page(address: str, bundle: Bundle) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    user = bundle.users.ids[0].as_py()
    example = example.replace("localhost:8000", address).replace("u000042", user)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recommender = Recommender(bundle)
    known, new = (
        [item.item_id for item in recommender.recommend(k=k, user=name)]
        for k, name in ((3, user), (5, None))
    )
    assert done.stdout.splitlines() == [
        f"row 0, known: True: {known}",
        f"row 1, known: False: {new}",
    ]


def test_the_tables_of_the_page_are_those_of_the_tensors() -> None:
    shown = re.findall(
        r"^\| `(\w+)` \| (\w+) \| rows, (\w+) \| (.+) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert shown == [
        (spec.name, spec.datatype, "any" if spec.width == ANY else str(spec.width), spec.about)
        for spec in (*INPUTS, *OUTPUTS)
    ]
