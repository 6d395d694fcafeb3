"""Exact search and exact ranks by blocked matrix products, on any torch device.

The truth that approximate indexes are measured against, and the metric code's source of ranks. A
block holds the scores of some queries with all items; ties are broken in favour of the lower row.
Full evaluation needs no sort: the rank of a target is the number of items that score higher.

Scores are float32 products even when the caller trains with bfloat16 or TF32, and do not depend on
how the queries are cut into blocks.

Letters: ``Q`` queries, ``B`` queries of a block, ``N`` items, ``D`` dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from twotower.data.item_lists import ItemLists
from twotower.index.base import (
    NO_ITEM,
    IntArray,
    SearchResult,
    check_k,
    padded,
)

# Scores of a block: 32 MB stay near a CPU's cache, 512 MB keep a GPU busy.
CPU_BLOCK_SCORES = 2**23
GPU_BLOCK_SCORES = 2**27
# Products of fewer rows than this run through other kernels, whose rounding differs.
MIN_BLOCK_ROWS = 16


def exact_search(
    queries: Tensor, items: Tensor, k: int, excluded: ItemLists | None = None
) -> SearchResult:
    """The ``k`` items with the largest inner product of every query.

    Args:
        queries: Query vectors (Q, D), moved to the items' device block by block.
        items: Item vectors (N, D) by item row.
        k: How many items are wanted, at least 1; may exceed ``N``.
        excluded: Items that a query may not return.

    Returns:
        Rows and scores (Q, k) as numpy arrays.

    Raises:
        ValueError: When the arguments do not fit together.
    """
    check_k(k)
    _check(queries, items, excluded)
    kept = min(k, len(items))
    rows = np.empty((len(queries), kept), dtype=np.int64)
    scores = np.empty((len(queries), kept), dtype=np.float32)
    for start, stop, block in _score_blocks(queries, items):
        if excluded is not None:
            _remove(block, excluded, start, stop)
        best_rows, best_scores = _best(block, kept)
        rows[start:stop] = best_rows.cpu().numpy()
        scores[start:stop] = best_scores.cpu().numpy()
    rows[np.isneginf(scores)] = NO_ITEM
    return padded(rows, scores, k)


def exact_ranks(
    queries: Tensor,
    items: Tensor,
    targets: IntArray | Tensor | ItemLists,
    excluded: ItemLists | None = None,
) -> IntArray:
    """How many items stand before the targets of every query; 0 is the top.

    An item stands before a target when it scores higher, or the same with a lower row, and is not
    excluded. So the rank is below ``k`` exactly where `exact_search` returns the target. Scores are
    compared and counted, nothing is sorted.

    Args:
        queries: Query vectors (Q, D).
        items: Item vectors (N, D) by item row.
        targets: Item row of each query's target (Q,), or a list of targets for each query.
        excluded: Items that a query may not return; a target among them has rank ``N``, as no list
            can contain it.

    Returns:
        (Q,) int64, or of lists (P,), in their order.

    Raises:
        ValueError: When the arguments do not fit together.
    """
    if not isinstance(targets, ItemLists):
        wanted = torch.as_tensor(targets)
        _check(queries, items, excluded, wanted)
        offsets = np.arange(len(queries) + 1)
        targets = ItemLists(offsets=offsets, item_rows=wanted.cpu().numpy())
    else:
        _check(queries, items, excluded)
        problems = _list_problems("targets", targets, len(queries), len(items))
        if problems:
            raise ValueError("\n".join(problems))
    ranks = np.empty(len(targets.item_rows), dtype=np.int64)
    for start, stop, block in _score_blocks(queries, items):
        of_block = targets.between(start, stop)
        rows = torch.as_tensor(of_block.item_rows.astype(np.int64), device=items.device)
        owners = torch.as_tensor(of_block.query_index, device=items.device)
        scores = block[owners, rows]  # (p,)
        if excluded is not None:
            _remove(block, excluded, start, stop)
        first = int(targets.offsets[start])
        found = torch.empty_like(rows)  # (p,)
        for turn in range(int(of_block.counts.max(initial=0))):  # the first targets, the second ...
            asked = np.flatnonzero(of_block.counts > turn)
            pairs = torch.as_tensor(of_block.offsets[asked] + turn, device=items.device)
            chosen = block if len(asked) == len(block) else block[owners[pairs]]
            found[pairs] = _num_before(chosen, scores[pairs], rows[pairs])
        reachable = ~torch.isneginf(block[owners, rows])  # (p,)
        found = torch.where(reachable, found, len(items))
        ranks[first : first + len(rows)] = found.cpu().numpy()
    return ranks


def _num_before(scores: Tensor, score: Tensor, target: Tensor) -> Tensor:
    """How many of the scores (B, N) stand before a target's (B,) with the row (B,)."""
    limits = score.unsqueeze(1)  # (B, 1)
    before, level = _counts(scores, limits)
    tied = (level > 1).nonzero().squeeze(1)
    if len(tied):  # ties in favour of the lower row
        lower = torch.arange(scores.shape[1], device=scores.device) < target[tied].unsqueeze(1)
        before[tied] += torch.count_nonzero((scores[tied] == limits[tied]) & lower, dim=1)
    return before


def _counts(scores: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the scores (B, N) are above limits (B, 1), and how many at them; both (B,).

    numpy compares five times as fast as torch on a CPU; the truth values, a byte each, are counted
    eight at a time.
    """
    if scores.device.type != "cpu":
        above, level = scores > limits, scores == limits
        return torch.count_nonzero(above, dim=1), torch.count_nonzero(level, dim=1)
    num_rows, width = scores.shape
    truth = np.zeros((num_rows, -(-width // 8) * 8), bool)
    counts = []
    for compare in (np.greater, np.equal):
        compare(scores.numpy(), limits.numpy(), out=truth[:, :width])
        found = np.bitwise_count(truth.view(np.uint64)).sum(axis=1, dtype=np.int64)
        counts.append(torch.from_numpy(found))
    return counts[0], counts[1]


def _check(
    queries: Tensor, items: Tensor, excluded: ItemLists | None, targets: Tensor | None = None
) -> None:
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise ValueError(
            "queries and items must have shapes (Q, D) and (N, D), got "
            f"{tuple(queries.shape)} and {tuple(items.shape)}"
        )
    num_queries, num_items = len(queries), len(items)
    problems = [
        f"{name} must be finite floating point numbers, got {vectors.dtype} with NaN or infinity: "
        f"{bool((~vectors.isfinite()).any())}"
        for name, vectors in (("queries", queries), ("items", items))
        if not vectors.is_floating_point() or not bool(vectors.isfinite().all())
    ]
    if num_items == 0:
        problems.append("items must not be empty, got (0, D)")
    if targets is not None:
        problems += _target_problems(targets, num_queries, num_items)
    if excluded is not None:
        problems += _list_problems("excluded", excluded, num_queries, num_items)
    if problems:
        raise ValueError("\n".join(problems))


def _target_problems(targets: Tensor, num_queries: int, num_items: int) -> list[str]:
    if targets.shape != (num_queries,):
        return [f"targets must have shape ({num_queries},), got {tuple(targets.shape)}"]
    if bool(((targets < 0) | (targets >= num_items)).any()):
        low, high = int(targets.min()), int(targets.max())
        return [f"targets must be item rows 0..{num_items - 1}, got {low}..{high}"]
    return []


def _list_problems(name: str, lists: ItemLists, num_queries: int, num_items: int) -> list[str]:
    problems = []
    if len(lists) != num_queries:
        problems.append(
            f"{name} must have one list for each of {num_queries} queries, got {len(lists)}"
        )
    rows = lists.item_rows
    if len(rows) and (rows.min() < 0 or rows.max() >= num_items):
        problems.append(
            f"{name} must hold item rows 0..{num_items - 1}, got {rows.min()}..{rows.max()}"
        )
    return problems


def _score_blocks(queries: Tensor, items: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, scores (B, N)) over all queries; the next block overwrites the last."""
    limit = CPU_BLOCK_SCORES if items.device.type == "cpu" else GPU_BLOCK_SCORES
    size = max(limit // len(items), MIN_BLOCK_ROWS)
    all_items = items.detach().float().T  # (D, N)
    room = all_items.new_empty(max(min(size, len(queries)), MIN_BLOCK_ROWS), len(items))
    for start in range(0, len(queries), size):
        block = queries[start : start + size].detach().to(items.device).float()  # (B, D)
        num_rows = len(block)
        missing = max(MIN_BLOCK_ROWS - num_rows, 0)
        block = torch.nn.functional.pad(block, (0, 0, 0, missing))
        with _full_precision(items.device.type):
            scores = torch.mm(block, all_items, out=room[: len(block)])  # (B, N)
        yield start, start + num_rows, scores[:num_rows]


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """Products in float32: neither autocast nor TF32 nor bfloat16 passes."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _remove(scores: Tensor, excluded: ItemLists, start: int, stop: int) -> None:
    """Set the excluded pairs of a block (B, N) to minus infinity, in place."""
    block = excluded.between(start, stop)
    index = (
        torch.as_tensor(block.query_index, device=scores.device),
        torch.as_tensor(block.item_rows, device=scores.device),
    )
    scores[index] = -torch.inf


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns and scores (B, k) of the largest entries, ties in favour of the lower column."""
    values, columns = scores.topk(k, dim=1)  # (B, k)
    last = values[:, -1:]  # (B, 1)
    tied = torch.count_nonzero(scores >= last, dim=1) > k  # (B,)
    if bool(tied.any()):
        columns[tied] = _lowest_columns(scores[tied], last[tied], k)
    columns = columns.sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order), values


def _lowest_columns(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """The columns (B, k) above the last place's score, filled up by the lowest of those at it."""
    above, level = scores > last, scores == last  # (B, N)
    room = k - torch.count_nonzero(above, dim=1)[:, None]  # (B, 1)
    chosen = above | (level & (level.cumsum(dim=1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(-1, k)
