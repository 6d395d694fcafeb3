"""The sampled softmax on a GPU: kernels, torch in blocks and all logits at once; time and memory.

    python benchmarks/softmax_gpu.py                                4,096, 16,384 and 65,536
    python benchmarks/softmax_gpu.py --known 50 --json FILE         with known positives

Forward and backward of the loss of B queries with B candidates of width 128 in bfloat16, the
correction and the mask of the target included; `--known` gives every user so many known positives.
"triton bf16" is `twotower.losses.fused_softmax` as training calls it, "torch blocks" the same
without kernels, "materialised" makes the logits (B, B) in bfloat16 and leaves the gradient to
autograd.

Time is the median of steps between CUDA events, after steps that compile and tune. TFLOP/s counts
the products of each form, 8 B B D for the kernels, which make the logits twice, and 6 B B D
otherwise; the share is that of 790 TFLOP/s, what an H200 reaches in large products of bfloat16.
Memory is what steps took above the vectors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from twotower.losses import fused_softmax as module
from twotower.losses.fused_softmax import fused_softmax
from twotower.losses.logits import Logits
from twotower.losses.masks import PositiveMask

WIDTH, TEMPERATURE, PEAK = 128, 0.05, 790.0
# Products of each form, in numbers of B x B x D multiplications and additions.
FORMS = {"triton bf16": 4, "torch blocks": 3, "materialised": 3}

Row = dict[str, float | str]


def step(form: str, size: int, known: int) -> Callable[[], Tensor]:
    """A step on random unit vectors: the loss and its gradients."""
    torch.manual_seed(0)
    device = "cuda"
    drawn = functional.normalize(torch.randn(3, size, WIDTH, device=device), dim=-1).bfloat16()
    queries, targets, candidates = (part.clone().requires_grad_() for part in drawn)
    # Some items are popular: a tenth of the batch has one of a thousandth of the items.
    rows = (torch.rand(size, device=device) ** 3 * size).long()
    counts = torch.rand(size, device=device).log()
    users = torch.arange(size, device=device)
    masked = PositiveMask(
        target_rows=rows,
        users=users,
        num_users=size,
        known_users=users.repeat_interleave(known),
        known_rows=(torch.rand(size * known, device=device) ** 3 * size).long(),
    )

    def fused() -> Tensor:
        logits = Logits(temperature=TEMPERATURE, log_expected_count=counts, masked=masked.on(rows))
        return fused_softmax(queries, targets, candidates, logits)

    def materialised() -> Tensor:
        own = (queries * targets).sum(1).float() / TEMPERATURE  # (B,)
        logits = queries @ candidates.T / TEMPERATURE - counts.bfloat16()  # (B, B)
        others = logits.masked_fill(masked.of(rows), -torch.inf).logsumexp(1).float()
        return (torch.logaddexp(own, others) - own).mean()

    def run() -> Tensor:
        queries.grad = targets.grad = candidates.grad = None
        loss = materialised() if form == "materialised" else fused()
        loss.backward()
        return loss.detach()

    return run


def measure(form: str, size: int, known: int, repeats: int) -> Row:
    """Milliseconds of a step, and what follows from them."""
    run = step(form, size, known)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        loss = run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    milliseconds = median(times)
    rate = FORMS[form] * 2 * size**2 * WIDTH / milliseconds / 1e9
    return {
        "form": form,
        "size": size,
        "known": known,
        "loss": loss.item(),
        "milliseconds": milliseconds,
        "examples_per_second": size / milliseconds * 1000,
        "mebibytes": (torch.cuda.max_memory_allocated() - before) / 2**20,
        "teraflops": rate,
        "share": rate / PEAK,
        "device": torch.cuda.get_device_name(),
    }


def main(sizes: list[int], known: int, repeats: int, kept: Path | None) -> list[Row]:
    """Print a table; a form that runs out of memory is left out, and said so."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks/softmax_gpu.py needs an NVIDIA GPU and a CUDA build of torch")
    found = []
    for size in sizes:
        for form in FORMS:
            left = torch.bfloat16 if form == "triton bf16" else None
            try:
                with mock.patch.object(module, "kernel_precision", return_value=left):
                    row = measure(form, size, known, repeats)
            except torch.cuda.OutOfMemoryError:
                print(f"{size:>6} {form:13} out of memory")
                continue
            torch.cuda.empty_cache()
            found.append(row)
            print(
                f"{size:>6} {form:13} {row['milliseconds']:9.2f} ms"
                f" {row['examples_per_second'] / 1e6:7.2f} M examples/s"
                f" {row['mebibytes']:8.0f} MiB {row['teraflops']:6.0f} TFLOP/s"
                f" {row['share']:5.0%}  loss {row['loss']:.4f}"
            )
    if kept:
        kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--known", type=int, default=0, help="known positives of every user")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    given = parser.parse_args()
    main(given.sizes, given.known, given.repeats, given.json)
