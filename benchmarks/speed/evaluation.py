"""Full-corpus evaluation against a blocked product with a count, and against a naive full sort.

    python benchmarks/speed/evaluation.py                      100,000 queries x 50,000 items x 64
    python benchmarks/speed/evaluation.py --queries 4096

One thread; CPU seconds. "product and count" is the least that an exact evaluation does: a block of
queries times all items, the scores above that of the target counted. Ours is
`twotower.index.exact.exact_ranks` (ties in favour of the lower row, wrong input refused) with
Recall and NDCG of `twotower.metrics.top_k`. The two take turns on parts of the queries, so that
what else the machine does falls on both. On some queries the metrics are held against lists that a
stable full sort of float32 scores gives; they must be the same to the last bit.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twotower.index.exact import exact_ranks
from twotower.metrics.top_k import Relevant, mean_over_queries, metrics_of_ranks, top_k_metrics
from twotower.training.memory import keep_freed_memory

PART, BLOCK, SORTED, KS = 8192, 256, 500, (10, 100)
NAMES = ("recall@100", "ndcg@100")


def product_and_count(queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """How many scores are above the target's, a block of queries at a time; (Q,)."""
    ranks = []
    for block, wanted in zip(queries.split(BLOCK), targets.split(BLOCK), strict=True):
        scores = block @ items.T  # (b, N)
        ranks.append((scores > scores.gather(1, wanted[:, None])).sum(1, dtype=torch.int32))
    return torch.cat(ranks)


def ours(queries: Tensor, items: Tensor, targets: Tensor) -> dict[str, float]:
    """Means of the metrics."""
    ranks = exact_ranks(queries, items, targets)
    return mean_over_queries(metrics_of_ranks(ranks, single(targets), KS))


def single(targets: Tensor) -> Relevant:
    """One right answer a query."""
    return Relevant(offsets=np.arange(len(targets) + 1), item_rows=targets.numpy())


def by_sort(queries: Tensor, items: Tensor, targets: Tensor) -> dict[str, float]:
    """The same from a stable sort of all scores."""
    order = (queries @ items.T).numpy()
    ranked = np.argsort(-order, axis=1, kind="stable")[:, : max(KS)]
    return mean_over_queries(top_k_metrics(ranked, single(targets), KS))


def main(given: argparse.Namespace) -> None:
    """Measure, compare, print."""
    torch.set_num_threads(1)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(given.items, given.dim, generator=generator)
    queries = torch.randn(given.queries, given.dim, generator=generator)
    # Targets that are found as often as in a recommender: near the query, with noise.
    targets = torch.cat([torch.randint(given.items, (len(b),), generator=generator)
                         for b in queries.split(BLOCK)])  # fmt: skip
    near = items[targets] * 0.35 + queries
    seconds = {"product and count": 0.0, "ours": 0.0}
    for number, (part, wanted) in enumerate(
        zip(near.split(PART), targets.split(PART), strict=True)
    ):
        turns = [("product and count", product_and_count), ("ours", ours)]
        for name, way in turns if number % 2 else reversed(turns):
            started = time.process_time()
            way(part, items, wanted)
            seconds[name] += time.process_time() - started
    few = near[:SORTED], items, targets[:SORTED]
    found, sorted_ = ours(*few), by_sort(*few)
    if any(found[name] != sorted_[name] for name in NAMES):
        sys.exit(f"the metrics differ: {found} and {sorted_}")
    row = {
        "queries": given.queries,
        "items": given.items,
        "dim": given.dim,
        **{f"{name}, CPU-s": value for name, value in seconds.items()},
        "ratio": seconds["ours"] / seconds["product and count"],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        **{f"{name} of {SORTED} queries, as by a full sort": found[name] for name in NAMES},
    }
    print(json.dumps(row, indent=1))
    if given.json:
        given.json.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--json", type=Path, help="where the row is written")
    main(parser.parse_args())
