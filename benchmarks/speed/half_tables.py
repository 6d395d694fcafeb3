"""Tables in bfloat16 against float32 ones: look-up, gradient and step on one core, turn by turn.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/speed/half_tables.py --rows 1000000 10000000

A step averages the histories of a batch, `--batch` of `--history` random rows each, looks up a row
an example, and steps the rows with row-wise Adagrad. A round takes every table once; figures are
medians of CPU milliseconds over rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from twotower.models.tables import TableGroup
from twotower.training.memory import keep_freed_memory
from twotower.training.table_optimizers import RowWiseAdagrad

PARTS = ("look-up", "gradient", "step")


def stepper(rows: int, dim: int, *, half: bool) -> Callable[[Tensor, Tensor, Tensor], list[float]]:
    """A function that does one step of a table of its own and tells how long each part took."""
    table = TableGroup(num_rows={"item": rows}, dim=dim, sparse=True)
    if half:
        table.halve()
    optimizer = RowWiseAdagrad([table.rows.weight], lr=0.05)

    def step(history: Tensor, offsets: Tensor, items: Tensor) -> list[float]:
        optimizer.zero_grad()
        times = [time.process_time()]
        means = table.means("item", history, offsets)  # (B, D)
        loss = means.square().sum() + table.lookup(0, items[:, None]).sum()
        times.append(time.process_time())
        loss.backward()
        times.append(time.process_time())
        optimizer.step()
        times.append(time.process_time())
        return [1000 * (after - before) for before, after in pairwise(times)]

    return step


def measure(rows: int, given: argparse.Namespace) -> None:
    """Print the milliseconds of both tables and their ratio."""
    draws = torch.Generator().manual_seed(0)
    steppers = {half: stepper(rows, given.dim, half=half) for half in (False, True)}
    offsets = torch.arange(0, given.batch * given.history + 1, given.history)
    times: dict[bool, list[list[float]]] = {half: [] for half in steppers}
    for number in range(given.rounds + 2):
        history = torch.randint(rows, (given.batch * given.history,), generator=draws)
        items = torch.randint(rows, (given.batch,), generator=draws)
        for half, step in steppers.items():
            took = step(history, offsets, items)
            if number >= 2:  # the first ones make room
                times[half].append([*took, sum(took)])
    for half, name in ((False, "float32"), (True, "bfloat16")):
        parts = [median(part) for part in zip(*times[half], strict=True)]
        cells = "  ".join(f"{n} {ms:6.1f}" for n, ms in zip((*PARTS, "all"), parts, strict=True))
        size = rows * given.dim * (2 if half else 4) / 1e9
        print(f"{rows:>11,} rows  {name:8}  {size:5.2f} GB  {cells}  ms")
    ratios = [half[-1] / whole[-1] for whole, half in zip(times[False], times[True], strict=True)]
    print(f"{rows:>11,} rows  bfloat16 / float32: {median(ratios):.2f}")


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for rows in given.rows:
        measure(rows, given)


if __name__ == "__main__":
    main()
