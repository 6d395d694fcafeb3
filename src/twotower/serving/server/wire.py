"""What goes over the wire, as JSON: one model for each of `twotower.serving.requests`.

Numbers of entries and lengths of texts are limited here, so that the OpenAPI document says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from twotower.serving.ids import ItemId
from twotower.serving.replies import Reply
from twotower.serving.request_fields import (
    END_OF_9999,
    MAX_COLUMNS,
    MAX_FILTERS,
    MAX_HISTORY,
    MAX_K,
    MAX_TEXT,
    MAX_VALUES,
)
from twotower.serving.requests import Filter, Operator, Recommendation, Request, Source
from twotower.serving.store import Lookup, Status

MAX_CHANGES = 1000

Text: TypeAlias = Annotated[str, Field(max_length=MAX_TEXT)]
Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Whole: TypeAlias = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
# Far from where the length of a float32 vector overflows.
Component: TypeAlias = Annotated[float, Field(ge=-1e15, le=1e15)]
Id: TypeAlias = Text | Whole
Scalar: TypeAlias = bool | Whole | Number | Text
Value: TypeAlias = (
    Scalar
    | Annotated[list[Number], Field(max_length=MAX_VALUES)]
    | Annotated[list[Text | None], Field(max_length=MAX_VALUES)]
    | None
)
Values: TypeAlias = Annotated[dict[Name, Value], Field(max_length=MAX_COLUMNS)]
Length: TypeAlias = Annotated[int, Field(ge=1, le=MAX_K)]


class Asked(BaseModel):
    """What a client sends; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class FilterBody(Asked):
    """What an item must be like to be shown; an item without a value does not pass."""

    column: Name = Field(description="A column of the item table.")
    operator: Operator
    values: Annotated[list[Scalar], Field(min_length=1, max_length=MAX_VALUES)]


Filters: TypeAlias = Annotated[list[FilterBody], Field(max_length=MAX_FILTERS)]


def to_filters(bodies: Sequence[FilterBody]) -> list[Filter]:
    """Filters as they are applied."""
    return [Filter(column=one.column, operator=one.operator, values=one.values) for one in bodies]


class QuestionBody(Asked):
    """Whom to recommend items to, and which."""

    user: Id | None = Field(None, description="Id of a user; one unknown counts as somebody new.")
    history: Annotated[list[Id], Field(max_length=MAX_HISTORY)] = Field(
        [], description="Ids of items, oldest first, that follow the known history."
    )
    user_features: Values = Field({}, description="Of a user whom the bundle does not know.")
    context: Values = Field({}, description="What is missing counts as unknown.")
    k: Length = Field(10, description="How many items.")
    filters: Filters = Field([], description="All of them must let an item pass.")
    seconds: Annotated[float, Field(ge=0, le=END_OF_9999)] | None = Field(
        None, description="Time of the request, seconds since 1970 UTC; null for now."
    )

    def request(self) -> Request:
        """As it is answered."""
        return Request(
            user=self.user,
            history=self.history,
            user_features=self.user_features,
            context=self.context,
            k=self.k,
            filters=to_filters(self.filters),
            seconds=self.seconds,
        )


class RecommendBody(QuestionBody):
    """Whom to recommend items to."""

    explain: bool = Field(False, description="Whether to say why, and how long each stage took.")


class ExplainBody(QuestionBody):
    """A request as to `/v1/recommend`, and the item that it is about."""

    item: Id = Field(description="Id of an item.")


class SimilarBody(Asked):
    """What the items are to be like: an item, or a content vector such as of a picture."""

    item: Id | None = Field(None, description="Id of an item.")
    vector: Annotated[list[Component], Field(min_length=1, max_length=MAX_VALUES)] | None = Field(
        None, description="Content vector of something that is no item yet."
    )
    feature: Name | None = Field(None, description="Which vector feature of the items it is.")
    k: Length = Field(10, description="How many items.")
    filters: Filters = Field([], description="All of them must let an item pass.")


class UpsertBody(Asked):
    """Items that are new, or that change."""

    items: Annotated[list[Values], Field(min_length=1, max_length=MAX_CHANGES)] = Field(
        description="Rows of the item table: `item_id` and any columns; the others stay."
    )


class RemoveBody(Asked):
    """Items that are to be shown no more."""

    ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_CHANGES)]


class ChangesAnswer(BaseModel):
    """What became of changes to items."""

    changed: int = Field(description="Items that were taken, or could have been shown before.")


class ItemAnswer(BaseModel):
    """One item; `retrieval_rank` and `reason` are there when they were asked for."""

    item_id: ItemId
    title: str
    probability: float | None
    retrieval_score: float | None
    retrieval_rank: int | None = None
    reason: str | None = None


class RecommendAnswer(BaseModel):
    """At most `k` items, best first."""

    items: list[ItemAnswer]
    version: str = Field(description="Of the bundle that gave the answer.")
    source: Source = Field(description="`popular` where nothing is known of the user.")
    known_user: bool = Field(description="Whether the bundle knows the user.")
    missing: int = Field(description="How many of the k the filters left no item for.")
    seconds: dict[str, float] | None = Field(
        None, description="By stage, of all requests that were answered together."
    )


class SimilarAnswer(BaseModel):
    """At most `k` items, nearest first."""

    items: list[ItemAnswer]
    version: str = Field(description="Of the bundle that gave the answer.")


class BatchAnswer(BaseModel):
    """What `twotower batch` has stored for a user, best first."""

    items: list[ItemAnswer]
    version: str = Field(description="Of the bundle that made the list.")
    source: Source = Field(description="`popular` where the user has no list.")
    status: Status = Field(description="`stale` where the list is older than the server wants.")
    age_seconds: float = Field(description="Since the list was made.")


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    place: str = Field(description="Such as `history` or `filters[0].column`.")
    problem: str = Field(description="What was received and what is allowed.")


class Problems(BaseModel):
    """Why a request was not answered."""

    problems: list[Problem]


def item_json(item: Recommendation, *, explain: bool) -> dict[str, Any]:
    """An item as `ItemAnswer` describes it."""
    found: dict[str, Any] = {
        "item_id": item.item_id,
        "title": item.title,
        "probability": item.probability,
        "retrieval_score": item.retrieval_score,
    }
    if explain:
        found |= {"retrieval_rank": item.retrieval_rank, "reason": item.reason}
    return found


def reply_json(reply: Reply, *, explain: bool) -> dict[str, Any]:
    """An answer as `RecommendAnswer` describes it."""
    answer = reply.answer
    found: dict[str, Any] = {
        "items": [item_json(item, explain=explain) for item in answer.items],
        "version": answer.version,
        "source": answer.source,
        "known_user": reply.known_user,
        "missing": answer.missing,
    }
    if explain:
        found["seconds"] = dict(answer.seconds)
    return found


def lookup_json(found: Lookup) -> dict[str, Any]:
    """A stored list as `BatchAnswer` describes it."""
    return {
        "items": [item_json(item, explain=False) for item in found.items],
        "version": found.version,
        "source": found.source,
        "status": found.status,
        "age_seconds": found.age,
    }
