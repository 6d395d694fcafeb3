"""An exported repository in NVIDIA's Triton, asked by NVIDIA's client.

Triton is taken from an environment of its own, which the variable `TWOTOWER_TRITON` names: the
wheel's Python backend is older than NumPy 2. docs/triton.md says how to make it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.bundle_versions import copy_home, further_version
from tests.end_to_end.triton_server import PATIENCE, stand_in, tritonserver
from tests.golden_requests import assert_same_answers, golden_requests, tensors_of_requests
from twotower.cli.load_run import load_run
from twotower.data.synthetic import SyntheticSource
from twotower.export.bundle import Bundle, open_bundle
from twotower.export.recommender_tensors import OUTPUTS
from twotower.export.triton import triton_version, write_repository
from twotower.serving.recommender import Recommender
from twotower.serving.replies import reply_to

ENVIRONMENT = os.environ.get("TWOTOWER_TRITON")
ALL = [spec.name for spec in OUTPUTS]
MODELS = ("query_tower", "item_tower", "ranker", "recommender")

pytestmark = pytest.mark.skipif(
    ENVIRONMENT is None, reason="TWOTOWER_TRITON names no environment with nvidia-pytriton"
)


@dataclass(frozen=True)
class Triton:
    """A server that runs.

    Args:
        address: Host and port.
        bundle: The version that it serves, the newer of two.
        older: Triton's number of the other.
    """

    address: str
    bundle: Bundle
    older: int

    def client(self) -> InferenceServerClient:
        return InferenceServerClient(
            self.address, concurrency=16, connection_timeout=PATIENCE, network_timeout=PATIENCE
        )


@pytest.fixture(scope="module")
def triton(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A repository of two versions, moved away from where it was written; its bundle is gone."""
    root = tmp_path_factory.mktemp("triton")
    home = copy_home(tiny_run.bundle, root)
    first, second = (home / "current").resolve(), further_version(home, "new ")
    older = write_repository(first, home / "triton").version
    write_repository(second, home / "triton")
    bundle = open_bundle(shutil.move(second, root / "bundle"))
    repository = Path(shutil.move(home / "triton", root / "models"))
    shutil.rmtree(home)
    stand_in(repository)
    (root / "server").mkdir()
    with tritonserver(Path(ENVIRONMENT), repository, root / "server") as (address, log, process):
        assert process.poll() is None, log.read_text()
        yield Triton(address, bundle, older)


def inputs(tensors: Mapping[str, np.ndarray]) -> list[InferInput]:
    made = []
    for name, values in tensors.items():
        one = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        one.set_data_from_numpy(values)
        made.append(one)
    return made


def texts(*values: str) -> np.ndarray:
    return np.array([[value] for value in values], object)


def refused(client: InferenceServerClient, given: Sequence[InferInput]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as error:
        client.infer("recommender", given)
    return error.value.status(), error.value.message()


def test_the_newest_version_of_every_model_is_served(triton: Triton) -> None:
    newer = str(triton_version(triton.bundle.manifest.version))
    assert int(newer) > triton.older
    with triton.client() as client:
        for model in MODELS:
            assert client.get_model_metadata(model)["versions"] == [newer]
            assert client.is_model_ready(model, newer)
            assert not client.is_model_ready(model, str(triton.older))


def test_golden_requests(triton: Triton, tiny_run) -> None:
    """By rows, and one a call from several clients, which Triton puts together."""
    world = load_run(tiny_run.run).config.data
    users = SyntheticSource(**{k: v for k, v in world.items() if k[0] != "_"}).read().users
    requests = golden_requests(triton.bundle, users.to_pylist())
    replies = reply_to(Recommender(triton.bundle), requests)

    with triton.client() as client:
        for start in range(0, len(requests), 50):
            part = requests[start : start + 50]
            found = client.infer("recommender", inputs(tensors_of_requests(part)))
            values = {name: found.as_numpy(name) for name in ALL}
            assert_same_answers(part, replies[start : start + 50], values)

        single = [inputs(tensors_of_requests([request])) for request in requests[:300]]
        # While these are answered others wait, however slow the client is.
        many = inputs(tensors_of_requests(requests[:50]))
        ahead = [client.async_infer("recommender", many) for _ in range(4)]
        pending = [client.async_infer("recommender", given) for given in single]
        for request, reply, waiting in zip(requests, replies, pending, strict=False):
            found = waiting.get_result()
            values = {name: found.as_numpy(name) for name in ALL}
            assert_same_answers([request], [reply], values)
        for waiting in ahead:
            waiting.get_result()
        (figures,) = client.get_inference_statistics("recommender")["model_stats"]
        batches = {one["batch_size"] for one in figures["batch_stats"]}
    assert 50 in batches
    assert figures["execution_count"] < 20 + 4 + 300  # some were put together


def test_what_is_wrong_with_a_request_is_its_own_error(triton: Triton) -> None:
    user = triton.bundle.users.ids[0].as_py()
    good = inputs({"user": texts(user), "history": texts("")})
    bad = inputs({"user": texts(user), "history": texts("nothing")})

    def ask(given: list[InferInput]) -> str:
        with triton.client() as client:
            try:
                found = client.infer("recommender", given)
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"
            return found.as_numpy("version")[0, 0].decode()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, [good, bad] * 16))
    assert (
        found
        == [
            triton.bundle.manifest.version,
            "400 history: unknown items nothing; known are 80 items such as i00000, i00001, i00002",
        ]
        * 16
    )
    with triton.client() as client:
        assert refused(client, inputs({"user": texts(user, user), "context": texts("", "{")})) == (
            "400",
            "row 1, context: no JSON that is allowed: Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1)",
        )


def test_tensors_that_do_not_fit(triton: Triton) -> None:
    """By the config alone, before the backend sees them."""
    with triton.client() as client:
        for given, message in (
            ({"k": np.array([[2]], np.int32)}, "data-type is 'INT32'.* expects 'INT64'"),
            ({"k": np.array([[2, 3]])}, r"unexpected shape for input 'k'.*Expected \[-1,1\]"),
            ({"k": np.ones((65, 1), np.int64)}, "batch-size must be <= 64"),
            ({"price": np.array([[2]])}, "unexpected inference input 'price'"),
            ({"k": np.ones((2, 1), np.int64), "user": texts("a")}, "batch size does not match"),
        ):
            with pytest.raises(InferenceServerException, match=message):
                client.infer("recommender", inputs(given))


@pytest.mark.parametrize("model", ["query_tower", "item_tower", "ranker"])
def test_models_by_their_config(triton: Triton, model: str) -> None:
    """What Triton tells of them is enough to ask them, and the answers are those of the file."""
    path = triton.bundle.folder / f"{model}.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    kinds = {"BOOL": np.bool_, "INT64": np.int64, "FP32": np.float32}
    with triton.client() as client:
        described = client.get_model_metadata(model)
        given = {
            one["name"]: rng.integers(0, 2, [3 if n < 0 else n for n in one["shape"]]).astype(
                kinds[one["datatype"]]
            )
            for one in described["inputs"]
        }
        found = client.infer(model, inputs(given))
        feeds = {
            node.name: given[node.name].reshape(3, *node.shape[1:]) for node in session.get_inputs()
        }
        names = [one["name"] for one in described["outputs"]]
        for name, expected in zip(names, session.run(names, feeds), strict=True):
            values = found.as_numpy(name)
            np.testing.assert_allclose(values.reshape(expected.shape), expected, atol=1e-5)


def test_a_damaged_bundle_is_not_served(tiny_run, tmp_path: Path) -> None:
    home = copy_home(tiny_run.bundle, tmp_path)
    repository = write_repository((home / "current").resolve(), tmp_path / "models").folder
    for model in ("query_tower", "item_tower", "ranker"):
        shutil.rmtree(repository / model)
    (path,) = repository.glob("recommender/*/bundle/popular.npy")
    path.unlink()
    path.write_bytes(b"x")
    (tmp_path / "server").mkdir()
    with tritonserver(Path(ENVIRONMENT), repository, tmp_path / "server") as (_, log, process):
        assert process.wait(PATIENCE) != 0
        assert "popular.npy: changed since it was written" in log.read_text(errors="replace")
