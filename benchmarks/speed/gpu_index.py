"""FAISS on a GPU against the same on CPU and against exact search by torch.

    python benchmarks/speed/gpu_index.py --json FILE                 1M and 10M items of width 128
    python benchmarks/speed/gpu_index.py --devices cpu               in a process of its own
    python benchmarks/speed/gpu_index.py --sizes 20000 --queries 200       on any machine

Items lie around centres, queries near items: neither without structure, where nothing but exact
search finds anything, nor so clustered that every index does. Each index is built and searched by
`twotower.index` as an export builds it, for 100 items a query in batches of 1,000; recall@100 is
held against `twotower.index.exact.exact_search` on the device. What a GPU built is saved, loaded
and searched on the CPU too, as a server without a GPU would; CAGRA becomes an HNSW graph there. A
CPU is asked a tenth of the queries. What the machine cannot run is named with the reason.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twotower.index.base import IndexBuilder, index_recall
from twotower.index.exact import exact_search
from twotower.index.faiss_index import FaissIndex, load_index
from twotower.index.flat import Flat
from twotower.index.graph import Cagra
from twotower.index.inverted_file import IVFPQ, IVFFlat, default_num_cells

DIM, K, BATCH, SPREAD = 128, 100, 1000, 2.0

Keep = Callable[[dict[str, Any]], None]


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


def builders(device: str) -> Iterator[tuple[str, IndexBuilder, tuple[int, ...]]]:
    """What is compared on a device, and into one cell of how many it looks; 0 without cells."""
    place: Any = device
    yield "flat", Flat(device=place), (0,)
    yield "ivf_flat", IVFFlat(device=place), (64, 16)
    yield "ivf_pq", IVFPQ(device=place), (64, 16)
    if device == "gpu":
        yield "cagra", Cagra(device="gpu"), (0,)


def searched(index: Any, queries: np.ndarray, num_probes: int) -> tuple[np.ndarray, float]:
    """Rows found (Q, K), and queries a second after a warm-up."""
    index.search(queries[: BATCH // 10], K, num_probes=num_probes)
    started = time.perf_counter()
    parts = [
        index.search(queries[at : at + BATCH], K, num_probes=num_probes).rows
        for at in range(0, len(queries), BATCH)
    ]
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


def measure(num_items: int, num_queries: int, devices: Sequence[str], keep: Keep) -> None:
    """A row for each index on each device."""
    items, queries = vectors(num_items, num_queries)
    truth, first = exact(items, queries)
    keep({"items": num_items, "recall@100": 1.0, **first})
    few = queries[: max(BATCH, num_queries // 10)]
    for device in devices:
        for name, builder, shares in builders(device):
            row: dict[str, Any] = {"items": num_items, "index": name, "built_on": device}
            try:
                started = time.perf_counter()
                index = builder.build(items, queries=queries)
                row["build_seconds"] = time.perf_counter() - started
                asked = queries if device == "gpu" else few
                for found in at_shares(index, shares, num_items, asked, truth):
                    keep({**row, "device": device, **found})
                if device == "gpu":
                    for found in at_shares(on_cpu(index), shares, num_items, few, truth):
                        keep({**row, "device": "cpu", **found})
                del index
            except (ValueError, RuntimeError, ImportError, AttributeError) as error:
                keep({**row, "not_run": str(error).splitlines()[0]})


def at_shares(
    index: Any, shares: tuple[int, ...], num_items: int, queries: np.ndarray, truth: np.ndarray
) -> Iterator[dict[str, Any]]:
    """How fast and how well an index answers, looking into one cell of so many."""
    for share in shares:
        probes = max(1, default_num_cells(num_items) // share) if share else 0
        found, rate = searched(index, queries, probes)
        recall = float(index_recall(found, truth[: len(queries)]).mean())
        of_cells = {"cells": f"one in {share}"} if share else {}
        yield {**of_cells, "queries_per_second": rate, "recall@100": recall}


def on_cpu(index: FaissIndex) -> FaissIndex:
    """The same index as a server without a GPU loads it."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder))
        return load_index(Path(folder), device="cpu")


def main(given: argparse.Namespace) -> None:
    """Measure, print, and keep what there is after every row."""
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")

    for size in given.sizes:
        measure(size, given.queries, given.devices, keep)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--devices", nargs="+", choices=["cpu", "gpu"], default=["cpu", "gpu"])
    parser.add_argument("--json", type=Path, help="where the rows are written")
    main(parser.parse_args())
