"""The query's share of a ranker's first linear maps, computed once a query instead of once a pair.

A ranker that is exported for queries and pairs (`twotower.export.onnx.export_ranker`) makes its
input x_0 of pairs out of a query's part, which is looked up by the pair's owner, and an item's
part. A linear map of that is taken apart,

    W [q[owner], i] = (W_q q)[owner] + W_i i,

so that W_q q is a product of Q rows instead of B. That holds for whatever reads x_0 through a fixed
matrix: the first cross layer, full rank, low rank or experts, its gate, and the first layer of the
perceptron. What else reads x_0, such as the products of the cross layers, reads it as before.

Shapes: Q queries, B pairs, W width of x_0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from twotower.data.schema import OWNER

Array = npt.NDArray[Any]

PREFIX = "once"  # of the names of what is put into the graph


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """A concatenation of parts of queries and parts of pairs.

    Args:
        queries: Names of the parts of queries before they are looked up, (Q, ...) each.
        pairs: Names of the parts of pairs, (B, ...) each.
        of_queries: (W,) bool, columns that belong to queries.
    """

    queries: Sequence[str]
    pairs: Sequence[str]
    of_queries: Array


def query_once(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take linear maps of queries and pairs apart.

    Args:
        model: The exported ranker; it is changed.

    Returns:
        The model; as it was where nothing in it is a linear map of both.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    joined = _joined(model)
    nodes: list[NodeProto] = []
    begun: set[str] = set()
    for number, node in enumerate(list(graph.node)):
        weight = linear_weight(node, weights)
        parts = joined.get(node.input[0]) if weight is not None else None
        if weight is None or parts is None or len(weight) != len(parts.of_queries):
            nodes.append(node)
            continue
        source = node.input[0]
        if source not in begun:
            nodes += _sides(source, parts)
            begun.add(source)
        query_weight, pair_weight = f"{PREFIX}.{number}.query", f"{PREFIX}.{number}.pair"
        for name, rows in ((query_weight, parts.of_queries), (pair_weight, ~parts.of_queries)):
            graph.initializer.append(numpy_helper.from_array(weight[rows], name))
        nodes += _apart(node, source, query_weight, pair_weight, f"{PREFIX}.{number}")
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(model)
    return model


def linear_weight(node: NodeProto, weights: dict[str, TensorProto]) -> Array | None:
    """The matrix (W, N) that a node multiplies rows (B, W) by, or None.

    Args:
        node: Any node.
        weights: Constants of the graph by name.
    """
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in weights:
        return None
    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
    if not plain or options.get("transA", 0):
        return None
    weight: Array = numpy_helper.to_array(weights[node.input[1]])
    if weight.ndim != 2:
        return None
    return weight.T if options.get("transB", 0) else weight


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove constants that no node reads any more."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _joined(model: onnx.ModelProto) -> dict[str, _Parts]:
    """Concatenations of parts of queries and of pairs by name."""
    # The exporter flattens what one looks up by; of a vector that is the same.
    same = [n.output[0] for n in model.graph.node if n.op_type == "Reshape" and OWNER in n.input]
    looked_up = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[1] in (OWNER, *same)
    }
    if not looked_up:
        return {}
    widths = dict(_widths(model))
    found = {}
    for node in model.graph.node:
        names = list(node.input)
        known = node.op_type == "Concat" and all(widths.get(name) for name in names)
        if known and 0 < sum(name in looked_up for name in names) < len(names):
            found[node.output[0]] = _Parts(
                queries=[looked_up[name] for name in names if name in looked_up],
                pairs=[name for name in names if name not in looked_up],
                of_queries=np.repeat(
                    [name in looked_up for name in names], [widths[name] for name in names]
                ),
            )
    return found


def _widths(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """Widths of all matrices of known width by name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 2 and dims[1].dim_value:
            yield value.name, dims[1].dim_value


def _sides(source: str, parts: _Parts) -> list[NodeProto]:
    """Both sides of a concatenation by themselves."""
    return [
        helper.make_node("Concat", names, [f"{source}.{side}"], axis=1)
        for side, names in (("query", parts.queries), ("pair", parts.pairs))
    ]


def _apart(
    node: NodeProto, source: str, query_weight: str, pair_weight: str, prefix: str
) -> list[NodeProto]:
    """What stands in the place of a linear map: Q rows, looked up, added to B rows."""
    bias = list(node.input[2:])
    products, looked_up = f"{prefix}.products", f"{prefix}.looked_up"
    return [
        helper.make_node("Gemm", [f"{source}.query", query_weight, *bias], [products]),
        helper.make_node("Gather", [products, OWNER], [looked_up], axis=0),
        helper.make_node("Gemm", [f"{source}.pair", pair_weight, looked_up], list(node.output)),
    ]
