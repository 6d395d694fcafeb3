"""Requests that wait are answered together, by one thread.

A request that comes while nothing is under way is answered at once and alone; there is no timer
that waits for company. While a batch is under way others gather, and the thread takes as many of
them as a batch may hold. The queue is bounded, and every request has a deadline: one that is
passed, or that will be before an answer can be there, costs no work.

The idea is that of Clipper's adaptive batching (Crankshaw et al., NSDI 2017) without its delay.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")

# Of the estimate of how long a batch takes, as TCP estimates round trips (RFC 6298): how much the
# newest one counts in the mean and in the deviation, and how many deviations are added.
NEWEST, NEWEST_DEVIATION, DEVIATIONS = 0.125, 0.25, 4


class Overloaded(Exception):  # noqa: N818 - a state, not a fault
    """The request was not answered, for want of time.

    Args:
        reason: ``full`` when too many wait, ``deadline`` when its time is up, ``stopping``.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(eq=False)
class Waiting(Generic[Work, Result]):
    """One piece of work in the queue.

    Args:
        work: What is to be done.
        since: When it came, by `time.monotonic`.
        expires: When its answer is worth nothing any more.
        answered: Told the answer, in the loop that asked.
    """

    work: Work
    since: float
    expires: float
    answered: asyncio.Future[Result] = field(repr=False)

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for the answer."""
        return self.answered.done()


class MicroBatches(Generic[Work, Result]):
    """A bounded queue and the thread that empties it.

    Args:
        answer: Does some pieces of work together; as many results in the same order, an exception
            in the place of a result that is none. Called in the thread.
        joins: Whether a piece may be done with others that may; one that may not is done alone.
        max_batch: Most pieces at a time.
        max_waiting: Most pieces that wait.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Waiting[Work, Result]]], Sequence[Result | Exception]],
        *,
        joins: Callable[[Work], bool],
        max_batch: int,
        max_waiting: int,
    ) -> None:
        self._answer = answer
        self._joins = joins
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._queue: deque[Waiting[Work, Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._mean_seconds = self._deviation = 0.0
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; only a fault of this module could have ended it."""
        return self._thread.is_alive()

    async def submit(self, work: Work, *, deadline: float) -> Result:
        """Have a piece of work done.

        Args:
            work: What is to be done.
            deadline: Seconds from now.

        Raises:
            Overloaded: When it was not done, because too many wait or its time is up.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        one = Waiting[Work, Result](work, now, now + deadline, loop.create_future())
        with self._changed:
            if self._closed:
                raise Overloaded("stopping")
            if len(self._queue) >= self._max_waiting:
                raise Overloaded("full")
            self._queue.append(one)
            self._changed.notify()
        alarm = loop.call_later(deadline, _give, one, Overloaded("deadline"))
        try:
            return await one.answered
        finally:
            alarm.cancel()

    def close(self) -> None:
        """Finish what waits and end the thread; later work is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            done = started + self._mean_seconds + DEVIATIONS * self._deviation
            late = [one for one in batch if one.expires < done]
            _deliver([(one, Overloaded("deadline")) for one in late])
            rest = [one for one in batch if one not in late and not one.given_up]
            if not rest:
                # An estimate that lets nothing through would never be corrected.
                self._mean_seconds *= 1 - NEWEST
                self._deviation *= 1 - NEWEST_DEVIATION
                continue
            results = list(zip(rest, self._results(rest), strict=True))
            _deliver(results, partial(self._took, started))

    def _took(self, started: float) -> None:
        """A batch begun at some time is in the hands of those who asked, whose loop may be busy."""
        off = time.monotonic() - started - self._mean_seconds
        self._mean_seconds += NEWEST * off
        self._deviation += NEWEST_DEVIATION * (abs(off) - self._deviation)

    def _take(self) -> list[Waiting[Work, Result]]:
        """The next batch, oldest first; empty when the queue is closed and done."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            batch: list[Waiting[Work, Result]] = []
            while self._queue and len(batch) < self._max_batch:
                alone = not self._joins(self._queue[0].work)
                if alone and batch:
                    break
                batch.append(self._queue.popleft())
                if alone:
                    break
            return batch

    def _results(self, batch: list[Waiting[Work, Result]]) -> Sequence[Result | Exception]:
        """Results of a batch; when it fails, of every piece alone, so that one spoils no other."""
        try:
            return self._answer(batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [result for one in batch for result in self._results([one])]


def _deliver(
    pairs: Sequence[tuple[Waiting[Work, Result], Result | Exception]],
    told: Callable[[], None] | None = None,
) -> None:
    """Tell the loops that wait, then each calls `told`; one call a loop, for a call wakes it."""
    by_loop: dict[
        asyncio.AbstractEventLoop, list[tuple[Waiting[Work, Result], Result | Exception]]
    ] = {}
    for one, result in pairs:
        by_loop.setdefault(one.answered.get_loop(), []).append((one, result))
    for loop, some in by_loop.items():
        with suppress(RuntimeError):  # The loop is closed: nobody waits.
            loop.call_soon_threadsafe(partial(_give_all, some, told))


def _give_all(
    pairs: Sequence[tuple[Waiting[Work, Result], Result | Exception]],
    told: Callable[[], None] | None,
) -> None:
    for one, result in pairs:
        _give(one, result)
    if told is not None:
        told()


def _give(one: Waiting[Work, Result], result: Result | Exception) -> None:
    if one.answered.done():
        return
    if isinstance(result, Exception):
        one.answered.set_exception(result)
    else:
        one.answered.set_result(result)
