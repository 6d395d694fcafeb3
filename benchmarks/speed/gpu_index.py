"""FAISS on a GPU against the same on CPU and against exact search by torch.

    python benchmarks/speed/gpu_index.py --json FILE                 1M and 10M items of width 128
    python benchmarks/speed/gpu_index.py --sizes 20000 --queries 200       on any machine

Items lie around centres, queries near items: neither without structure, where nothing but exact
search finds anything, nor so clustered that every index does. Each index is built and searched by
`twotower.index` as an export builds it, for 100 items a query in batches of 1,000; recall@100 is
held against `twotower.index.exact.exact_search` on the device. What the machine cannot run is named
with the reason.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twotower.index.base import IndexBuilder, index_recall
from twotower.index.exact import exact_search
from twotower.index.flat import Flat
from twotower.index.graph import Cagra
from twotower.index.inverted_file import IVFPQ, IVFFlat, default_num_cells

DIM, K, BATCH, SPREAD = 128, 100, 1000, 0.7


def vectors(num_items: int, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of items (N, D) and queries (Q, D)."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(16, num_items // 1000), DIM)).astype(np.float32)
    items = np.empty((num_items, DIM), np.float32)
    for start in range(0, num_items, 10**6):
        size = min(10**6, num_items - start)
        noise = rng.standard_normal((size, DIM), dtype=np.float32)
        part = centres[rng.integers(len(centres), size=size)] + SPREAD * noise
        items[start : start + size] = part / np.linalg.norm(part, axis=1)[:, None]
    near = items[rng.integers(num_items, size=num_queries)]
    queries = near + 0.05 * rng.standard_normal(near.shape, dtype=np.float32)
    return items, queries / np.linalg.norm(queries, axis=1)[:, None]


def builders(device: str, num_items: int) -> Iterator[tuple[str, IndexBuilder]]:
    """What is compared on a device."""
    place: Any = device
    yield "flat", Flat(device=place)
    for share in (64, 16):
        probes = max(1, default_num_cells(num_items) // share)
        yield f"ivf_flat, a cell in {share}", IVFFlat(num_probes=probes, device=place)
        yield f"ivf_pq, a cell in {share}", IVFPQ(num_probes=probes, device=place)
    if device == "gpu":
        yield "cagra", Cagra(device="gpu")


def searched(index: Any, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows found (Q, K), and queries a second after a warm-up."""
    index.search(queries[:BATCH], K)
    started = time.perf_counter()
    parts = [index.search(queries[at : at + BATCH], K).rows for at in range(0, len(queries), BATCH)]
    return np.concatenate(parts), len(queries) / (time.perf_counter() - started)


def exact(items: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """The truth (Q, K), and how fast torch finds it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_device, asked = torch.from_numpy(items).to(device), torch.from_numpy(queries)
    exact_search(asked[:BATCH], on_device, K)
    started = time.perf_counter()
    rows = exact_search(asked, on_device, K).rows
    rate = len(queries) / (time.perf_counter() - started)
    return rows, {"index": "exact, torch", "device": device.type, "queries_per_second": rate}


def measure(num_items: int, num_queries: int) -> list[dict[str, Any]]:
    """A row for each index on each device."""
    items, queries = vectors(num_items, num_queries)
    truth, first = exact(items, queries)
    rows = [{"items": num_items, "recall@100": 1.0, **first}]
    for device in ("cpu", "gpu"):
        for name, builder in builders(device, num_items):
            row: dict[str, Any] = {"items": num_items, "index": name, "device": device}
            try:
                started = time.perf_counter()
                index = builder.build(items, queries=queries)
                row["build_seconds"] = time.perf_counter() - started
                found, row["queries_per_second"] = searched(index, queries)
                row["recall@100"] = float(index_recall(found, truth).mean())
            except (ValueError, RuntimeError, ImportError, AttributeError) as error:
                row["not_run"] = str(error).splitlines()[0]
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="where the rows are written")
    given = parser.parse_args()
    rows = [row for size in given.sizes for row in measure(size, given.queries)]
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
