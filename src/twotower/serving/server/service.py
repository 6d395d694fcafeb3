"""What the routes ask: answers out of the generation that is served, through the queue.

>>> # reply = await service.answer(Request(user="u1"), deadline=0.2)
>>> # lists = await service.call(lambda generation: similar(generation.recommender), deadline=0.2)

A route that needs more than recommendations gives a function of the generation; all that it returns
is of that one bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from twotower.serving.requests import Answer, Request, RequestError, UnknownUser
from twotower.serving.server.generation import Generation, Watcher, open_generation
from twotower.serving.server.metrics import Metrics
from twotower.serving.server.micro_batches import MicroBatches, Overloaded, Waiting
from twotower.serving.server.settings import ServerSettings

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer, and whether the bundle knows the user.

    Args:
        answer: The answer.
        known_user: False for a user whom the bundle does not know, and who was answered as
            somebody new with the history and the features of the request.
    """

    answer: Answer
    known_user: bool


Function = Callable[[Generation], object]


class Service:
    """A bundle that is served by this process.

    Args:
        settings: Where the bundle is and what the limits are.

    Raises:
        ValueError: When the bundle cannot be opened.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.generation = open_generation(Path(settings.bundle))
        self.metrics.serves(self.generation)
        self.stopping = False
        self._batches = MicroBatches[Request | Function, object](
            self._work, max_batch=settings.max_batch, max_waiting=settings.max_waiting
        )
        self._watcher = Watcher(
            Path(settings.bundle),
            self.generation,
            seconds=settings.reload_seconds,
            swap=self._swap,
            told=self.metrics.refusal,
        )

    async def answer(self, request: Request, *, deadline: float | None = None) -> Reply:
        """Answer a request, together with others that wait.

        Args:
            request: The request.
            deadline: Seconds from now; None for that of the settings.

        Raises:
            RequestError: When it cannot be answered.
            Overloaded: When there was no time for it.
        """
        reply = await self._submit(request, deadline)
        if not isinstance(reply, Reply):
            raise TypeError(f"no reply: {reply!r}")
        return reply

    async def call(
        self, function: Callable[[Generation], Value], *, deadline: float | None = None
    ) -> Value:
        """Have a function called with the generation that is served, where answers are computed.

        Args:
            function: Its value is returned, what it raises is raised.
            deadline: Seconds from now; None for that of the settings.

        Raises:
            Overloaded: When there was no time for it.
        """
        return await self._submit(function, deadline)  # type: ignore[return-value]

    def close(self) -> None:
        """Answer what waits and end the threads."""
        self.stopping = True
        self._watcher.close()
        self._batches.close()

    async def _submit(self, work: Request | Function, deadline: float | None) -> object:
        try:
            return await self._batches.submit(
                work, deadline=self.settings.deadline_ms / 1000 if deadline is None else deadline
            )
        except Overloaded as error:
            self.metrics.overloaded(error.reason)
            raise
        finally:
            self.metrics.waiting(len(self._batches))

    def _swap(self, generation: Generation) -> None:
        self.generation = generation
        self.metrics.serves(generation)
        self.metrics.swapped_bundle()

    def _work(self, batch: Sequence[Waiting[Request | Function, object]]) -> list[object]:
        """Results of one batch, all of one generation."""
        generation = self.generation
        self.metrics.batch([time.monotonic() - one.since for one in batch])
        works = [one.work for one in batch]
        requests = [work for work in works if isinstance(work, Request)]
        replies = iter(self._replies(generation, requests) if requests else [])
        return [
            next(replies) if isinstance(work, Request) else _called(work, generation)
            for work in works
        ]

    def _replies(
        self, generation: Generation, requests: Sequence[Request]
    ) -> list[Reply | RequestError]:
        answers = generation.recommender.answer(requests)
        known = [not isinstance(answer, UnknownUser) for answer in answers]
        again = [
            replace(request, user=None)
            for request, is_known in zip(requests, known, strict=True)
            if not is_known
        ]
        if again:
            new = iter(generation.recommender.answer(again))
            answers = [
                answer if is_known else next(new)
                for answer, is_known in zip(answers, known, strict=True)
            ]
        self.metrics.stages(answers)
        return [
            answer
            if isinstance(answer, RequestError)
            else Reply(answer=answer, known_user=is_known)
            for answer, is_known in zip(answers, known, strict=True)
        ]


def _called(function: Function, generation: Generation) -> object:
    try:
        return function(generation)
    except Exception as error:
        return error
