"""Products of float32 matrices by both libraries that torch has on a CPU, at shapes of training.

    python benchmarks/speed/products.py

MKL and oneDNN take turns; the figure of each is the lower quartile of its times, in GFLOP/s of one
thread. "error" is the largest distance of oneDNN's product from that in float64, in float32
roundings of the largest number: what says that it is in float32 too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

LIBRARIES = {"MKL": "highest", "oneDNN": "medium"}
# Rows, inner length and columns, and which of the factors is transposed.
SHAPES = {
    "softmax, logits": (256, 64, 4096, "right"),
    "softmax, gradient of queries": (256, 4096, 64, ""),
    "softmax, gradient of candidates": (64, 256, 4096, "left"),
    "tower, forward": (4096, 320, 256, "right"),
    "tower, gradient of weights": (256, 4096, 320, "left"),
    "cross layer, forward": (1024, 429, 429, "right"),
    "cross layer, forward, whole batch": (16_384, 429, 429, "right"),
}


def matrix(rows: int, columns: int, transposed: bool) -> torch.Tensor:
    """Normal numbers ``(rows, columns)``, in rows or in columns."""
    return torch.randn(columns, rows).T if transposed else torch.randn(rows, columns)


def measure(name: str, turns: int) -> dict[str, object]:
    """GFLOP/s of both at one shape."""
    rows, inner, columns, transposed = SHAPES[name]
    left = matrix(rows, inner, transposed == "left")
    right = matrix(inner, columns, transposed == "right")
    out = torch.empty(rows, columns)
    seconds: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for _ in range(turns):
        for library, precision in LIBRARIES.items():
            torch.set_float32_matmul_precision(precision)
            torch.mm(left, right, out=out)
            started = time.perf_counter()
            torch.mm(left, right, out=out)
            seconds[library].append(time.perf_counter() - started)
    exact = left.double() @ right.double()
    error = float((out - exact).abs().max() / exact.abs().max() * 2**24)
    rates = {
        library: 2 * rows * inner * columns / float(np.quantile(times, 0.25)) / 1e9
        for library, times in seconds.items()
    }
    shape = f"{rows:,} x {inner:,} x {columns:,}"
    ratio = rates["oneDNN"] / rates["MKL"]
    return {"product": name, "shape": shape, **rates, "ratio": ratio, "error": error}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = [measure(name, given.turns) for name in SHAPES]
    for row in found:
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
