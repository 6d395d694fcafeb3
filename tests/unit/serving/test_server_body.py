"""Bodies are limited before anything is built of them, and problems name their place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from pydantic import BaseModel, ValidationError

from twotower.serving.server import body as module
from twotower.serving.server.body import MAX_BODY_BYTES, LimitedRequest, Refusal, problems_of
from twotower.serving.server.wire import RecommendBody, SimilarBody


def read(parts: Iterable[bytes], **headers: str) -> object:
    """The value of a body that comes in parts."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    names = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    taken = iter(messages)

    async def receive() -> dict:
        return next(taken)

    scope = {"type": "http", "method": "POST", "headers": names}
    return asyncio.run(LimitedRequest(scope, receive).json())


def refusal(parts: Iterable[bytes], **headers: str) -> tuple[int, dict]:
    with pytest.raises(Refusal) as caught:
        read(parts, **headers)
    (problem,) = caught.value.detail
    return caught.value.status_code, problem


def test_a_body_in_parts() -> None:
    assert read([b'{"user":', b'"u1", "k":', b"3}"]) == {"user": "u1", "k": 3}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "EOF while parsing a value"),
        (b"{", "EOF while parsing an object"),
        (b'{"k": NaN}', "expected value"),
        (b'{"k": Infinity}', "expected value"),
        (b'{"k": -Infinity}', "invalid number"),
        (b"[" * 100_000, "nested deeper than 200 levels"),
        (b'{"a":' * 100_000, "nested deeper than 200 levels"),
        (b'{"user": "\\ud800"}', "hex escape"),
        (b'{"user": "\xff"}', "invalid unicode"),
        (b"{} {}", "trailing characters"),
        (b"'user'", "expected value"),
    ],
)
def test_what_is_no_json(text: bytes, problem: str) -> None:
    status, found = refusal([text])
    assert (status, found["place"]) == (400, "body")
    assert found["problem"].startswith("no JSON that is allowed: ")
    assert problem in found["problem"]


def test_a_body_that_says_it_is_too_long_is_not_read() -> None:
    status, found = refusal([], content_length=str(MAX_BODY_BYTES + 1))
    assert status == 413
    assert found == {
        "place": "body",
        "problem": f"at most {MAX_BODY_BYTES} bytes are read, got {MAX_BODY_BYTES + 1}",
    }
    assert refusal([], content_length="9" * 5000)[0] == 413


def test_a_body_that_is_too_long_is_not_read_to_its_end() -> None:
    num_read = 0
    part = b" " * (1 << 16)

    async def receive() -> dict:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": part, "more_body": True}

    headers = [(b"content-length", b"10")]
    request = LimitedRequest({"type": "http", "method": "POST", "headers": headers}, receive)
    with pytest.raises(Refusal) as caught:
        asyncio.run(request.json())
    assert caught.value.status_code == 413
    assert num_read == MAX_BODY_BYTES // len(part) + 1
    assert read([b" " * (MAX_BODY_BYTES - 2), b"{}"]) == {}
    assert refusal([b" " * (MAX_BODY_BYTES - 1), b"{}"])[0] == 413


def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.01)

    async def receive() -> dict:
        await asyncio.sleep(30)
        return {}

    request = LimitedRequest({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(Refusal) as caught:
        asyncio.run(request.json())
    assert caught.value.status_code == 408


def found(model: type[BaseModel], body: object) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    return dict(problems_of(errors, body))


@pytest.mark.parametrize(
    ("body", "place", "problem"),
    [
        ({"k": 0}, "k", "must be greater than or equal to 1, got 0"),
        ({"k": 501}, "k", "must be less than or equal to 500, got 501"),
        ({"k": "5"}, "k", "must be a valid integer, got '5'"),
        ({"k": 1.0}, "k", "must be a valid integer, got 1.0"),
        ({"k": True}, "k", "must be a valid integer, got True"),
        ({"k": None}, "k", "must be a valid integer, got None"),
        ({"user": True}, "user", "must be a valid string or a valid integer, got True"),
        ({"user": 1.5}, "user", "must be a valid string or a valid integer, got 1.5"),
        ({"user": 2**63}, "user", "must be a valid string or less than or equal to"),
        ({"user": 10**4000}, "user", "must be a valid string or less than or equal to"),
        ({"user": "x" * 513}, "user", "at most 512 characters"),
        ({"version": "../../etc/passwd"}, "version", "is unknown"),
        ({"history": "abc"}, "history", "must be a valid list, got 'abc'"),
        ({"history": ["a", {}]}, "history[1]", "must be a valid string or a valid integer, got {}"),
        ({"history": ["a"] * 1001}, "history", "at most 1000 items"),
        ({"context": {"a": {"b": 1}}}, "context.a", "got {'b': 1}"),
        ({"context": {"a": [[1]]}}, "context.a[0]", "must be a valid number"),
        ({"context": {"a": [1.0] * 4097}}, "context.a", "at most 4096 items"),
        ({"context": {str(n): 1 for n in range(257)}}, "context", "at most 256 items"),
        ({"user_features": []}, "user_features", "must be a valid dictionary, got []"),
        ({"seconds": -1}, "seconds", "must be greater than or equal to 0, got -1"),
        ({"seconds": 1e300}, "seconds", "must be less than or equal to 253402300799"),
        ({"seconds": float("nan")}, "seconds", "got nan"),
        ({"explain": 1}, "explain", "must be a valid boolean, got 1"),
        ({"filters": [{"column": "a", "operator": "in"}]}, "filters[0].values", "is missing"),
        (
            {"filters": [{"column": "a", "operator": "like", "values": [1]}]},
            "filters[0].operator",
            "must be 'in', 'not_in', 'at_least' or 'at_most', got 'like'",
        ),
        (
            {"filters": [{"column": "a", "operator": "in", "values": []}]},
            "filters[0].values",
            "at least 1 item",
        ),
        (
            {"filters": [{"column": "a", "operator": "in", "values": [None]}]},
            "filters[0].values[0]",
            "got None",
        ),
        (
            {"filters": [{"column": "a", "operator": "in", "values": [1], "x": 1}]},
            "filters[0].x",
            "is unknown",
        ),
        ([], "body", "got []"),
        ("text", "body", "got 'text'"),
    ],
)
def test_a_problem_names_its_place_and_what_is_allowed(body: object, place: str, problem) -> None:
    problems = found(RecommendBody, body)
    assert list(problems) == [place]
    assert problem in problems[place]


def test_all_problems_are_named_at_once() -> None:
    body = {"k": 0, "user": [], "history": [None], "nobody": 1}
    assert list(found(RecommendBody, body)) == ["user", "history[0]", "k", "nobody"]


def test_a_list_of_two_kinds() -> None:
    problems = found(RecommendBody, {"context": {"a": [1, "b"]}})
    assert problems == {
        "context.a[1]": "must be a valid number, got 'b'",
        "context.a[0]": "must be a valid string, got 1",
    }


@pytest.mark.parametrize("vector", [[], ["a"], [float("inf")], [True], [1] * 4097])
def test_vectors_that_are_none(vector: list) -> None:
    assert next(iter(found(SimilarBody, {"vector": vector}))).startswith("vector")


def test_a_long_value_is_not_repeated_in_full() -> None:
    problems = found(RecommendBody, {"k": "x" * 10_000})
    assert len(problems["k"]) < 200


def test_a_request_is_what_the_body_says() -> None:
    body = RecommendBody.model_validate(
        {
            "user": 7,
            "history": ["a", 8],
            "user_features": {"tags": ["x", "y"], "age": 3, "new": True},
            "context": {"vector": [1, 2.5], "none": None},
            "k": 3,
            "filters": [{"column": "price", "operator": "at_most", "values": [9.5]}],
            "seconds": 5,
        }
    )
    request = body.request()
    assert (request.user, request.history, request.k) == (7, ["a", 8], 3)
    assert request.user_features == {"tags": ["x", "y"], "age": 3, "new": True}
    assert request.user_features["new"] is True
    assert request.context == {"vector": [1, 2.5], "none": None}
    (one,) = request.filters
    assert (one.column, one.operator, list(one.values)) == ("price", "at_most", [9.5])
    assert request.seconds == 5
