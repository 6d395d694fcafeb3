"""``config.pbtxt`` of Triton: what a model takes and gives, and how Triton runs it.

The text form of the message ``ModelConfig`` in NVIDIA's ``model_config.proto``. Where all tensors
of a model share their first dimension it is the batch: it is left out here, and Triton puts
requests together. A column of one value a row, (B,) in the graph, then has the dimension 1 for a
client and is reshaped to none for the model. A ranker whose queries and pairs differ in number is
not batched; one request brings as many of each as it likes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from twotower.export import recommender_tensors

DATA_TYPES: Mapping[int, str] = {
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
}
MODEL_FILE = "model.onnx"
PYTHON_FILE = "model.py"
QUEUE_DELAY = 500  # microseconds that a request waits for others


@dataclass(frozen=True, kw_only=True)
class ConfigTensor:
    """An input or output in a config.

    Args:
        name: Its name.
        data_type: As Triton's configs call it, such as ``TYPE_FP32``.
        dims: -1 where free; without the batch, so none for one value a row of it.
        optional: Whether an input may be left out.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a ``config.pbtxt`` says.

    Args:
        name: Of the model and of its folder.
        backend: ``onnxruntime`` or ``python``.
        file: The model's file in a version folder.
        max_batch_size: Rows that Triton puts together at most, and that a request may have; 0 for
            a model without a batch.
        inputs: What it takes.
        outputs: What it gives.
        kind: Where instances run: ``KIND_AUTO`` for a GPU where there is one, or ``KIND_CPU``.
    """

    name: str
    backend: Literal["onnxruntime", "python"]
    file: str
    max_batch_size: int
    inputs: Sequence[ConfigTensor]
    outputs: Sequence[ConfigTensor]
    kind: Literal["KIND_AUTO", "KIND_CPU"]

    def render(self) -> str:
        """The text of the file."""
        lines = [
            f"name: {_text(self.name)}",
            f"backend: {_text(self.backend)}",
            f"default_model_filename: {_text(self.file)}",
            f"max_batch_size: {self.max_batch_size}",
            *(f"input {_tensor(tensor)}" for tensor in self.inputs),
            *(f"output {_tensor(tensor)}" for tensor in self.outputs),
            f"instance_group {{ kind: {self.kind} count: 1 }}",
            "version_policy { latest { num_versions: 1 } }",
        ]
        if self.max_batch_size:
            lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY} }}")
        return "\n".join(lines) + "\n"


def onnx_config(name: str, path: Path, *, max_batch_size: int) -> ModelConfig:
    """The config of an exported model, read off its graph.

    Args:
        name: Of the model.
        path: The ``.onnx`` file.
        max_batch_size: Rows that Triton puts together at most, where the model has a batch.

    Raises:
        ValueError: When a tensor has a type that Triton lacks or no free first dimension.
    """
    graph = onnx.load(path, load_external_data=False).graph
    values = [*graph.input, *graph.output]
    problems = [problem for value in values if (problem := _problem(value))]
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))
    is_batched = len({value.type.tensor_type.shape.dim[0].dim_param for value in values}) == 1
    return ModelConfig(
        name=name,
        backend="onnxruntime",
        file=MODEL_FILE,
        max_batch_size=max_batch_size if is_batched else 0,
        inputs=[_of_graph(value, is_batched) for value in graph.input],
        outputs=[_of_graph(value, is_batched) for value in graph.output],
        kind="KIND_AUTO",
    )


def recommender_config() -> ModelConfig:
    """The config of the model that answers whole requests."""

    def tensors(
        specs: Sequence[recommender_tensors.TensorSpec], *, optional: bool
    ) -> list[ConfigTensor]:
        return [
            ConfigTensor(
                name=spec.name,
                data_type="TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}",
                dims=(spec.width,),
                optional=optional,
            )
            for spec in specs
        ]

    return ModelConfig(
        name=recommender_tensors.MODEL,
        backend="python",
        file=PYTHON_FILE,
        max_batch_size=recommender_tensors.MAX_ROWS,
        inputs=tensors(recommender_tensors.INPUTS, optional=True),
        outputs=tensors(recommender_tensors.OUTPUTS, optional=False),
        kind="KIND_CPU",
    )


def _problem(value: onnx.ValueInfoProto) -> str | None:
    tensor = value.type.tensor_type
    if tensor.elem_type not in DATA_TYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        allowed = ", ".join(map(onnx.TensorProto.DataType.Name, DATA_TYPES))
        return f"`{value.name}` is of type {kind}; Triton takes {allowed}"
    sizes = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    if not sizes or not isinstance(sizes[0], str):
        return f"`{value.name}` is {sizes}; its first dimension must be free"
    return None


def _of_graph(value: onnx.ValueInfoProto, is_batched: bool) -> ConfigTensor:
    tensor = value.type.tensor_type
    dims = tuple(dim.dim_value or -1 for dim in tensor.shape.dim)
    return ConfigTensor(
        name=value.name,
        data_type=DATA_TYPES[tensor.elem_type],
        dims=dims[1:] if is_batched else dims,
    )


def _tensor(tensor: ConfigTensor) -> str:
    dims = ", ".join(map(str, tensor.dims or (1,)))
    parts = [f"name: {_text(tensor.name)}", f"data_type: {tensor.data_type}", f"dims: [ {dims} ]"]
    if not tensor.dims:
        parts.append("reshape { shape: [ ] }")
    if tensor.optional:
        parts.append("optional: true")
        # Requests whose lists differ in length are handed over together all the same.
        parts.extend(["allow_ragged_batch: true"] if -1 in tensor.dims else [])
    return "{ " + " ".join(parts) + " }"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
