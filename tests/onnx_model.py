"""Small ONNX models, node by node, whose answers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Node = tuple[str, list[str], list[str], dict[str, Any]]
Tensor = tuple[str, int, list[Any]]


def write_model(
    path: Path,
    nodes: Sequence[Node],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    constants: Sequence[tuple[str, Any]] = (),
) -> Path:
    """Write a model; its path.

    Args:
        path: The file.
        nodes: Operator, inputs, outputs, attributes.
        inputs: Name, type and shape; a name in a shape is a size that is free.
        outputs: The same.
        constants: Name and values.
    """
    graph = helper.make_graph(
        [helper.make_node(kind, given, made, **options) for kind, given, made, options in nodes],
        "encoder",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path
