"""The demo page: its files, and under ``/page`` the data that only it asks for.

The page recommends through ``/v1`` like any client. What it needs beyond that is looked up by one
thread of its own, so that a search through a million titles holds up no recommendation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from weakref import WeakKeyDictionary

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.staticfiles import StaticFiles
from pydantic import Field
from starlette.types import Scope

from twotower.serving.page_data import MAX_LISTED, PageData
from twotower.serving.request_fields import MAX_HISTORY, MAX_K, MAX_TEXT
from twotower.serving.server.body import LimitedRoute, Refusal
from twotower.serving.server.generation import Generation
from twotower.serving.server.micro_batches import Overloaded
from twotower.serving.server.routes import json_response, service_of
from twotower.serving.server.wire import Asked, Id

Value = TypeVar("Value")
Function = Callable[[PageData], Value]

MAX_WAITING = 64
# Nothing but what this server gives; no text of a title is ever read as markup.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

Text = Annotated[str, Query(max_length=MAX_TEXT)]
Limit = Annotated[int, Query(ge=1, le=MAX_LISTED)]


class Lookups:
    """Looks things up for the page, one at a time and in a thread."""

    def __init__(self) -> None:
        self._data: WeakKeyDictionary[Generation, PageData] = WeakKeyDictionary()
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def ask(self, generation: Generation, function: Function[Value]) -> Value:
        """What a function finds in a bundle.

        Args:
            generation: The bundle.
            function: Called in the thread.

        Raises:
            Overloaded: When too many wait.
        """
        if self._waiting >= MAX_WAITING:
            raise Overloaded("full")
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(self._look, generation, function)
        finally:
            self._waiting -= 1

    def _look(self, generation: Generation, function: Function[Value]) -> Value:
        data = self._data.get(generation)
        if data is None:
            data = self._data[generation] = PageData(generation.recommender)
        return function(data)


class PlacesBody(Asked):
    """Which items are to be found on the map."""

    items: Annotated[list[Id], Field(max_length=MAX_HISTORY + MAX_K)]


router = APIRouter(prefix="/page", route_class=LimitedRoute, include_in_schema=False)


class PageFiles(StaticFiles):
    """The files of the page, with headers that shut out whatever is none of them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page and what it asks for.

    Args:
        app: The application; its state holds the service.
    """
    files = PageFiles(directory=Path(__file__).parents[1] / "page")

    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    app.state.lookups = Lookups()
    app.include_router(router)
    app.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/static", files, name="static")


@router.get("/summary")
async def summary(request: Request) -> Response:
    """What is served."""
    return await _found(request, "summary", lambda data: data.summary())


@router.get("/users")
async def users(request: Request, prefix: Text = "", limit: Limit = 12) -> Response:
    """Ids of users that begin with a text."""
    return await _found(request, "users", lambda data: data.users(prefix, limit=limit))


@router.get("/random-user")
async def random_user(request: Request) -> Response:
    """Id of any user."""
    return await _found(request, "user", lambda data: data.random_user())


@router.get("/items")
async def items(request: Request, text: Text = "", limit: Limit = 12) -> Response:
    """Items by title or id."""
    return await _found(request, "items", lambda data: data.items(text, limit=limit))


@router.get("/history")
async def history(request: Request, user: Text) -> Response:
    """The latest events of a user."""

    def of_user(data: PageData) -> object:
        found = data.history(user)
        if found is None:
            raise Refusal(422, ("user", f"{user!r} is unknown"))
        return found

    return await _found(request, "history", of_user)


@router.get("/filters")
async def filters(request: Request) -> Response:
    """What the columns of the items offer to choose from."""
    return await _found(request, "filters", lambda data: data.filters)


@router.get("/map")
async def points(request: Request) -> Response:
    """A sample of the items on the map."""
    return await _found(request, "points", lambda data: data.points)


@router.post("/places")
async def places(body: PlacesBody, request: Request) -> Response:
    """Where some items lie on the map."""
    catalogue = service_of(request).generation.recommender.items
    return await _found(request, "points", lambda data: data.places(body.items, catalogue))


async def _found(request: Request, name: str, function: Function[Any]) -> Response:
    """What a function finds, under a name, with the version that it was found in."""
    generation = service_of(request).generation
    lookups: Lookups = request.app.state.lookups
    found = await lookups.ask(generation, function)
    return json_response({name: found, "version": generation.version})
