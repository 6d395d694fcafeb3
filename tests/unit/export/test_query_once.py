"""Linear maps of queries and pairs: the same answers, and the query's share once a query."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.unit.export.test_onnx import INPUTS, random_pairs
from twotower.export.onnx import export_ranker
from twotower.export.query_once import linear_weight, query_once
from twotower.losses.calibration import Calibration
from twotower.models.cross import full_rank, low_rank, mixture
from twotower.models.dcn import DCNv2, Parallel, Stacked
from twotower.models.history import MeanPooling
from twotower.models.mlp import MLP
from twotower.models.multitask import MMoE
from twotower.models.target_attention import TargetAttention

RNG = np.random.default_rng(0)
QUERY, OTHER, ITEM = 3, 2, 5
WIDTH = QUERY + ITEM + OTHER


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def graph_of(nodes: list, weights: dict[str, np.ndarray], width: int) -> onnx.ModelProto:
    """x_0 = [query[owner], item, other[owner]] and what is made of it, ending in ``y``."""
    looked_up = [
        helper.make_node("Reshape", ["owner", "flat"], ["same"]),
        helper.make_node("Gather", ["query", "owner"], ["of_query"], axis=0),
        helper.make_node("Gather", ["other", "same"], ["of_other"], axis=0),
        helper.make_node("Concat", ["of_query", "item", "of_other"], ["x0"], axis=-1),
    ]
    sides = (("query", "Q", QUERY), ("other", "Q", OTHER), ("item", "B", ITEM))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, columns])
        for name, rows, columns in sides
    ]
    inputs.append(helper.make_tensor_value_info("owner", TensorProto.INT64, ["B"]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", width])
    constants = {"flat": np.array([-1]), **weights}
    graph = helper.make_graph(
        looked_up + nodes,
        "ranker",
        inputs,
        [output],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


FEEDS = {
    "query": numbers(2, QUERY),
    "other": numbers(2, OTHER),
    "item": numbers(4, ITEM),
    "owner": np.array([1, 0, 1, 1]),
}
X0 = np.concatenate(
    [FEEDS["query"][FEEDS["owner"]], FEEDS["item"], FEEDS["other"][FEEDS["owner"]]], axis=1
)


def answer(model: onnx.ModelProto) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, FEEDS)[0]


def rows_multiplied(model: onnx.ModelProto) -> list[int]:
    """How many columns of x_0 each matrix product of the graph takes."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [linear_weight(node, weights) for node in model.graph.node]
    return sorted(len(weight) for weight in found if weight is not None)


WEIGHT, BIAS = numbers(WIDTH, 7), numbers(7)


@pytest.mark.parametrize(
    ("node", "weights", "expected"),
    [
        (helper.make_node("MatMul", ["x0", "w"], ["y"]), {"w": WEIGHT}, X0 @ WEIGHT),
        (
            helper.make_node("Gemm", ["x0", "w", "b"], ["y"], transB=1),
            {"w": np.ascontiguousarray(WEIGHT.T), "b": BIAS},
            X0 @ WEIGHT + BIAS,
        ),
    ],
    ids=["no bias", "bias and a matrix that lies on its side"],
)
def test_a_linear_map_is_taken_apart(node, weights, expected) -> None:
    model = query_once(graph_of([node], weights, 7))
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(answer(model), expected, atol=1e-5)
    assert rows_multiplied(model) == [QUERY + OTHER, ITEM]
    assert "w" not in {tensor.name for tensor in model.graph.initializer}


def test_what_reads_the_input_otherwise_still_does() -> None:
    square = numbers(WIDTH, WIDTH)
    nodes = [
        helper.make_node("MatMul", ["x0", "w"], ["h"]),
        helper.make_node("Mul", ["x0", "h"], ["product"]),
        helper.make_node("Add", ["product", "x0"], ["x1"]),
        helper.make_node("MatMul", ["x1", "w"], ["y"]),
    ]
    model = query_once(graph_of(nodes, {"w": square}, WIDTH))
    expected = (X0 * (X0 @ square) + X0) @ square
    np.testing.assert_allclose(answer(model), expected, rtol=1e-4)
    # Only the first product is of x_0; the second needs the whole matrix, which is kept.
    assert rows_multiplied(model) == [QUERY + OTHER, ITEM, WIDTH]


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([helper.make_node("Gemm", ["x0", "w"], ["y"], alpha=2.0)], {"w": WEIGHT}),
        (
            [
                helper.make_node("Relu", ["x0"], ["r"]),
                helper.make_node("MatMul", ["r", "w"], ["y"]),
            ],
            {"w": WEIGHT},
        ),
    ],
    ids=["a factor", "not of x_0 itself"],
)
def test_what_is_no_linear_map_of_both_stays(nodes, weights) -> None:
    before = graph_of(nodes, weights, 7)
    after = query_once(onnx.ModelProto.FromString(before.SerializeToString()))
    assert after == before


def owner_blind(model: nn.Module, path: Path) -> list[int]:
    """Columns that each product of an exported ranker takes, of those that take all of x_0."""
    return [rows for rows in rows_multiplied(onnx.load(path)) if rows == model.width]


@pytest.mark.parametrize(
    ("structure", "cross", "history", "after_the_first"),
    [
        # V and the gate of the second layer, and the perceptron on top; the first layer is apart.
        (Stacked, partial(low_rank, num_layers=2, rank=3, gated=True), MeanPooling, 3),
        (partial(Parallel, heads=MMoE), partial(full_rank, num_layers=2), TargetAttention, 1),
        # The experts and their gate of the second layer.
        (Parallel, partial(mixture, num_layers=2, rank=2, num_experts=3), MeanPooling, 2),
    ],
    ids=["low rank with gates, stacked", "target attention, MMoE", "mixture"],
)
def test_rankers_equal_the_trained_ones(
    structure, cross, history, after_the_first: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    ranker = DCNv2(
        inputs=INPUTS,
        embedding_dim=5,
        structure=structure,
        cross=cross,
        deep=partial(MLP, hidden=[8, 4]),
        history=history,
        retrieval_score=True,
        retrieval_rank=True,
    )
    path = tmp_path / "ranker.onnx"
    for parameter in ranker.parameters():  # biases begin at zero, where they do not show
        nn.init.normal_(parameter, std=0.3)
    export_ranker(ranker, INPUTS, path, calibration=Calibration(negative_rate=1.0))
    session = onnxruntime.InferenceSession(path)
    for num_queries, num_pairs in ((1, 1), (1, 9), (6, 20)):
        pairs = random_pairs(INPUTS, num_queries, num_pairs, seed=num_pairs)
        with torch.no_grad():
            expected = ranker(pairs.one_by_one()).numpy()
            again = ranker(pairs.by_owner()).numpy()
        feeds = {name: column.numpy() for name, column in pairs.by_owner().items()}
        (found,) = session.run(["logit"], feeds)
        np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert owner_blind(ranker, path) == [ranker.width] * after_the_first
