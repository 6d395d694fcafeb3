"""Reading what a client sends, within limits that hold before anything is built of it.

A body is counted while it comes and refused when it is too long. It is parsed once, by pydantic's
parser, which stops at 200 levels, refuses NaN and Infinity and half surrogates. What it holds is
then held against the wire models, which refuse every field they do not know.

A refusal is a list of problems, each with the place in the request and what is wrong there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pydantic_core
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

MAX_BODY_BYTES = 1 << 20
BODY_SECONDS = 10.0
SHOWN = 80
MUST_BE = "must be "

Loc = tuple[int | str, ...]


class Refusal(HTTPException):
    """A request that is refused, with the reasons.

    Args:
        status: HTTP status.
        problems: Place and problem of each.
    """

    def __init__(self, status: int, *problems: tuple[str, str]) -> None:
        detail = [{"place": place, "problem": problem} for place, problem in problems]
        super().__init__(status, detail)


class LimitedRequest(Request):
    """A request whose body is read within limits."""

    async def body(self) -> bytes:
        """All bytes of the body.

        Raises:
            Refusal: When they are too many or do not come.
        """
        if not hasattr(self, "_body"):
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    self._body = await self._limited()
            except TimeoutError as error:
                problem = f"did not come within {BODY_SECONDS:g} seconds"
                raise Refusal(408, ("body", problem)) from error
        return self._body

    async def _limited(self) -> bytes:
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
            raise _too_long(declared[:20])
        parts, size = [], 0
        async for part in self.stream():
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise _too_long("more")
            parts.append(part)
        return b"".join(parts)

    async def json(self) -> Any:  # noqa: ANN401 - what Starlette's method gives
        """The body's value.

        Raises:
            Refusal: When it is no JSON.
        """
        try:
            return pydantic_core.from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            problem = "nested deeper than 200 levels" if "recursion" in str(error) else str(error)
            raise Refusal(400, ("body", f"no JSON that is allowed: {problem}")) from error


class LimitedRoute(APIRoute):
    """A route that reads its body within limits."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given a `LimitedRequest`."""
        handler = super().get_route_handler()

        async def limited(request: Request) -> Response:
            if request.method == "POST":
                _check_type(request.headers.get("content-type", ""))
            return await handler(LimitedRequest(request.scope, request.receive))

        return limited


def problems_of(errors: Sequence[dict[str, Any]], body: object) -> list[tuple[str, str]]:
    """Place and problem for what pydantic found, one a place.

    Args:
        errors: Pydantic's list.
        body: What was received, to tell names of fields from names of alternatives.
    """
    found: dict[str, list[str]] = {}
    received: dict[str, str] = {}
    for error in errors:
        where, *path = error["loc"]
        place = str(path[0]) if where != "body" else _place(tuple(path), body, error["type"])
        text = _text(error)
        received.setdefault(place, _received(error))
        texts = found.setdefault(place, [])
        text = text.removeprefix(MUST_BE) if texts else text
        if text not in texts and MUST_BE + text not in texts:
            texts.append(text)
    return [
        (place, f"{' or '.join(texts)}{received[place]}")
        for place, texts in found.items()
        # Where one alternative fails inside a value, that another does not take it says nothing.
        if not any(other.startswith((f"{place}.", f"{place}[")) for other in found)
    ]


def _check_type(given: str) -> None:
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json":
        shown = given[:SHOWN] or "none"
        raise Refusal(415, ("content-type", f"must be application/json, got {shown}"))


def _too_long(received: str) -> Refusal:
    problem = f"at most {MAX_BODY_BYTES} bytes are read, got {received}"
    return Refusal(413, ("body", problem))


def _place(path: Loc, body: object, kind: str) -> str:
    """Such as ``filters[0].column``; what names no field of the body names an alternative."""
    place, here = "", body
    for number, part in enumerate(path):
        last = number == len(path) - 1
        if _holds(here, part):
            here = here[part]  # type: ignore[index]
        elif not (last and kind == "missing"):
            continue
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place[: 2 * SHOWN] or "body"


def _holds(value: object, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _text(error: dict[str, Any]) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        return "is unknown"
    text = str(error["msg"])
    return text.replace("Input should be ", MUST_BE, 1)


def _received(error: dict[str, Any]) -> str:
    if error["type"] in ("missing", "extra_forbidden"):
        return ""
    text = repr(error["input"])
    return f", got {text if len(text) <= SHOWN else text[:SHOWN] + '...'}"
