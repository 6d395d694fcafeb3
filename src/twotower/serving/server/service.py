"""What the routes ask: answers out of the generation that is served, through the queue.

A route that needs more than recommendations gives a function of the generation; all that it returns
is of that one bundle.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from twotower.serving.ids import ItemId
from twotower.serving.replies import Reply, reply_to
from twotower.serving.requests import Request, RequestError
from twotower.serving.server.generation import Generation, Watcher, open_generation
from twotower.serving.server.metrics import Metrics
from twotower.serving.server.micro_batches import MicroBatches, Overloaded, Waiting
from twotower.serving.server.settings import ServerSettings
from twotower.serving.store import Lookup, StoreReader, open_reader
from twotower.serving.traffic import TrafficRecorder

Value = TypeVar("Value")

Function = Callable[[Generation], object]

FOLLOW_SECONDS = 0.1
MAX_ASIDE = 64


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
        opened = partial(
            open_generation,
            num_threads=settings.threads,
            journal=None if settings.journal is None else Path(settings.journal),
        )
        self.generation = opened(Path(settings.bundle))
        self.metrics.serves(self.generation)
        self._traffic: TrafficRecorder | None = None
        self._record(self.generation)
        self._store = _store(settings)
        self._aside = 0
        self._in_turn = ThreadPoolExecutor(1, thread_name_prefix="in-turn")
        self.stopping = False
        self._batches = MicroBatches[Request | Function, object](
            self._work,
            joins=_joins,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
        )
        self._watcher = Watcher(
            Path(settings.bundle),
            opened,
            self.generation,
            seconds=settings.reload_seconds,
            swap=self._swap,
            told=self.metrics.refusal,
        )
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._follower.start()

    @property
    def is_alive(self) -> bool:
        """Whether there is a thread that answers."""
        return self._batches.is_alive

    @property
    def is_full(self) -> bool:
        """Whether one more request would be refused."""
        return len(self._batches) >= self.settings.max_waiting

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

    async def lookup(self, user: ItemId, *, k: int | None, deadline: float | None = None) -> Lookup:
        """What the batch store holds for a user; no model is asked.

        Args:
            user: External id.
            k: How many items at most; None for all that are stored.
            deadline: Seconds from now; None for that of the settings.

        Raises:
            RequestError: When there is no store.
            StoreError: When it cannot be read.
            Overloaded: When it did not answer in time.
        """
        store = self._store
        if store is None:
            raise RequestError("mode", "this server has no batch_store; POST asks the models")
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds(deadline)):
                return await self.aside(lambda _: store.lookup(user, k=k))
        except TimeoutError as error:
            self.metrics.overloaded("deadline")
            raise Overloaded("deadline") from error
        finally:
            self.metrics.looked_up(time.monotonic() - started)

    async def aside(
        self, function: Callable[[Generation], Value], *, in_turn: bool = False
    ) -> Value:
        """Have a function called with the generation in a thread beside the one that answers.

        Args:
            function: Its value is returned, what it raises is raised.
            in_turn: Whether one of this kind is called after the other, as it takes long.

        Raises:
            Overloaded: When too many are called, or wait to be.
        """
        if self._aside >= MAX_ASIDE:
            self.metrics.overloaded("full")
            raise Overloaded("full")
        self._aside += 1
        try:
            pool, generation = self._in_turn if in_turn else None, self.generation
            return await asyncio.get_running_loop().run_in_executor(pool, function, generation)
        finally:
            self._aside -= 1

    def close(self) -> None:
        """Answer what waits and end the threads."""
        self.stopping = True
        self._stop.set()
        self._watcher.close()
        self._follower.join()
        self._in_turn.shutdown()
        self._batches.close()
        if self._traffic is not None:
            self._traffic.close()

    async def _submit(self, work: Request | Function, deadline: float | None) -> object:
        try:
            return await self._batches.submit(work, deadline=self._seconds(deadline))
        except Overloaded as error:
            self.metrics.overloaded(error.reason)
            raise
        finally:
            self.metrics.waiting(len(self._batches))

    def _seconds(self, deadline: float | None) -> float:
        return self.settings.deadline_ms / 1000 if deadline is None else deadline

    def _record(self, generation: Generation) -> None:
        """Keep a sample of what a generation answers, if it is asked for."""
        if self.settings.traffic is None:
            return
        before = self._traffic
        self._traffic = TrafficRecorder(
            Path(self.settings.traffic),
            generation.built.bundle,
            per_second=self.settings.traffic_per_second,
            days=self.settings.traffic_days,
        )
        generation.built.observe = self._traffic.record
        if before is not None:
            before.close()

    def _swap(self, generation: Generation) -> None:
        self._record(generation)
        self.generation = generation
        self.metrics.serves(generation)
        self.metrics.swapped_bundle()

    def _follow(self) -> None:
        while not self._stop.wait(FOLLOW_SECONDS):
            self.generation.follow()

    def _work(self, batch: Sequence[Waiting[Request | Function, object]]) -> Sequence[object]:
        """Results of one batch, all of one generation."""
        generation = self.generation
        generation.follow()  # What was changed before a request came holds for its answer.
        self.metrics.batch([time.monotonic() - one.since for one in batch])
        works = [one.work for one in batch]
        requests = [work for work in works if isinstance(work, Request)]
        if not requests:
            return [work(generation) for work in works if not isinstance(work, Request)]
        replies = reply_to(generation.recommender, requests)
        self.metrics.stages([one.answer for one in replies if isinstance(one, Reply)])
        return replies


def _store(settings: ServerSettings) -> StoreReader | None:
    if settings.batch_store is None:
        return None
    hours = settings.batch_max_age_hours
    return open_reader(settings.batch_store, max_age=None if hours is None else 3600 * hours)


def _joins(work: Request | Function) -> bool:
    return isinstance(work, Request)
