"""Who runs the stages of preparing: threads of this process, or anything else that maps in order.

A stage is a function of one block or bucket; what it needs it is given or reads from the scratch
folder, and what is large it writes there. So a stage may run in another thread, another process or
on another machine that sees the same folder, and the results are the same.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm import tqdm

Input = TypeVar("Input")
Result = TypeVar("Result")


class Workers(Protocol):
    """Applies a function to inputs, several at a time."""

    def map(self, function: Callable[[Input], Result], inputs: Iterable[Input]) -> Iterator[Result]:
        """Results in the order of the inputs; few of them wait at a time."""


@dataclass(frozen=True, kw_only=True)
class Threads:
    """Threads of this process; NumPy and Arrow let go of the interpreter while they compute.

    Args:
        num_threads: How many; 0 for one a core that the process may use.

    Example:
        >>> list(Threads(num_threads=2).map(abs, [-3, 2, -1]))
        [3, 2, 1]
    """

    num_threads: int = 0

    def __post_init__(self) -> None:
        if self.num_threads < 0:
            raise ValueError(f"workers: `num_threads` must be at least 0, got {self.num_threads}")

    def map(self, function: Callable[[Input], Result], inputs: Iterable[Input]) -> Iterator[Result]:
        """See `Workers`; at most one result a thread waits to be taken."""
        count = self.num_threads or num_cores()
        waiting: deque[Future[Result]] = deque()
        with ThreadPoolExecutor(count) as pool:
            try:
                for one in inputs:
                    waiting.append(pool.submit(function, one))
                    if len(waiting) > count:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


@dataclass(frozen=True, kw_only=True)
class WithBar:
    """Workers with a progress bar for every stage that takes longer than two seconds.

    Args:
        workers: Who does the work.
        text: What stands before the bar.
    """

    workers: Workers
    text: str = "preparing"

    def map(self, function: Callable[[Input], Result], inputs: Iterable[Input]) -> Iterator[Result]:
        """See `Workers`."""
        total = len(inputs) if isinstance(inputs, Sized) else None
        results = self.workers.map(function, inputs)
        bar = tqdm(results, total=total, desc=self.text, unit="block", delay=2, leave=False)
        yield from bar


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of a log is in memory at a time; a worker holds one block or one bucket.

    Args:
        rows_per_block: Rows that are read and converted together. A row group of a Parquet file
            and a batch of an Arrow file are never cut.
        rows_per_bucket: Rows that are sorted together. The rows of one user are never cut.
    """

    rows_per_block: int = 1 << 20
    rows_per_bucket: int = 1 << 20

    def __post_init__(self) -> None:
        if min(self.rows_per_block, self.rows_per_bucket) < 1:
            raise ValueError(
                "budget: rows must be at least 1, got "
                f"rows_per_block={self.rows_per_block}, rows_per_bucket={self.rows_per_bucket}"
            )


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """Where and by whom a log is worked on, and how much of it at a time.

    Args:
        folder: An empty folder for intermediate files; all workers see it.
        workers: Who runs the stages.
        budget: How much of the log is in memory.
    """

    folder: Path
    workers: Workers
    budget: Budget


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
