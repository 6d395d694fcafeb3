"""The `model.py` of an exported repository, run as Triton's Python backend runs it."""

from __future__ import annotations

import runpy
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.golden_requests import (
    NOON,
    assert_same_answers,
    golden_requests,
    tensors_of_requests,
)
from twotower.export.bundle import Bundle
from twotower.export.recommender_tensors import OUTPUTS
from twotower.export.triton import write_repository
from twotower.serving.recommender import Recommender
from twotower.serving.replies import reply_to

ALL = frozenset(spec.name for spec in OUTPUTS)


@dataclass
class Tensor:
    """As ``triton_python_backend_utils.Tensor``."""

    own_name: str
    values: np.ndarray

    def name(self) -> str:
        return self.own_name

    def as_numpy(self) -> np.ndarray:
        return self.values


@dataclass
class TritonError:
    """As ``triton_python_backend_utils.TritonError``."""

    INVALID_ARG = 3

    message: str
    code: int


@dataclass
class InferenceResponse:
    """As ``triton_python_backend_utils.InferenceResponse``."""

    output_tensors: list[Tensor]
    error: TritonError | None = None

    def values(self) -> dict[str, np.ndarray]:
        assert self.error is None, self.error
        return {tensor.name(): tensor.as_numpy() for tensor in self.output_tensors}


@dataclass
class Asked:
    """As an ``InferenceRequest``; Triton hands texts over as bytes."""

    given: dict[str, np.ndarray]
    wanted: frozenset[str] = field(default=ALL)

    def inputs(self) -> list[Tensor]:
        encode = np.vectorize(str.encode, otypes=[object])
        return [
            Tensor(name, encode(values) if values.dtype == object and values.size else values)
            for name, values in self.given.items()
        ]

    def requested_output_names(self) -> frozenset[str]:
        return self.wanted


UTILS = SimpleNamespace(Tensor=Tensor, InferenceResponse=InferenceResponse, TritonError=TritonError)


@pytest.fixture(scope="module")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(bundle.folder, tmp_path_factory.mktemp("triton") / "models").folder


def loaded(repository: Path, patch: pytest.MonkeyPatch):
    """The backend's model, initialised."""
    (path,) = repository.glob("recommender/*/model.py")
    patch.setitem(sys.modules, "triton_python_backend_utils", UTILS)
    model = runpy.run_path(str(path))["TritonPythonModel"]()
    model.initialize({"model_repository": str(repository), "model_version": path.parent.name})
    return model


@pytest.fixture(scope="module")
def model(repository: Path):
    with pytest.MonkeyPatch.context() as patch:
        yield loaded(repository, patch)


def texts(*values: str) -> np.ndarray:
    return np.array([[value] for value in values], object)


def test_a_thousand_golden_requests(model, recommender: Recommender, bundle, raw) -> None:
    """One by one in one batch, and by rows: as the recommender itself answers."""
    requests = golden_requests(bundle, raw.users.to_pylist())
    replies = reply_to(recommender, requests)
    assert {reply.known_user for reply in replies} == {True, False}
    assert {reply.answer.source for reply in replies} == {"model", "popular"}
    for start in range(0, len(requests), 50):
        part, expected = requests[start : start + 50], replies[start : start + 50]
        single = model.execute([Asked(tensors_of_requests([request])) for request in part])
        for request, reply, response in zip(part, expected, single, strict=True):
            assert_same_answers([request], [reply], response.values())
        (together,) = model.execute([Asked(tensors_of_requests(part))])
        assert_same_answers(part, expected, together.values())


def test_what_is_wrong_with_a_request_is_its_own_error(model, bundle: Bundle) -> None:
    user = bundle.users.ids[0].as_py()
    good = {"user": texts(user), "k": np.array([[2]]), "seconds": np.array([[NOON]])}
    responses = model.execute(
        [
            Asked(good),
            Asked({"history": texts("nothing")}),
            Asked({"k": np.array([[0]])}),
            Asked({"context": texts("{")}),
            Asked({"user": texts(user, user), "history": texts("", "nothing")}),
            Asked(good),
        ]
    )
    problems = [response.error.message if response.error else None for response in responses]
    assert problems[0] is None
    assert (
        problems[1]
        == "history: unknown items nothing; known are 80 items such as i00000, i00001, i00002"
    )
    assert problems[2] == "k: must be 1 to 500, got 0"
    assert problems[3].startswith("context: no JSON that is allowed")
    assert str(problems[4]).startswith("row 1, history: unknown items nothing; known are 80 items")
    assert problems[5] is None
    assert {r.error.code for r in responses if r.error} == {TritonError.INVALID_ARG}
    assert all(r.output_tensors == [] for r in responses if r.error)
    for name, values in responses[0].values().items():
        np.testing.assert_array_equal(values, responses[5].values()[name])


def test_only_what_is_wanted_goes_back(model) -> None:
    (response,) = model.execute([Asked({"k": np.array([[2]])}, frozenset({"version", "item_id"}))])
    assert [tensor.name() for tensor in response.output_tensors] == ["item_id", "version"]


def test_no_requests_no_responses(model) -> None:
    assert model.execute([]) == []


def test_a_damaged_bundle_is_not_loaded(repository: Path, tmp_path: Path, monkeypatch) -> None:
    copy = tmp_path / "models"
    shutil.copytree(repository, copy)
    (path,) = copy.glob("recommender/*/bundle/popular.npy")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"popular.npy: changed since it was written"):
        loaded(copy, monkeypatch)
