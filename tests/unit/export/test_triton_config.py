"""What Triton is told of a model, read back by Triton's own definition of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from tests.onnx_model import write_model
from tests.triton_messages import MESSAGES, parse
from twotower.export.build import ExportResult
from twotower.export.recommender_tensors import INPUTS, OUTPUTS
from twotower.export.triton_config import onnx_config, recommender_config

NUMPY = {
    "TYPE_BOOL": np.bool_,
    "TYPE_INT64": np.int64,
    "TYPE_FP32": np.float32,
    "TYPE_FP16": np.float16,
    "TYPE_INT32": np.int32,
}


def described(tensors) -> dict[str, tuple]:
    """Type, dimensions and shape after the reshape, None where there is none."""
    return {
        one.name: (
            MESSAGES.DataType.Name(one.data_type),
            list(one.dims),
            list(one.reshape.shape) if one.HasField("reshape") else None,
        )
        for one in tensors
    }


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """One input of every kind: a value a row, a row of fixed and of free length, a mask."""
    return write_model(
        tmp_path / "small.onnx",
        [
            ("Cast", ["history.id"], ["floats"], {"to": TensorProto.FLOAT}),
            ("ReduceSum", ["floats"], ["out"], {"keepdims": 0}),
            ("Identity", ["user"], ["same"], {}),
        ],
        [
            ("user", TensorProto.INT64, ["batch"]),
            ("history.id", TensorProto.INT64, ["batch", "length"]),
            ("vector", TensorProto.FLOAT, ["batch", 3, 4]),
            ("history.mask", TensorProto.BOOL, ["batch", 5]),
            ("half", TensorProto.FLOAT16, ["batch"]),
        ],
        [("same", TensorProto.INT64, ["batch"]), ("vectors", TensorProto.FLOAT, ["batch", 8])],
    )


def test_dimensions_and_types_are_those_of_the_graph(small: Path) -> None:
    config = parse(onnx_config("small", small, max_batch_size=32).render())
    assert described(config.input) == {
        "user": ("TYPE_INT64", [1], []),
        "history.id": ("TYPE_INT64", [-1], None),
        "vector": ("TYPE_FP32", [3, 4], None),
        "history.mask": ("TYPE_BOOL", [5], None),
        "half": ("TYPE_FP16", [1], []),
    }
    assert described(config.output) == {
        "same": ("TYPE_INT64", [1], []),
        "vectors": ("TYPE_FP32", [8], None),
    }
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 32)
    assert config.default_model_filename == "model.onnx"


def test_how_a_model_is_run(small: Path) -> None:
    config = parse(onnx_config("small", small, max_batch_size=32).render())
    (group,) = config.instance_group
    assert MESSAGES.ModelInstanceGroup.Kind.Name(group.kind) == "KIND_AUTO"  # a GPU, or the CPU
    assert group.count == 1
    assert config.HasField("dynamic_batching")
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds <= 1000
    assert config.version_policy.latest.num_versions == 1


def test_a_ranker_with_more_pairs_than_queries_is_not_batched(tmp_path: Path) -> None:
    """Two requests put together would mix up whose pair is whose."""
    path = write_model(
        tmp_path / "ranker.onnx",
        [("Gather", ["user", "owner"], ["probability"], {})],
        [
            ("user", TensorProto.FLOAT, ["batch"]),
            ("history", TensorProto.INT64, ["batch", 5]),
            ("owner", TensorProto.INT64, ["pairs"]),
        ],
        [("probability", TensorProto.FLOAT, ["pairs"])],
    )
    config = parse(onnx_config("ranker", path, max_batch_size=32).render())
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert described(config.input) == {
        "user": ("TYPE_FP32", [-1], None),
        "history": ("TYPE_INT64", [-1, 5], None),
        "owner": ("TYPE_INT64", [-1], None),
    }
    assert described(config.output) == {"probability": ("TYPE_FP32", [-1], None)}


@pytest.mark.parametrize("name", ['a "quoted" name', "back\\slash", "größe", "line\nbreak", "."])
def test_names_of_features_survive(tmp_path: Path, name: str) -> None:
    path = write_model(
        tmp_path / "m.onnx",
        [("Identity", [name], ["out"], {})],
        [(name, TensorProto.FLOAT, ["batch"])],
        [("out", TensorProto.FLOAT, ["batch"])],
    )
    config = parse(onnx_config("m", path, max_batch_size=1).render())
    assert [one.name for one in config.input] == [name]


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (TensorProto.STRING, ["batch"], r"`x` is of type STRING; Triton takes BOOL, INT8, .*FLOAT"),
        (TensorProto.FLOAT, [3, 4], r"`x` is \[3, 4\]; its first dimension must be free"),
        (TensorProto.FLOAT, [], r"`x` is \[\]; its first dimension must be free"),
    ],
)
def test_a_model_that_triton_cannot_batch(tmp_path: Path, kind, shape, message: str) -> None:
    path = write_model(
        tmp_path / "m.onnx",
        [("Identity", ["x"], ["out"], {})],
        [("x", kind, shape)],
        [("out", kind, shape)],
    )
    with pytest.raises(ValueError, match=message):
        onnx_config("m", path, max_batch_size=1)


def test_the_recommender_takes_a_request_and_gives_an_answer() -> None:
    config = parse(recommender_config().render())
    assert (config.name, config.backend) == ("recommender", "python")
    assert described(config.input) == {
        "user": ("TYPE_STRING", [1], None),
        "history": ("TYPE_STRING", [-1], None),
        "user_features": ("TYPE_STRING", [1], None),
        "context": ("TYPE_STRING", [1], None),
        "k": ("TYPE_INT64", [1], None),
        "filters": ("TYPE_STRING", [1], None),
        "seconds": ("TYPE_FP64", [1], None),
    }
    assert described(config.output) == {
        "item_id": ("TYPE_STRING", [-1], None),
        "title": ("TYPE_STRING", [-1], None),
        "probability": ("TYPE_FP32", [-1], None),
        "retrieval_score": ("TYPE_FP32", [-1], None),
        "retrieval_rank": ("TYPE_INT64", [-1], None),
        "reason": ("TYPE_STRING", [-1], None),
        "missing": ("TYPE_INT64", [1], None),
        "source": ("TYPE_STRING", [1], None),
        "version": ("TYPE_STRING", [1], None),
        "known_user": ("TYPE_BOOL", [1], None),
    }
    assert all(one.optional for one in config.input)
    assert [one.name for one in config.input if one.allow_ragged_batch] == ["history"]
    assert config.max_batch_size >= 16
    (group,) = config.instance_group
    assert MESSAGES.ModelInstanceGroup.Kind.Name(group.kind) == "KIND_CPU"
    assert len(INPUTS) == 7
    assert len(OUTPUTS) == 10


@pytest.mark.parametrize("model", ["query_tower", "item_tower", "ranker"])
def test_what_a_client_sends_by_the_config_runs_and_gives_what_it_promises(
    exported: ExportResult, model: str
) -> None:
    """The models in ONNX Runtime, fed as Triton would by its config."""
    path = exported.folder / f"{model}.onnx"
    config = parse(onnx_config(model, path, max_batch_size=8).render())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    assert {one.name for one in config.input} == names
    batch = 5

    def shape(tensor) -> tuple[int, ...]:
        dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        if config.max_batch_size:
            return (batch, *dims)
        return tuple(batch if dim == -1 else dim for dim in dims)

    feeds = {
        one.name: np.ones(shape(one), NUMPY[MESSAGES.DataType.Name(one.data_type)])
        for one in config.input
    }
    outputs = session.run([one.name for one in config.output], feeds)
    assert [node.name for node in session.get_outputs()] == [one.name for one in config.output]
    for one, values in zip(config.output, outputs, strict=True):
        assert values.shape == shape(one)
        assert values.dtype == NUMPY[MESSAGES.DataType.Name(one.data_type)]
