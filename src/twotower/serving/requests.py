"""What is asked of a recommender, and what it answers; for the command line, HTTP and Triton alike.

Plain values without a web framework. A request that cannot be answered is a `RequestError` in the
place of its answer, so that one bad request does not spoil those that are answered together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from twotower.serving.ids import ItemId

Operator: TypeAlias = Literal["in", "not_in", "at_least", "at_most"]
Source: TypeAlias = Literal["model", "popular"]


class RequestError(ValueError):
    """A request that cannot be answered.

    Args:
        place: Which field of the request, such as ``history`` or ``filters[0].column``.
        problem: What was received and what is allowed.
    """

    def __init__(self, place: str, problem: str) -> None:
        self.place = place
        super().__init__(f"{place}: {problem}")


class UnknownUser(RequestError):  # noqa: N818 - what it is, in a user's words
    """The bundle does not know the user."""

    def __init__(self, problem: str) -> None:
        super().__init__("user", problem)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What an item must be like to be shown; an item without a value does not pass.

    Of a column of lists, and of text that a ``tags`` feature splits, one value that fits is enough;
    for ``not_in`` none may be among the values.

    Args:
        column: A column of the item table, such as ``country`` or ``in_stock``.
        operator: ``in`` or ``not_in`` some values, ``at_least`` or ``at_most`` a number or a time.
        values: The values, of the column's type: text, numbers, booleans; times as ISO 8601 text or
            seconds since 1970; just one for ``at_least`` and ``at_most``.
    """

    column: str
    operator: Operator
    values: Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request.

    Args:
        user: Id of a known user, or None.
        history: Ids of items, oldest first, that stand in for or follow the known history; for a
            model that reads times they happen at the time of the request.
        user_features: Values by column for a user whom the bundle does not know.
        context: Values of context columns by name; what is missing counts as unknown.
        k: How many items.
        filters: All of them must let an item pass.
        seconds: Time of the request, seconds since 1970 UTC; None for now.
    """

    user: ItemId | None = None
    history: Sequence[ItemId] = ()
    user_features: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    k: int = 10
    filters: Sequence[Filter] = ()
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended item.

    Args:
        item_id: External id.
        title: The item's title, or its id where it has none.
        probability: Of the ranker; None without one.
        retrieval_score: Of the two towers; None for popular items.
        retrieval_rank: Place among the candidates, 1 at the top; None for popular items.
        reason: Why it is shown, in words.
    """

    item_id: ItemId
    title: str
    probability: float | None
    retrieval_score: float | None
    retrieval_rank: int | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one request.

    Args:
        items: At most ``k``, best first.
        version: Of the bundle that gave it.
        source: ``model``, or ``popular`` where nothing is known of the user.
        missing: How many of the ``k`` the filters left no item for.
        seconds: Time spent by stage: ``features``, ``query_tower``, ``index``, ``ranker``,
            ``describe``; of all requests that were answered together.
    """

    items: Sequence[Recommendation]
    version: str
    source: Source
    missing: int
    seconds: Mapping[str, float]
