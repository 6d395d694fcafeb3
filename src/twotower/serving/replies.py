"""Answers for whoever comes: a user whom the bundle does not know is somebody new, not an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twotower.serving.recommender import Recommender
from twotower.serving.requests import Answer, Request, RequestError, UnknownUser


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer, and whether the bundle knows the user.

    Args:
        answer: The answer.
        known_user: False where no user was named, and for a user whom the bundle does not know and
            who was answered as somebody new with the history and the features of the request.
    """

    answer: Answer
    known_user: bool


def reply_to(recommender: Recommender, requests: Sequence[Request]) -> list[Reply | RequestError]:
    """Answer some requests, those of unknown users as if they named none.

    Args:
        recommender: Answers them.
        requests: Any number.

    Returns:
        As many replies in the same order, errors in the place of those that have none.
    """
    answers = recommender.answer(requests)
    unknown = [n for n, answer in enumerate(answers) if isinstance(answer, UnknownUser)]
    if unknown:
        again = recommender.answer([replace(requests[n], user=None) for n in unknown])
        answers = list(answers)
        for number, answer in zip(unknown, again, strict=True):
            answers[number] = answer
    new = set(unknown)
    return [
        answer
        if isinstance(answer, RequestError)
        else Reply(answer=answer, known_user=request.user is not None and number not in new)
        for number, (request, answer) in enumerate(zip(requests, answers, strict=True))
    ]
