"""The routes under ``/v1``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import numpy as np
import pydantic_core
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic.json_schema import SkipJsonSchema

from twotower.serving.explain import explain as explain_item
from twotower.serving.explanation import Explanation
from twotower.serving.freshness import Freshness
from twotower.serving.item_journal import JournalError
from twotower.serving.request_fields import MAX_K, MAX_TEXT
from twotower.serving.requests import RequestError, UnknownUser
from twotower.serving.server.body import LimitedRoute, Refusal
from twotower.serving.server.generation import Generation
from twotower.serving.server.service import Service
from twotower.serving.server.wire import (
    BatchAnswer,
    ChangesAnswer,
    ExplainBody,
    Problems,
    RecommendAnswer,
    RecommendBody,
    RemoveBody,
    SimilarAnswer,
    SimilarBody,
    UpsertBody,
    item_json,
    lookup_json,
    reply_json,
    to_filters,
)
from twotower.serving.similar import similar_to_item, similar_to_vector

log = logging.getLogger(__name__)

MAX_DEADLINE_MS = 60_000

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problems, "description": "No JSON, or no JSON that is allowed."},
    401: {"model": Problems, "description": "The API key is missing or wrong."},
    408: {"model": Problems, "description": "The body does not come."},
    413: {"model": Problems, "description": "The body is too long."},
    415: {"model": Problems, "description": "The body is not called JSON."},
    422: {"model": Problems, "description": "A field is wrong, or names what is unknown."},
    429: {"model": Problems, "description": "Too many requests of this client are in flight."},
    503: {"model": Problems, "description": "No time for it; `Retry-After` says when."},
}

Deadline = Annotated[
    int | SkipJsonSchema[None],
    Header(
        alias="X-Deadline-Ms",
        ge=1,
        le=MAX_DEADLINE_MS,
        description="Milliseconds after which the answer is worth nothing.",
    ),
]

router = APIRouter(prefix="/v1", route_class=LimitedRoute, responses=REFUSALS)


def service_of(request: Request) -> Service:
    """The service that answers in this process."""
    service: Service = request.app.state.service
    return service


def json_response(value: object) -> Response:
    """A value as JSON; what is not finite is null."""
    content = pydantic_core.to_json(value, inf_nan_mode="null")
    return Response(content, media_type="application/json")


@router.post("/recommend", response_model=RecommendAnswer)
async def recommend(body: RecommendBody, request: Request, deadline: Deadline = None) -> Response:
    """Recommend items to a user, known or new."""
    reply = await service_of(request).answer(body.request(), deadline=_seconds(deadline))
    return json_response(reply_json(reply, explain=body.explain))


@router.get(
    "/recommend",
    response_model=BatchAnswer,
    responses={404: {"model": Problems, "description": "Nothing is stored for the user."}},
)
async def stored(
    request: Request,
    user: Annotated[str, Query(max_length=MAX_TEXT, description="Id of a user.")],
    mode: Annotated[Literal["batch"], Query(description="POST asks the models.")],
    k: Annotated[int, Query(ge=1, le=MAX_K, description="How many items at most.")] = 10,
    deadline: Deadline = None,
) -> Response:
    """Look up what `twotower batch` has stored for a user, or else the popular items."""
    found = await service_of(request).lookup(user, k=k, deadline=_seconds(deadline))
    if found.status == "missing":
        raise Refusal(404, ("user", found.note))
    return json_response(lookup_json(found))


@router.post("/similar", response_model=SimilarAnswer)
async def similar(body: SimilarBody, request: Request, deadline: Deadline = None) -> Response:
    """Items like an item, or like something of which a content vector is known."""
    if (body.item is None) == (body.vector is None):
        given = "neither" if body.item is None else "both"
        raise Refusal(422, ("body", f"give item or vector, got {given}"))
    if body.feature is not None and body.vector is None:
        raise Refusal(422, ("feature", "says what `vector` is, and that was not given"))

    def answer(generation: Generation) -> dict[str, Any]:
        recommender, filters = generation.recommender, to_filters(body.filters)
        try:
            if body.item is not None:
                found = similar_to_item(recommender, body.item, k=body.k, filters=filters)
            else:
                vector = np.asarray(body.vector, np.float32)
                found = similar_to_vector(
                    recommender, vector, k=body.k, feature=body.feature, filters=filters
                )
        except RequestError:
            raise
        except ValueError as error:
            place = "item" if body.item is not None else "vector"
            raise Refusal(422, (place, str(error))) from error
        items = [item_json(item, explain=True) for item in found]
        return {"items": items, "version": generation.version}

    return json_response(await service_of(request).call(answer, deadline=_seconds(deadline)))


@router.post("/explain", response_model=Explanation)
async def explain(body: ExplainBody, request: Request) -> Response:
    """Where an item was won or lost; slow, and one at a time."""

    def find(generation: Generation) -> Explanation:
        recommender, asked = generation.recommender, body.request()
        try:
            return explain_item(recommender, asked, body.item)
        except UnknownUser:
            return explain_item(recommender, replace(asked, user=None), body.item)

    found = await service_of(request).aside(find, in_turn=True)
    return json_response(asdict(found))


@router.post("/items:upsert", response_model=ChangesAnswer)
async def upsert(body: UpsertBody, request: Request) -> Response:
    """Add or change items; the next request to any process sees them."""
    return await _change(request, lambda freshness: freshness.upsert(body.items))


@router.post("/items:remove", response_model=ChangesAnswer)
async def remove(body: RemoveBody, request: Request) -> Response:
    """Show some items no more, from the next request on."""
    return await _change(request, lambda freshness: freshness.remove(body.ids))


async def _change(request: Request, change: Callable[[Freshness], int]) -> Response:
    def apply(generation: Generation) -> int:
        if generation.freshness is None:
            raise RequestError(
                "path", "this server takes no changes; it was started without journal"
            )
        try:
            return change(generation.freshness)
        except (OSError, JournalError) as error:
            log.exception("changes of items are not written")
            raise Refusal(503, ("server", "the journal cannot be written; see the log")) from error

    return json_response({"changed": await service_of(request).aside(apply)})


def _seconds(deadline: int | None) -> float | None:
    return None if deadline is None else deadline / 1000
