"""A thousand requests of every kind, to be answered in several ways that must agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twotower.export.bundle import Bundle
from twotower.serving.requests import Request

NOON = 1_705_320_000.0  # 2024-01-15 12:00 UTC, inside the world's month
NUM_GOLDEN = 1000


def golden_requests(bundle: Bundle, users: Sequence[Mapping[str, Any]]) -> list[Request]:
    """Known users, unknown ones, and nobody; histories, features and context in part or not at all.

    Args:
        bundle: Of the built-in world.
        users: Features of its users, from the raw table.
    """
    rng = np.random.default_rng(5)
    items, known = bundle.items.ids.to_pylist(), bundle.users.ids.to_pylist()

    def chance(share: float) -> bool:
        return bool(rng.random() < share)

    def one(number: int) -> Request:
        user = (
            known[number % len(known)] if chance(0.5) else f"new{number}" if chance(0.4) else None
        )
        features = dict(users[int(rng.integers(len(users)))])
        features.pop("user_id")
        kept = {name: value for name, value in features.items() if chance(0.6)}
        context = {"device": ("phone", "desktop", "toaster")[int(rng.integers(3))]}
        history = [items[int(row)] for row in rng.integers(0, len(items), int(rng.integers(0, 9)))]
        return Request(
            user=user,
            history=history if chance(0.5) else [],
            user_features=kept if chance(0.5) else {},
            context=context if chance(0.5) else {},
            k=int(rng.integers(1, 13)),
            filters=[],
            seconds=NOON + 3600.0 * int(rng.integers(0, 100)),
        )

    return [one(number) for number in range(NUM_GOLDEN)]


def tensors_of_requests(requests: Sequence[Request]) -> dict[str, np.ndarray]:
    """What a client sends for them: the inputs of the model, padded."""
    longest = max(len(request.history) for request in requests)

    def texts(values: Sequence[str]) -> np.ndarray:
        return np.array([[value] for value in values], object)

    return {
        "user": texts(["" if request.user is None else request.user for request in requests]),
        "history": np.array(
            [[*r.history, *[""] * (longest - len(r.history))] for r in requests], object
        ).reshape(len(requests), longest),
        "user_features": texts([json.dumps(request.user_features) for request in requests]),
        "context": texts([json.dumps(request.context) for request in requests]),
        "k": np.array([[request.k] for request in requests], np.int64),
        "seconds": np.array([[request.seconds] for request in requests], np.float64),
    }


def assert_same_answers(
    requests: Sequence[Request], replies: Sequence[Any], outputs: Mapping[str, np.ndarray]
) -> None:
    """Tensors of a call say what the recommender answers, to 1e-5.

    Args:
        requests: B of them.
        replies: What `reply_to` says to them.
        outputs: (B, k) or (B, 1) each; texts may be bytes.
    """

    def text(value: object) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    for row, (request, reply) in enumerate(zip(requests, replies, strict=True)):
        answer = reply.answer
        num, width = len(answer.items), outputs["item_id"].shape[1]
        assert request.k <= width
        assert num == request.k - answer.missing
        for name in ("item_id", "title", "reason"):
            shown = [text(value) for value in outputs[name][row]]
            assert shown == [str(getattr(i, name)) for i in answer.items] + [""] * (width - num)
        for name in ("probability", "retrieval_score"):
            expected = [getattr(item, name) for item in answer.items]
            expected = [np.nan if value is None else value for value in expected]
            found = outputs[name][row].astype(float)
            np.testing.assert_allclose(found[:num], expected, atol=1e-5, rtol=0)
            assert np.isnan(found[num:]).all()
        ranks = [item.retrieval_rank or 0 for item in answer.items]
        assert outputs["retrieval_rank"][row].tolist() == ranks + [0] * (width - num)
        assert outputs["missing"][row].tolist() == [answer.missing]
        assert text(outputs["source"][row, 0]) == answer.source
        assert text(outputs["version"][row, 0]) == answer.version
        assert outputs["known_user"][row].tolist() == [reply.known_user]
