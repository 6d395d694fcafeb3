"""What waits together is answered together; what comes alone does not wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from twotower.serving.server.micro_batches import MicroBatches, Overloaded, Waiting

LONG = 30.0


class Doubler:
    """Doubles numbers, and remembers what was given together; waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, batch: Sequence[Waiting[int, int]]) -> list[int | Exception]:
        works = [one.work for one in batch]
        self.batches.append(works)
        assert self.may_go.wait(LONG)
        if -1 in works:
            raise ValueError("minus one")
        return [ValueError(f"odd {work}") if work % 2 else 2 * work for work in works]


@contextmanager
def queue(answer: Callable, **limits: int) -> Iterator[MicroBatches[int, int]]:
    """Pieces from 100 on are done alone."""
    settings = {"max_batch": 4, "max_waiting": 8} | limits
    batches = MicroBatches(answer, joins=lambda work: work < 100, **settings)
    try:
        yield batches
    finally:
        batches.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0.001)


async def busy(doubler: Doubler, batches: MicroBatches[int, int]) -> asyncio.Task[int]:
    """A piece that is being worked on until `may_go` is set."""
    doubler.may_go.clear()
    task = asyncio.create_task(batches.submit(0, deadline=LONG))
    await until(lambda: doubler.batches == [[0]])
    return task


def test_one_that_comes_alone_is_answered_alone_and_at_once() -> None:
    doubler = Doubler()

    async def ask() -> list[int]:
        return [await batches.submit(number, deadline=LONG) for number in (2, 4, 6)]

    with queue(doubler) as batches:
        assert asyncio.run(ask()) == [4, 8, 12]
    assert doubler.batches == [[2], [4], [6]]


def test_those_that_wait_are_answered_together_oldest_first() -> None:
    doubler = Doubler()

    async def ask() -> list[int]:
        first = await busy(doubler, batches)
        rest = [asyncio.create_task(batches.submit(n, deadline=LONG)) for n in range(2, 14, 2)]
        await until(lambda: len(batches) == 6)
        doubler.may_go.set()
        return [await first, *await asyncio.gather(*rest)]

    with queue(doubler) as batches:
        assert asyncio.run(ask()) == [0, 4, 8, 12, 16, 20, 24]
    assert doubler.batches == [[0], [2, 4, 6, 8], [10, 12]]


def test_what_is_done_alone_keeps_its_place() -> None:
    doubler = Doubler()

    async def ask() -> list[int]:
        first = await busy(doubler, batches)
        works = [2, 4, 100, 102, 6, 8, 104]
        rest = [asyncio.create_task(batches.submit(work, deadline=LONG)) for work in works]
        await until(lambda: len(batches) == len(works))
        doubler.may_go.set()
        return [await first, *await asyncio.gather(*rest)]

    with queue(doubler) as batches:
        assert asyncio.run(ask()) == [0, 4, 8, 200, 204, 12, 16, 208]
    assert doubler.batches == [[0], [2, 4], [100], [102], [6, 8], [104]]


def test_a_full_queue_refuses() -> None:
    doubler = Doubler()

    async def ask() -> None:
        first = await busy(doubler, batches)
        waiting = [asyncio.create_task(batches.submit(2, deadline=LONG)) for _ in range(3)]
        await until(lambda: len(batches) == 3)
        with pytest.raises(Overloaded, match="full"):
            await batches.submit(4, deadline=LONG)
        doubler.may_go.set()
        assert await asyncio.gather(first, *waiting) == [0, 4, 4, 4]
        assert await batches.submit(4, deadline=LONG) == 8  # and takes again when there is room

    with queue(doubler, max_waiting=3) as batches:
        asyncio.run(ask())


def test_what_waits_too_long_is_given_up_and_never_worked_on() -> None:
    doubler = Doubler()

    async def ask() -> None:
        first = await busy(doubler, batches)
        started = time.monotonic()
        with pytest.raises(Overloaded, match="deadline"):
            await batches.submit(2, deadline=0.05)
        assert 0.05 <= time.monotonic() - started < 5  # not when the work before it is done
        doubler.may_go.set()
        assert await first == 0
        assert await batches.submit(4, deadline=LONG) == 8

    with queue(doubler) as batches:
        asyncio.run(ask())
    assert doubler.batches == [[0], [4]]


def test_what_cannot_be_done_in_time_is_not_begun() -> None:
    done = []

    def slow(batch: Sequence[Waiting[int, int]]) -> list[int]:
        done.append([one.work for one in batch])
        time.sleep(0.2)
        return [0 for _ in batch]

    async def ask() -> None:
        for number in range(3):
            await batches.submit(number, deadline=LONG)
        with pytest.raises(Overloaded, match="deadline"):
            await batches.submit(9, deadline=0.02)
        # The estimate is forgotten, so that one which is too high does not stay.
        for _ in range(40):
            with suppress(Overloaded):
                await batches.submit(9, deadline=0.02)
            if [9] in done:
                break

    with queue(slow) as batches:
        asyncio.run(ask())
    assert done[:3] == [[0], [1], [2]]
    assert [9] in done


def test_what_may_take_longer_than_there_is_time_is_not_begun() -> None:
    """Every other batch takes 0.1 seconds: half of that on average, which may not be enough."""
    done = []

    def uneven(batch: Sequence[Waiting[int, int]]) -> list[int]:
        done.extend(one.work for one in batch)
        time.sleep(0.1 * (batch[0].work % 2))
        return [0 for _ in batch]

    async def ask() -> None:
        for number in range(12):
            await batches.submit(number, deadline=LONG)
        with pytest.raises(Overloaded, match="deadline"):
            await batches.submit(13, deadline=0.09)

    with queue(uneven) as batches:
        asyncio.run(ask())
    assert done == list(range(12))


def test_one_that_fails_spoils_no_other() -> None:
    doubler = Doubler()

    async def ask() -> list[object]:
        first = await busy(doubler, batches)
        works = [batches.submit(number, deadline=LONG) for number in (2, -1, 3, 4)]
        rest = asyncio.gather(*works, return_exceptions=True)
        await until(lambda: len(batches) == 4)
        doubler.may_go.set()
        await first
        return await rest

    with queue(doubler) as batches:
        found = asyncio.run(ask())
    assert [found[0], found[3]] == [4, 8]
    assert [str(error) for error in found[1:3]] == ["minus one", "odd 3"]


def test_closing_finishes_what_waits_and_takes_no_more() -> None:
    doubler = Doubler()

    async def ask() -> list[int]:
        first = await busy(doubler, batches)
        rest = [asyncio.create_task(batches.submit(n, deadline=LONG)) for n in (2, 4)]
        await until(lambda: len(batches) == 2)
        closing = asyncio.create_task(asyncio.to_thread(batches.close))
        await until(lambda: batches._closed)
        with pytest.raises(Overloaded, match="stopping"):
            await batches.submit(6, deadline=LONG)
        doubler.may_go.set()
        await closing
        return [await first, *await asyncio.gather(*rest)]

    with queue(doubler) as batches:
        assert asyncio.run(ask()) == [0, 4, 8]


def test_many_clients_get_each_its_own() -> None:
    def echo(batch: Sequence[Waiting[int, int]]) -> list[int]:
        return [one.work for one in batch]

    async def client(first: int) -> list[int]:
        return [await batches.submit(first + n, deadline=LONG) for n in range(50)]

    async def ask() -> list[list[int]]:
        return await asyncio.gather(*(client(1000 * number) for number in range(8)))

    with queue(echo) as batches:
        found = asyncio.run(ask())
    assert found == [[1000 * number + n for n in range(50)] for number in range(8)]
