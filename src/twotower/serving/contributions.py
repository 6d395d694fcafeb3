"""What every feature does for an item, for the retrieval's score and for the ranker's logit.

By occlusion, see `twotower.serving.occlusion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.schema import POSITION, RETRIEVAL_RANK, RETRIEVAL_SCORE, TIMESTAMP
from twotower.serving.asked import Asked
from twotower.serving.explanation import Contribution
from twotower.serving.ids import find_rows
from twotower.serving.occlusion import (
    HISTORY,
    logit_contributions,
    score_contributions,
    variants,
)
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request

Array = npt.NDArray[Any]

RETRIEVAL = "retrieval"
MOST_CHARACTERS = 40


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A request and an item, as the models see them.

    Args:
        asked: The request.
        row: The item.
        retrieval: Score and rank of the retrieval, by column.
        usual: The medians of all candidates, by column.
    """

    asked: Asked
    row: int
    retrieval: Mapping[str, float]
    usual: Mapping[str, float]


def contributions(recommender: Recommender, pair: Pair) -> tuple[list[Contribution], float | None]:
    """Contributions of all features, the weightiest first, and the ranker's logit.

    Args:
        recommender: Whose models these are.
        pair: Request and item.
    """
    scores = _of_towers(recommender, pair)
    logit, logits = _of_ranker(recommender, pair)
    names = list(dict.fromkeys([*logits, *scores]))
    sides = {feature.name: feature.side for feature in recommender.bundle.pipeline.spec.features}
    found = [
        Contribution(
            feature=name,
            side=HISTORY if name == HISTORY else sides.get(name, RETRIEVAL),
            value=_value(recommender, pair, name),
            score=scores.get(name),
            logit=logits.get(name),
        )
        for name in names
    ]
    return sorted(found, key=lambda one: _weight(one, has_ranker=logit is not None)), logit


def _weight(one: Contribution, *, has_ranker: bool) -> tuple[float, float]:
    logit, score = -abs(one.logit or 0.0), -abs(one.score or 0.0)
    return (logit, score) if has_ranker else (score, logit)


def _of_towers(recommender: Recommender, pair: Pair) -> dict[str, float]:
    inputs = recommender.bundle.pipeline.inputs("retrieval")
    item_columns = _item_columns(recommender, pair.row)
    item = recommender.item_tower.run(item_columns)[0]  # (D,)
    query = recommender.embed(pair.asked.columns)[0]  # (D,)
    queries = variants(pair.asked.columns, inputs.of("user", "context"), {})
    items = variants(item_columns, inputs.of("item"), {})
    _, of_query = score_contributions(recommender.query_tower, queries, item)
    _, of_item = score_contributions(recommender.item_tower, items, query)
    return of_query | of_item


def _of_ranker(recommender: Recommender, pair: Pair) -> tuple[float | None, dict[str, float]]:
    if recommender.ranker is None:
        return None, {}
    inputs = recommender.bundle.pipeline.inputs("ranking")
    columns = pair.asked.columns | _item_columns(recommender, pair.row)
    columns |= {name: np.array([value], np.float32) for name, value in pair.retrieval.items()}
    used = {
        name: value for name, value in pair.usual.items() if name in recommender.ranker.model.inputs
    }
    return logit_contributions(recommender.ranker.model, variants(columns, inputs.features, used))


def _item_columns(recommender: Recommender, row: int) -> dict[str, Array]:
    at = np.array([row])
    return {name: np.asarray(column[at]) for name, column in recommender.items.columns.items()}


def _value(recommender: Recommender, pair: Pair, name: str) -> str:
    """What a feature holds, in words."""
    if name == HISTORY:
        return _counted(len(pair.asked.events), "event")
    if name in (RETRIEVAL_SCORE, RETRIEVAL_RANK):
        return f"{pair.retrieval[name]:.4g}"
    feature = next(f for f in recommender.bundle.pipeline.spec.features if f.name == name)
    request, column = pair.asked.request, feature.source_column
    if feature.side == "item":
        value = recommender.items.values(pair.row).get(column)
    elif feature.side == "context":
        value = {**_assumed(request), **request.context}.get(column)
    elif request.user is None:
        value = request.user_features.get(column)
    else:
        value = _of_user(recommender, request.user, column)
    if feature.kind == "vector":
        return "" if value is None else _counted(len(value), "number")
    text = "" if value is None else _plain(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def _assumed(request: Request) -> dict[str, object]:
    """What a request means that says nothing of it."""
    seconds = request.seconds
    when = "now" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
    return {POSITION: 1, TIMESTAMP: when}


def _of_user(recommender: Recommender, user: int | str, column: str) -> object:
    users = recommender.bundle.users
    if users is None or column not in users.table.column_names:
        return None
    (row,) = find_rows(users.ids, [user]).tolist()
    return users.table.column(column)[row].as_py()


def _plain(value: object) -> str:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return ", ".join(map(str, value)) if is_list else str(value)  # type: ignore[call-overload]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
