"""The routes under ``/v2``: the Open Inference Protocol (KServe v2), so that its clients work here.

What is said on them is that of `twotower.serving.inference_protocol`; errors are ``{"error": ...}``
as the protocol has them. All rows of a call are answered out of one bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from twotower.serving.inference_call import HEADER_LENGTH, Call, Json, read_call
from twotower.serving.inference_protocol import Response as Answered
from twotower.serving.inference_protocol import (
    check_model,
    error_body,
    model_metadata,
    server_metadata,
    write_response,
)
from twotower.serving.protocol_tensors import ProtocolError
from twotower.serving.replies import reply_to
from twotower.serving.requests import RequestError
from twotower.serving.server.access import RETRY_AFTER
from twotower.serving.server.body import LimitedRequest
from twotower.serving.server.generation import Generation
from twotower.serving.server.micro_batches import Overloaded
from twotower.serving.server.routes import service_of
from twotower.serving.server.service import Service

MODEL_PATH = "/models/{model}"
VERSION_PATH = MODEL_PATH + "/versions/{version}"
NO_ENCODING = ("", "identity")


class ProtocolRoute(APIRoute):
    """A route that says what is wrong as the protocol does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given a `LimitedRequest`."""
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handler(LimitedRequest(request.scope, request.receive))
            except ProtocolError as error:
                return _error(error.status, str(error))
            except RequestError as error:
                return _error(400, str(error))
            except Overloaded as error:
                return _error(503, f"overloaded: {error.reason}", RETRY_AFTER)
            except HTTPException as error:
                return _error(error.status_code, _said(error.detail))

        return guarded


router = APIRouter(prefix="/v2", route_class=ProtocolRoute, include_in_schema=False)


@router.get("")
async def server() -> Json:
    """What the server says about itself."""
    return server_metadata()


@router.get("/health/live")
async def live() -> Json:
    """Whether the process lives."""
    return {"live": True}


@router.get("/health/ready")
async def ready(request: Request, response: Response) -> Json:
    """Whether it answers."""
    is_ready = not service_of(request).stopping
    response.status_code = 200 if is_ready else 503
    return {"ready": is_ready}


@router.get(MODEL_PATH)
@router.get(VERSION_PATH)
async def metadata(request: Request, model: str, version: str | None = None) -> Json:
    """What the model takes and gives."""
    served = service_of(request).generation.version
    check_model(model, version, served)
    return model_metadata(served)


@router.get(f"{MODEL_PATH}/ready")
@router.get(f"{VERSION_PATH}/ready")
async def model_ready(
    request: Request, response: Response, model: str, version: str | None = None
) -> Json:
    """Whether the model answers."""
    check_model(model, version, service_of(request).generation.version)
    return await ready(request, response) | {"name": model}


@router.post(f"{MODEL_PATH}/infer")
@router.post(f"{VERSION_PATH}/infer")
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Answer an inference request."""
    service = service_of(request)
    check_model(model, version, service.generation.version)
    encoding = request.headers.get("content-encoding", "")
    if encoding.strip().lower() not in NO_ENCODING:
        raise ProtocolError("compressed requests are not supported", status=415)
    call = read_call(await request.body(), request.headers.get(HEADER_LENGTH))
    answered = await _answered(service, call, model, version)
    return Response(answered.body, headers=answered.headers)


async def _answered(service: Service, call: Call, model: str, version: str | None) -> Answered:
    """The answer to a call: of one row together with others that wait, else all rows at once."""
    if len(call.requests) == 1:
        reply = await service.answer(call.requests[0], deadline=call.seconds)
        served = reply.answer.version
        check_model(model, version, served)  # It may have moved on since.
        return write_response(call, [reply], served)

    def answer(generation: Generation) -> Answered:
        check_model(model, version, generation.version)
        replies = reply_to(generation.recommender, call.requests)
        return write_response(call, replies, generation.version)

    return await service.call(answer, deadline=call.seconds)


def _said(detail: object) -> str:
    """What an exception of HTTP says, in one line."""
    if not isinstance(detail, list):
        return str(detail)
    return "; ".join(f"{one['place']}: {one['problem']}" for one in detail)


def _error(status: int, problem: str, headers: dict[str, str] | None = None) -> Response:
    return Response(error_body(problem), status, headers, media_type="application/json")
