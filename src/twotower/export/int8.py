"""A ranker whose large matrix products are of 8-bit integers, several times as fast on a CPU.

Inputs of a product get one scale and one zero for all of them, weights a scale a column,

    x_bk = s (q_bk - z),    W_kn = s_n w_kn,    (x W)_bn = s s_n sum_k (q_bk - z) w_kn,

with q in 0 .. 255 and w in -63 .. 63. Scale and zero of the inputs are fixed beforehand, by the
range that they have on some batches: what is said of a pair does not depend on which others stand
in its batch. Weights leave a bit unused, so that sums of two products fit 16 bits and processors
with and without instructions for this (VNNI) compute the same.

All else, and what is computed once a query, stays in float32. The products are those of ONNX
Runtime (`com.microsoft.MatMulIntegerToFloat`).

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", section 2.

Shapes: B pairs, K width of an input, N width of an output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

from twotower.data.schema import OWNER
from twotower.export.query_once import drop_unused, linear_weight

Array = npt.NDArray[Any]

LEAST_WIDTHS = 32, 16  # K and N below which quantising costs more than it saves
LARGEST_INPUT, LARGEST_WEIGHT = 255, 63
DOMAIN = "com.microsoft"


def quantised(model: onnx.ModelProto, batches: Iterable[Mapping[str, Array]]) -> onnx.ModelProto:
    """A copy of an exported ranker with products of 8-bit integers.

    Args:
        model: As `twotower.export.onnx.export_ranker` writes it, for queries and pairs.
        batches: Inputs of the model ``(Q, ...)`` and ``(B, ...)`` such as it will be given.

    Raises:
        ValueError: When no product is large enough to gain from it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    products = _products(copy)
    if not products:
        wide, long = LEAST_WIDTHS
        raise ValueError(
            f"int8: the ranker has no matrix of at least {wide} x {long}, so there is nothing to "
            "gain; leave `ranker_precision` at float32"
        )
    ranges = _ranges(copy, sorted({node.input[0] for node, _ in products.values()}), batches)
    nodes: list[NodeProto] = []
    for number, node in enumerate(list(graph.node)):
        if number not in products:
            nodes.append(node)
            continue
        source = node.input[0]
        if source in ranges:
            graph.initializer.extend(_scale(source, *ranges.pop(source)))
            given = [source, f"{source}.scale", f"{source}.zero"]
            nodes.append(helper.make_node("QuantizeLinear", given, [f"{source}.int8"]))
        constants, replaced = _product(node, products[number][1], f"int8.{number}", copy)
        graph.initializer.extend(constants)
        nodes += replaced
    del graph.node[:]
    graph.node.extend(nodes)
    copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    drop_unused(copy)
    return copy


def _products(model: onnx.ModelProto) -> dict[int, tuple[NodeProto, Array]]:
    """Products of pairs with a large matrix (K, N), by place of their node."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    of_pairs = _of_pairs(model)
    found = {}
    for number, node in enumerate(model.graph.node):
        weight = linear_weight(node, weights)
        if weight is None or node.input[0] not in of_pairs:
            continue
        if all(size >= least for size, least in zip(weight.shape, LEAST_WIDTHS, strict=True)):
            found[number] = node, weight
    return found


def _of_pairs(model: onnx.ModelProto) -> set[str]:
    """Names of values that differ from pair to pair: what is made of an input of pairs."""
    rows = {node.name: node.type.tensor_type.shape.dim[0].dim_param for node in model.graph.input}
    names = {name for name, dimension in rows.items() if dimension == rows.get(OWNER)}
    for node in model.graph.node:
        if names.intersection(node.input):
            names.update(node.output)
    return names


def _ranges(
    model: onnx.ModelProto, names: list[str], batches: Iterable[Mapping[str, Array]]
) -> dict[str, tuple[float, float]]:
    """Least and largest of some values by name, 0 among them."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    del watched.graph.output[:]
    watched.graph.output.extend(outputs)
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    taken = [node.name for node in session.get_inputs()]
    low, high = np.zeros(len(names)), np.zeros(len(names))
    for batch in batches:
        values = session.run(names, {name: batch[name] for name in taken})
        low = np.minimum(low, [value.min(initial=0.0) for value in values])
        high = np.maximum(high, [value.max(initial=0.0) for value in values])
    return dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def _scale(source: str, low: float, high: float) -> list[TensorProto]:
    """Scale and zero of values in a range that holds 0."""
    scale = (high - low) / LARGEST_INPUT or 1.0
    zero = round(-low / scale)
    return [
        numpy_helper.from_array(np.array(scale, np.float32), f"{source}.scale"),
        numpy_helper.from_array(np.array(zero, np.uint8), f"{source}.zero"),
    ]


def _product(
    node: NodeProto, weight: Array, prefix: str, model: onnx.ModelProto
) -> tuple[list[TensorProto], list[NodeProto]]:
    """Constants and nodes of a product (B, K) x (K, N) in the place of a node."""
    scales = np.abs(weight).max(axis=0) / LARGEST_WEIGHT  # (N,)
    scales[scales == 0] = 1
    integers = np.rint(weight / scales).astype(np.int8)
    constants = {
        f"{prefix}.weight": integers,
        f"{prefix}.scales": scales.astype(np.float32),
        f"{prefix}.zeros": np.zeros(len(scales), np.int8),
    }
    source, added = node.input[0], list(node.input[2:])
    biases = {t.name for t in model.graph.initializer if len(t.dims) == 1}
    given = [f"{source}.int8", f"{prefix}.weight", f"{source}.scale", f"{prefix}.scales"]
    given += [f"{source}.zero", f"{prefix}.zeros"]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    if not added or added[0] in biases:
        product = helper.make_node(
            "MatMulIntegerToFloat", given + added, list(node.output), domain=DOMAIN
        )
        return tensors, [product]
    product = helper.make_node("MatMulIntegerToFloat", given, [f"{prefix}.product"], domain=DOMAIN)
    total = helper.make_node("Add", [f"{prefix}.product", added[0]], list(node.output))
    return tensors, [product, total]
