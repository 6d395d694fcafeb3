"""What every script of a peer shares: its command line, its clock, and its line of figures.

    PYTHON benchmarks/speed/peers/SCRIPT --measure --mode loop --steps 30 --data FOLDER
        [--variant NAME] [--batch 4096] [--rows 200000] [--large]

`loop` is the processor time of whole steps, the peer's own loader included; `step` trains on
batches that were loaded before. The time is that of the process, all its threads together: pin it
to one core. FOLDER is what ``benchmarks/speed/world.py`` wrote.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from turns import end_step

WARM_UP = 3
CACHED = 8


@dataclass(frozen=True)
class Run:
    """What was asked for on the command line."""

    variant: str
    mode: str
    steps: int
    data: Path
    batch: int
    rows: int
    large: bool


class Clock:
    """Hands batches to a training loop and notes the processor time around each of its steps."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.resumed = time.process_time()

    def begin(self) -> None:
        """A batch is there and its step begins."""
        self.begun.append(time.process_time())

    def end(self) -> None:
        """The step is done."""
        self.ended.append(time.process_time())
        end_step()

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The warm-up and the asked-for steps, epoch after epoch; fewer for a loader left early."""
        source = itertools.chain.from_iterable(itertools.repeat(loader))
        if self.run.mode == "step":
            source = itertools.cycle(list(itertools.islice(source, CACHED)))
        for batch in itertools.islice(source, WARM_UP + self.run.steps):
            self.begin()
            yield batch
            self.end()

    def examples_per_second(self) -> float:
        """Examples a second of processor time, after the warm-up."""
        if len(self.ended) != WARM_UP + self.run.steps:
            raise RuntimeError(f"{len(self.ended)} steps of {WARM_UP + self.run.steps} were done")
        if self.run.mode == "loop":
            seconds = (self.ended[-1] - self.ended[WARM_UP - 1]) / self.run.steps
        else:
            steps = zip(self.begun[WARM_UP:], self.ended[WARM_UP:], strict=True)
            seconds = statistics.fmean(end - begin for begin, end in steps)
        return self.run.batch / seconds


def parse(variants: tuple[str, ...]) -> Run:
    """The command line; the first variant is the one that is meant when none is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", action="store_true", required=True)
    parser.add_argument("--variant", choices=variants, default=variants[0])
    parser.add_argument("--mode", choices=("loop", "step"), required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=200_000, help="examples that are prepared")
    parser.add_argument("--large", action="store_true", help="the ranker's column of 10M values")
    given = vars(parser.parse_args())
    del given["measure"]
    given["rows"] -= given["rows"] % given["batch"]  # so that no batch is a smaller one
    return Run(**given)


def main(
    peer: str,
    variants: tuple[str, ...],
    train: Callable[[Run, Clock], tuple[float, float]],
) -> None:
    """Measure one run and print its figures as a line of JSON.

    `train` prepares and trains; it returns the processor time at which its data were ready and the
    mean loss of its steps. It calls the clock around each step.
    """
    run = parse(variants)
    started = time.process_time()
    clock = Clock(run)
    ready, loss = train(run, clock)
    figures = {
        "peer": f"{peer} {run.variant}",
        "mode": run.mode,
        "batch": run.batch,
        "examples_per_cpu_second": round(clock.examples_per_second(), 1),
        "prepare_cpu_seconds": round(ready - started, 2),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "loss": round(loss, 5),
    }
    print(json.dumps(figures), flush=True)
