"""Products of 8-bit integers against the same arithmetic in NumPy, and against float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from twotower.export import int8 as module
from twotower.export.bundle import open_bundle
from twotower.export.int8 import quantised

RNG = np.random.default_rng(0)
WIDE, LONG = 40, 24


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def model_of(nodes: list, weights: dict[str, np.ndarray], width: int = LONG) -> onnx.ModelProto:
    """Of pairs ``x`` (B, 40) and queries ``q`` (Q, 40) to ``y`` (B, width)."""
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "ranker",
        [
            tensor("x", TensorProto.FLOAT, ["pairs", WIDE]),
            tensor("q", TensorProto.FLOAT, ["batch", WIDE]),
            tensor("owner", TensorProto.INT64, ["pairs"]),
        ],
        [tensor("y", TensorProto.FLOAT, ["pairs", width])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def batch_of(num_pairs: int) -> dict[str, np.ndarray]:
    owner = RNG.integers(2, size=num_pairs)
    return {"x": numbers(num_pairs, WIDE), "q": numbers(2, WIDE), "owner": owner}


def run(model: onnx.ModelProto, batch: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of inputs that a model has no use for
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, batch)[0]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def by_hand(x: np.ndarray, weight: np.ndarray, low: float, high: float) -> np.ndarray:
    """The formula of the module in integers, scales applied at the end."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    zero = round(-low / ((high - low) / 255))
    q = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - zero
    columns = (np.abs(weight).max(axis=0) / 63).astype(np.float32)
    w = np.rint(weight / (np.abs(weight).max(axis=0) / 63)).astype(np.int64)
    return (q @ w) * (scale * columns.astype(np.float64))


WEIGHT, BIAS = numbers(WIDE, LONG), numbers(LONG)


@pytest.mark.parametrize(
    ("nodes", "weights", "added"),
    [
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT}, 0.0),
        (
            [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
            {"w": np.ascontiguousarray(WEIGHT.T), "b": BIAS},
            BIAS,
        ),
    ],
    ids=["no bias", "bias, lying matrix"],
)
def test_products_are_those_of_the_formula(nodes, weights, added) -> None:
    model = model_of(nodes, weights)
    first, second = batch_of(50), batch_of(30)
    after = quantised(model, [first, second])
    assert operators(after) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert "w" not in {tensor.name for tensor in after.graph.initializer}
    low = min(first["x"].min(), second["x"].min())
    high = max(first["x"].max(), second["x"].max())
    other = batch_of(7)
    other["x"][0, 0] = 2 * high  # beyond the range: cut off
    expected = by_hand(other["x"], WEIGHT, low, high) + added
    np.testing.assert_allclose(run(after, other), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(after, first), run(model, first), atol=0.35)
    assert np.abs(run(after, first) - run(model, first)).std() < 0.1
    assert operators(model) != operators(after)  # a copy


def test_a_pair_has_the_same_answer_in_any_company() -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT})
    after = quantised(model, [batch_of(50)])
    batch = batch_of(20)
    alone = {**batch, "x": batch["x"][:1], "owner": batch["owner"][:1]}
    assert run(after, batch)[:1].tolist() == run(after, alone).tolist()


def test_what_is_of_queries_or_small_stays() -> None:
    nodes = [
        helper.make_node("MatMul", ["q", "w"], ["of_query"]),
        helper.make_node("Gather", ["of_query", "owner"], ["looked_up"], axis=0),
        helper.make_node("Gemm", ["x", "w", "looked_up"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "small"], ["y"]),
    ]
    model = model_of(nodes, {"w": WEIGHT, "small": numbers(LONG, 3)}, 3)
    batch = batch_of(50)
    after = quantised(model, [batch])
    assert operators(after) == [
        *("MatMul", "Gather", "QuantizeLinear", "MatMulIntegerToFloat", "Add", "Relu", "MatMul"),
    ]
    np.testing.assert_allclose(run(after, batch), run(model, batch), atol=2.5)


def test_an_input_of_two_products_is_made_integers_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = model_of(nodes, {"w": WEIGHT, "v": numbers(WIDE, LONG)})
    after = quantised(model, [batch_of(9)])
    assert operators(after).count("QuantizeLinear") == 1


def test_columns_and_inputs_of_zeros() -> None:
    weight = WEIGHT.copy()
    weight[:, 3] = 0
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})
    batch = batch_of(5)
    batch["x"] = np.zeros_like(batch["x"])
    assert not run(quantised(model, [batch]), batch).any()


def test_a_ranker_that_is_too_small_is_refused() -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": numbers(WIDE, 15)}, 15)
    with pytest.raises(ValueError, match="no matrix of at least 32 x 16, so there is nothing to"):
        quantised(model, [batch_of(5)])


def test_sums_of_two_products_fit_16_bits() -> None:
    """Else AVX2 cuts them off, and a bundle would answer otherwise on another machine."""
    assert 2 * module.LARGEST_INPUT * module.LARGEST_WEIGHT < 2**15


def test_a_trained_ranker_nearly_says_the_same(tiny_run) -> None:
    bundle = open_bundle(tiny_run.bundle)
    model = onnx.load(bundle.ranker)
    session = onnxruntime.InferenceSession(bundle.ranker)
    golden = bundle.golden()
    feeds = {}
    owners, places = np.nonzero(golden.candidates >= 0)
    columns = dict(golden.context) | {
        n: c[golden.user_rows] for n, c in bundle.users.columns.items()
    }
    columns |= {n: c[golden.candidates[owners, places]] for n, c in bundle.items.columns.items()}
    columns |= {"owner": owners, "retrieval_score": golden.candidate_scores[owners, places]}
    kinds = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(bool)": np.bool_}
    for node in session.get_inputs():
        shape = [len(golden.user_rows), *node.shape[1:]]
        given = columns.get(node.name, np.zeros(shape))  # histories are empty
        feeds[node.name] = np.asarray(given, kinds[node.type])
    after = quantised(model, [feeds])
    assert operators(after).count("MatMulIntegerToFloat") >= 1
    (expected,), found = session.run(["logit"], feeds), run(after, feeds)
    assert np.abs(found - expected).std() < 0.1 * expected.std()
