"""The application: routes, what comes before and after them, and what is said when they fail."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from twotower.data.schema import DataError
from twotower.serving.requests import RequestError
from twotower.serving.server.access import OVERLOADED, RETRY_AFTER, Access
from twotower.serving.server.body import problems_of
from twotower.serving.server.inference_routes import router as inference_router
from twotower.serving.server.micro_batches import Overloaded
from twotower.serving.server.page import add_page
from twotower.serving.server.routes import router, service_of
from twotower.serving.server.service import Service
from twotower.serving.stored_list import StoreError

log = logging.getLogger(__name__)

MAX_PROBLEM = 2000  # what a client sent may be part of it
PLACES = {404: "path", 405: "method"}


def create_app(service: Service, *, api_key: str | None = None) -> FastAPI:
    """The ASGI application.

    Args:
        service: Answers; closed when the application ends.
        api_key: What a client must show; None to let everybody in.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="twotower",
        version=version("twotower"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    app.include_router(inference_router)
    app.get("/healthz")(healthz)
    app.get("/readyz")(readyz)
    app.get("/metrics", include_in_schema=False)(metrics)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(RequestError)(_wrong)
    app.exception_handler(DataError)(_unfit)
    app.exception_handler(StoreError)(_unreadable)
    app.exception_handler(Overloaded)(_overloaded)
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(Exception)(_failed)
    app.add_middleware(Access, service=service, api_key=api_key)
    if service.settings.page:
        add_page(app)
    return app


async def healthz(request: Request) -> JSONResponse:
    """Whether the process lives; one that does not had better be started again."""
    alive = service_of(request).is_alive
    return JSONResponse({"status": "alive" if alive else "dead"}, 200 if alive else 503)


async def readyz(request: Request) -> JSONResponse:
    """Whether it answers, and out of which bundle."""
    service = service_of(request)
    status = "stopping" if service.stopping else "ready"
    found = {
        "status": status,
        "name": service.generation.name,
        "version": service.generation.version,
    }
    return JSONResponse(found, 200 if status == "ready" else 503)


async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _problems(status: int, *problems: tuple[str, str]) -> JSONResponse:
    listed = [{"place": place, "problem": text[:MAX_PROBLEM]} for place, text in problems]
    return JSONResponse({"problems": listed}, status, RETRY_AFTER if status == 503 else None)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return _problems(422, *problems_of(error.errors(), error.body))


async def _wrong(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestError):
        raise error
    return _problems(422, (error.place, str(error).removeprefix(f"{error.place}: ")))


async def _unfit(_: Request, error: Exception) -> JSONResponse:
    """Values that a feature cannot take."""
    problems = error.problems if isinstance(error, DataError) else (str(error),)
    return _problems(422, *(("request", problem) for problem in problems))


async def _unreadable(_: Request, error: Exception) -> JSONResponse:
    log.error("batch store: %s", error)
    return _problems(503, ("server", "the batch store cannot be read; the log says more"))


async def _overloaded(_: Request, error: Exception) -> JSONResponse:
    return _problems(503, ("server", OVERLOADED[str(error)]))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    detail: object = error.detail
    if not isinstance(detail, list):  # no `Refusal` but of the framework
        place = PLACES.get(error.status_code, "request")
        problem = f"{detail}: {request.method}" if place == "method" else str(detail)
        detail = [{"place": place, "problem": problem}]
    return JSONResponse({"problems": detail}, error.status_code, error.headers)


async def _failed(_: Request, __: Exception) -> JSONResponse:
    return _problems(500, ("server", "unexpected error; its log says more"))
