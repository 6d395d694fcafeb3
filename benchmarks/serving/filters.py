"""Search among the items that a filter lets through: recall and time, way by way.

    python benchmarks/serving/filters.py           flat and inverted file 1M x 64, graph 200k x 64
    python benchmarks/serving/filters.py --items 100000 --graph-items 20000

Items and queries are unit vectors around common centres. Filters let a random share of the items
through, or, "best", one in a hundred of the hundredth of the items that the query scores highest
and half of the others. One query at a time; CPU milliseconds of one thread.

"after": the index is searched for k items and what does not pass is dropped. "over-fetch": it is
asked for 1.3 k / share and for twice as many until k pass, for 50,000 at most. "exact": a product
with the vectors of all that pass. "ours": `twotower.index.filtered.FilteredIndex`. Recall is the
share of the exact best k of what passes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from running import keep_rows

from twotower.index.allowed import AllowedRows
from twotower.index.base import SearchResult
from twotower.index.faiss_index import FaissIndex
from twotower.index.filtered import FilteredIndex
from twotower.index.flat import Flat
from twotower.index.graph import HNSW
from twotower.index.inverted_file import IVFFlat, default_num_cells
from twotower.index.row_search import search_rows

DIM, K = 64, 200
SHARES = {"100 %": 1.0, "50 %": 0.5, "10 %": 0.1, "1 %": 0.01, "0.1 %": 0.001}
BEST = "best"
NUM_QUERIES = 24
WARM_UP = 2
MOST_FETCHED = 50_000

Search = Callable[[np.ndarray, AllowedRows], SearchResult]


def world(num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and queries of one kind."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(num_items // 500, 50), DIM)).astype(np.float32)
    points = 0.8 * centres[rng.integers(0, len(centres), num_items + NUM_QUERIES)]
    points += rng.normal(size=points.shape).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points[:num_items], points[num_items:]


def masks(name: str, items: np.ndarray, queries: np.ndarray) -> Iterator[AllowedRows]:
    """What the filter of every query lets through; the same for all where it is random."""
    rng = np.random.default_rng(1)
    if name in SHARES:
        allowed = AllowedRows(rng.random(len(items)) < SHARES[name])
        yield from [allowed] * len(queries)
        return
    for query in queries:
        mask = rng.random(len(items)) < 0.5
        best = np.argpartition(-(items @ query), len(items) // 100)[: len(items) // 100]
        mask[best] = rng.random(len(best)) < 0.01
        yield AllowedRows(mask)


def dropped(found: SearchResult, allowed: AllowedRows) -> SearchResult:
    """A list of one query without what is not allowed."""
    passes = allowed.contains(found.rows[0])
    return SearchResult(rows=found.rows[:, passes][:, :K], scores=found.scores[:, passes][:, :K])


def over_fetch(index: FaissIndex, query: np.ndarray, allowed: AllowedRows) -> SearchResult:
    """Twice as many until k pass, as long as it takes no second."""
    fetch = round(1.3 * K / allowed.share)
    while True:
        fetch = min(fetch, MOST_FETCHED, index.num_items)
        found = dropped(index.search(query, fetch), allowed)
        if found.rows.shape[1] >= min(K, allowed.count) or fetch >= MOST_FETCHED:
            return found
        fetch *= 2


def ways(index: FaissIndex, items: np.ndarray) -> dict[str, Search]:
    """All ways of searching."""
    filtered = FilteredIndex(index, items)
    return {
        "after": lambda query, allowed: dropped(index.search(query, K), allowed),
        "over-fetch": lambda query, allowed: over_fetch(index, query, allowed),
        "exact": lambda query, allowed: search_rows(items, allowed.rows, query, K),
        "ours": lambda query, allowed: filtered.search(query, K, allowed),
    }


def measured(kind: str, index: FaissIndex, items: np.ndarray, queries: np.ndarray) -> list[dict]:
    """A row for every filter."""
    rows = []
    for name in (*SHARES, BEST):
        sets = list(masks(name, items, queries))
        row = {"index": f"{kind}, {len(items):,}", "passes": name}
        for way, search in ways(index, items).items():
            seconds, recall, full = 0.0, [], []
            for number, (query, allowed) in enumerate(zip(queries, sets, strict=True)):
                search(query[None], allowed)  # what is made of a filter once is made
                started = time.process_time()
                found = search(query[None], allowed).rows[0]
                seconds += (time.process_time() - started) * (number >= WARM_UP)
                exact = search_rows(items, allowed.rows, query[None], K).rows[0]
                exact = exact[exact >= 0]
                recall.append(np.isin(exact, found).mean())
                full.append((found >= 0).sum() >= len(exact))
            row[f"{way} recall"] = float(np.mean(recall))
            row[f"{way} ms"] = seconds / (len(queries) - WARM_UP) * 1e3
            row[f"{way} full"] = float(np.mean(full))
        rows.append(row)
        print(json.dumps(row), flush=True)
        if row["ours full"] < 1 or (name == BEST and row["ours recall"] < 0.95):
            sys.exit(f"{kind}, {name}: {row}")
    return rows


def main(given: argparse.Namespace) -> None:
    """Measure, print, keep."""
    rows = []
    items, queries = world(given.items)
    rows += measured("flat", Flat(device="cpu").build(items), items, queries)
    num_probes = default_num_cells(len(items)) // 10
    builder = IVFFlat(num_probes=num_probes, device="cpu")
    rows += measured("ivf_flat", builder.build(items), items, queries)
    items, queries = world(given.graph_items)
    rows += measured("hnsw", HNSW(ef_search=2 * K, device="cpu").build(items), items, queries)
    if given.keep:
        ways_and_figures = [
            (f"{way} {figure}", form)
            for way in ("after", "over-fetch", "exact", "ours")
            for figure, form in (("recall", ".3f"), ("ms", ",.2f"), ("full", ".2f"))
        ]
        title = f"Filters: the best {K} of what passes, of vectors of {DIM} numbers, by one query"
        columns = {"index": "", "passes": "", **dict(ways_and_figures)}
        keep_rows("filters", title, "filters.py", columns, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--graph-items", type=int, default=200_000)
    parser.add_argument("--keep", action="store_true", help="keep the figures")
    main(parser.parse_args())
