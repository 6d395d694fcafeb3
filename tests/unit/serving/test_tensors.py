"""Tensors to requests and replies to tensors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tests.golden_requests import assert_same_answers, golden_requests, tensors_of_requests
from twotower.export.recommender_tensors import ANY, INPUTS, OUTPUTS
from twotower.serving.recommender import Recommender
from twotower.serving.replies import Reply, reply_to
from twotower.serving.requests import (
    Answer,
    Filter,
    Recommendation,
    Request,
    RequestError,
)
from twotower.serving.tensors import NUMPY_TYPES, requests_of, tensors_of


def texts(*values: object) -> np.ndarray:
    return np.array([[value] for value in values], object)


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_inputs_and_outputs_are_named_as_in_requests_and_answers() -> None:
    assert {spec.name for spec in INPUTS} == fields(Request)
    of_items = {spec.name for spec in OUTPUTS if spec.width == ANY}
    assert of_items == fields(Recommendation)
    others = {spec.name for spec in OUTPUTS} - of_items
    assert others == (fields(Answer) - {"items", "seconds"}) | (fields(Reply) - {"answer"})


def test_a_request_with_every_field() -> None:
    (request,) = requests_of(
        {
            "user": texts(b"u1"),
            "history": np.array([[b"i1", b"", b"i2"]], object),
            "user_features": texts(b'{"country": "SE"}'),
            "context": texts(b'{"device": "phone"}'),
            "k": np.array([[3]]),
            "filters": texts(b'[{"column": "c", "operator": "in", "values": [1]}]'),
            "seconds": np.array([[5.5]]),
        }
    )
    assert request == Request(
        user="u1",
        history=["i1", "i2"],
        user_features={"country": "SE"},
        context={"device": "phone"},
        k=3,
        filters=[Filter(column="c", operator="in", values=[1])],
        seconds=5.5,
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("user", texts("")),
        ("user_features", texts("")),
        ("context", texts(b"")),
        ("filters", texts("")),
        ("history", np.zeros((1, 0), object)),
        ("history", np.array([["", b""]], object)),
        ("k", np.array([[10]])),
        ("seconds", np.array([[math.nan]])),
    ],
)
def test_what_stands_for_nothing(name: str, values: np.ndarray) -> None:
    (request,) = requests_of({name: values})
    assert request == Request(history=[], filters=[])


def test_rows_are_requests() -> None:
    requests = requests_of(
        {
            "user": texts("a", "", "c"),
            "history": np.array([["x", "y"], ["z", ""], ["", ""]], object),
            "k": np.array([[1], [2], [3]]),
        }
    )
    assert [request.user for request in requests] == ["a", None, "c"]
    assert [request.history for request in requests] == [["x", "y"], ["z"], []]
    assert [request.k for request in requests] == [1, 2, 3]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"user": texts(b"\xff")}, r"^user: must be UTF-8: invalid start byte$"),
        ({"user": texts("\ud800")}, r"^user: an id is text of at most 512 characters$"),
        ({"user": texts("x" * 513)}, r"^user: an id is text of at most 512 characters$"),
        ({"history": texts("x" * 513)}, r"^history: an id is text of at most 512 characters$"),
        ({"history": np.full((1, 1001), "i", object)}, r"^history: at most 1000 items, got 1001$"),
        ({"k": np.array([[0]])}, r"^k: must be 1 to 500, got 0$"),
        ({"k": np.array([[501]])}, r"^k: must be 1 to 500, got 501$"),
        ({"k": np.array([[-(2**63)]])}, r"^k: must be 1 to 500, got -9223372036854775808$"),
        ({"seconds": np.array([[-1.0]])}, r"^seconds: must be 0 to 253402300799, got -1$"),
        ({"seconds": np.array([[math.inf]])}, r"^seconds: must be 0 to 253402300799, got inf$"),
        ({"context": texts("{")}, r"^context: no JSON that is allowed"),
        ({"user_features": texts("3")}, r"^user_features: must be a JSON object, got 3$"),
        ({"filters": texts("3")}, r"^filters: must be a list of at most 32, got 3$"),
        ({"k": np.array([[1], [2], [0]])}, r"^row 2, k: must be 1 to 500, got 0$"),
    ],
)
def test_what_is_no_request(inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        requests_of(inputs)


def answer(*scores: float | None, missing: int = 0, source: str = "model") -> Answer:
    items = [
        Recommendation(
            item_id=2**60 + place,
            title=f"T{place}",
            probability=score,
            retrieval_score=None if score is None else -score,
            retrieval_rank=None if score is None else place + 3,
            reason="r",
        )
        for place, score in enumerate(scores)
    ]
    return Answer(items=items, version="v", source=source, missing=missing, seconds={})


def test_answers_are_padded_to_the_largest_k() -> None:
    requests = [Request(k=3), Request(k=1), Request(k=2, user="u")]
    outputs = tensors_of(
        requests,
        [
            Reply(answer=answer(0.5, 0.25, missing=1), known_user=True),
            Reply(answer=answer(None, source="popular"), known_user=False),
            Reply(answer=answer(missing=2), known_user=True),
        ],
    )
    nan = math.nan
    expected = {
        "item_id": [
            ["1152921504606846976", "1152921504606846977", ""],
            ["1152921504606846976", "", ""],
            ["", "", ""],
        ],
        "title": [["T0", "T1", ""], ["T0", "", ""], ["", "", ""]],
        "probability": [[0.5, 0.25, nan], [nan] * 3, [nan] * 3],
        "retrieval_score": [[-0.5, -0.25, nan], [nan] * 3, [nan] * 3],
        "retrieval_rank": [[3, 4, 0], [0] * 3, [0] * 3],
        "reason": [["r", "r", ""], ["r", "", ""], ["", "", ""]],
        "missing": [[1], [0], [2]],
        "source": [["model"], ["popular"], ["model"]],
        "version": [["v"]] * 3,
        "known_user": [[True], [False], [True]],
    }
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(outputs[name], np.array(values, outputs[name].dtype))
    for spec in OUTPUTS:
        assert outputs[spec.name].dtype == NUMPY_TYPES[spec.datatype]


def test_an_error_says_in_which_row_it_is() -> None:
    good, bad = Reply(answer=answer(0.5), known_user=True), RequestError("history", "unknown")
    with pytest.raises(RequestError, match=r"^row 1, history: unknown$"):
        tensors_of([Request(k=1), Request(k=1)], [good, bad])
    with pytest.raises(RequestError, match=r"^history: unknown$"):
        tensors_of([Request(k=1)], [bad])


def test_golden_requests_survive_the_tensors(recommender: Recommender, bundle, raw) -> None:
    requests = golden_requests(bundle, raw.users.to_pylist())
    assert requests_of(tensors_of_requests(requests)) == requests
    some = requests[:100]
    assert_same_answers(
        some, reply_to(recommender, some), tensors_of(some, reply_to(recommender, some))
    )
