"""Users whom the bundle does not know are answered as somebody new."""

from __future__ import annotations

from twotower.export.bundle import Bundle
from twotower.serving.recommender import Recommender
from twotower.serving.replies import Reply, reply_to
from twotower.serving.requests import Request, RequestError

NOON = 1_705_320_000.0


def items(reply: Reply | RequestError) -> list:
    assert isinstance(reply, Reply)
    return list(reply.answer.items)


def test_an_unknown_user_is_somebody_new(recommender: Recommender, bundle: Bundle) -> None:
    known = bundle.users.ids[3].as_py()
    history = [bundle.items.ids[5].as_py()]
    replies = reply_to(
        recommender,
        [
            Request(user="nobody", history=history, k=4, seconds=NOON),
            Request(user=known, k=3, seconds=NOON),
            Request(history=history, k=4, seconds=NOON),
            Request(user="nobody", k=2),
            Request(k=2),
            Request(user="nobody", history=["nothing"]),
            Request(user=known, k=0),
        ],
    )
    assert items(replies[0]) == items(replies[2])
    assert len(items(replies[1])) == 3
    assert items(replies[3]) == items(replies[4])
    assert [r.known_user for r in replies[:5]] == [False, True, False, False, False]
    assert [r.answer.source for r in replies[:5]] == [*["model"] * 3, *["popular"] * 2]
    assert (
        str(replies[5])
        == "history: unknown items nothing; known are 80 items such as i00000, i00001, i00002"
    )
    assert str(replies[6]) == "k: must be at least 1, got 0"


def test_no_requests_no_replies(recommender: Recommender) -> None:
    assert reply_to(recommender, []) == []
