"""CPU seconds and memory of the sampled softmax: all scores at once against a block at a time.

    python benchmarks/softmax.py                                         4,096 queries
    python benchmarks/softmax.py --sizes 4096 16384 65536 --plain 4096

Each row is a process of its own with one thread, in turn: forward and backward of the loss of B
queries with B candidates of width 64, the correction and the mask of the target included. The plain
form makes the scores (B, B), as `twotower.losses.sampled_softmax.sampled_softmax` does, and leaves
the gradient to autograd; the fused one is `twotower.losses.fused_softmax`. "kept" are the same with
`twotower.training.memory.keep_freed_memory`, which training calls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from twotower.losses.fused_softmax import fused_softmax
from twotower.losses.logits import Logits
from twotower.losses.masks import PositiveMask
from twotower.losses.reduction import weighted_mean
from twotower.losses.sampled_softmax import sampled_softmax
from twotower.losses.scores import Scores, dot_products
from twotower.training.memory import keep_freed_memory

DIM, TEMPERATURE = 64, 0.05


def step(fused: bool, size: int) -> Callable[[], tuple[Tensor, ...]]:
    """A step on random unit vectors: the loss and its gradients."""
    torch.manual_seed(0)
    vectors = functional.normalize(torch.randn(3, size, DIM), dim=-1)
    queries, targets, candidates = (part.clone().requires_grad_() for part in vectors)
    rows = torch.randint(size // 2, (size,))
    counts = torch.rand(size).log()

    none, own = torch.zeros(0, dtype=torch.long), torch.arange(size)
    masked = PositiveMask(
        target_rows=rows, users=own, num_users=size, known_users=none, known_rows=none
    ).on(rows)

    def plain() -> Tensor:
        scores = Scores.of(queries, targets, dot_products(queries, candidates), None)
        return weighted_mean(sampled_softmax(scores, counts, masked[:size], TEMPERATURE), None)

    def in_blocks() -> Tensor:
        logits = Logits(temperature=TEMPERATURE, log_expected_count=counts, masked=masked)
        return fused_softmax(queries, targets, candidates, logits)

    def run() -> tuple[Tensor, ...]:
        loss = in_blocks() if fused else plain()
        return loss, *torch.autograd.grad(loss, (queries, targets, candidates))

    return run


def measure(form: str, size: int, repeats: int) -> dict[str, float]:
    """CPU seconds a step and the memory that steps took, in this process."""
    torch.set_num_threads(1)
    if form.endswith("kept"):
        keep_freed_memory()
    run = step(form.startswith("fused"), size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss = run()[0]
    started = time.process_time()
    for _ in range(repeats):
        run()
    seconds = (time.process_time() - started) / repeats
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"loss": loss.item(), "seconds": seconds, "mebibytes": grown / 2**10}


def main(sizes: list[int], plain: int, rounds: int, kept: Path | None) -> None:
    """Print a table: best of the rounds, which take turns."""
    rows_of_all = []
    for size in sizes:
        forms = ["fused", "fused, kept"]
        forms += ["plain", "plain, kept"] if size <= plain else []
        found: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
        for _, form in itertools.product(range(rounds), forms):
            command = [sys.executable, __file__, "--measure", form, "--sizes", str(size)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            found[form].append(json.loads(answer.stdout))
        best = {form: min(rows, key=lambda row: row["seconds"]) for form, rows in found.items()}
        losses = [row["loss"] for row in best.values()]
        if max(losses) - min(losses) > 1e-4:
            sys.exit(f"the losses differ: {losses}")
        base = best[forms[-1]]["seconds"]
        for form, row in best.items():
            seconds, mebibytes = row["seconds"], row["mebibytes"]
            rows_of_all.append({"size": size, "form": form, **row, "ratio": base / seconds})
            print(
                f"{size:>6} x {size:<6} {form:12} {seconds:8.3f} s  {mebibytes:8.0f} MiB"
                f"  {base / seconds:.2f} times as fast as {forms[-1]}"
            )
    if kept:
        kept.write_text(json.dumps(rows_of_all, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096])
    parser.add_argument("--plain", type=int, default=16384, help="largest size of the plain form")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.sizes[0], repeats=3)))
    else:
        main(given.sizes, given.plain, given.rounds, given.json)
