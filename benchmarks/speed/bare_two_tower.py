"""The yardstick of retrieval training: a hand-written loop, as fast as plain PyTorch allows.

    python benchmarks/speed/bare_two_tower.py --data FOLDER [--mode loop|step] [--loss plain|merged]

One file, no framework, nothing that a config could change: two tables 32 wide, ids and features
looked up at once, the mean of the last 50 items as a bag, towers 320-256-128-64 and 288-256-128-64,
cosines over 0.05, softmax over the batch with its gradient written out a block at a time, row-wise
Adagrad on the rows of the batch, Adam for the rest. `--loss plain` leaves out what the sampled
softmax needs to be right, the correction by log q and the mask of accidental hits. `--loss merged`
embeds an item of the batch once and lets one candidate stand for all its copies, the same loss.

Data: `world.py`. Prints one line of JSON: examples a CPU second of one thread; "loop" draws and
gathers batches, "step" takes turns with a few that lie ready.

Shapes: B queries, E events of their histories, D width of a table, V width of the vectors.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional
from turns import end_step

BATCH, HISTORY, DIM, TEMPERATURE = 4096, 50, 32, 0.05
BLOCK = 256
TABLE_RATE, RATE, EPS = 0.05, 2e-3, 1e-10
WARM_UP = 3

Hits: TypeAlias = tuple[Tensor, Tensor, list[int]]


@dataclass
class Batch:
    """Ids are rows of the two tables already.

    Args:
        queries: (B, 9) rows of the query table: the user and its features.
        items: (B, 9) rows of the item table: the target and its features.
        events: (E,) rows of the item table, histories one behind the other.
        offsets: (B + 1,) where each begins.
        log_counts: (B,) log of the expected count of each target in the batch.
    """

    queries: Tensor
    items: Tensor
    events: Tensor
    offsets: Tensor
    log_counts: Tensor


class World:
    """The log by user in order of time, and the rows of all features.

    Args:
        folder: What `world.py` wrote.
    """

    def __init__(self, folder: Path) -> None:
        log = pq.read_table(folder / "interactions.parquet")
        users, items, times = (log.column(n).to_numpy() for n in log.column_names[:3])
        order = np.lexsort((times, users))
        counts = np.bincount(users)
        firsts = np.concatenate([[0], np.cumsum(counts)])
        is_last = np.zeros(len(users), bool)
        is_last[firsts[1:] - 1] = True
        self.items = torch.from_numpy(items[order].astype(np.int32))
        self.users = torch.from_numpy(users[order].astype(np.int32))
        self.firsts = torch.from_numpy(firsts)
        self.examples = torch.from_numpy(np.flatnonzero(~is_last))
        shares = torch.bincount(self.items[self.examples], minlength=int(items.max()) + 1)
        self.log_counts = (shares / len(self.examples) * (BATCH - 1)).log()
        self.query_rows, self.num_query_rows = _rows(folder / "users.parquet")
        self.item_rows, self.num_item_rows = _rows(folder / "items.parquet")

    def batches(self) -> Iterator[Batch]:
        """Batches of a seeded permutation, without end."""
        generator = torch.Generator().manual_seed(0)
        while True:
            order = torch.randperm(len(self.examples), generator=generator)
            for chosen in order.split(BATCH)[: len(order) // BATCH]:
                yield self.batch(self.examples[chosen])

    def batch(self, examples: Tensor) -> Batch:
        """Rows and histories of some events (B,)."""
        users, items = self.users[examples], self.items[examples]
        lengths = (examples - self.firsts[users]).clamp(max=HISTORY)  # (B,)
        offsets = functional.pad(lengths.cumsum(0), (1, 0))  # (B + 1,)
        shift = (examples - offsets[1:]).repeat_interleave(lengths)  # (E,)
        return Batch(
            queries=self.query_rows.index_select(0, users),
            items=self.item_rows.index_select(0, items),
            events=self.items[shift + torch.arange(len(shift))],
            offsets=offsets.int(),
            log_counts=self.log_counts[items],
        )


def _rows(path: Path) -> tuple[Tensor, int]:
    """Columns of a table as rows of one table that holds all their values."""
    table = pq.read_table(path)
    columns, start = [], 0
    for name in table.column_names:
        values = table.column(name).to_numpy()
        columns.append(values + start)
        start += int(values.max()) + 1
    return torch.from_numpy(np.stack(columns, 1).astype(np.int32)), start


def tower(width: int) -> nn.Sequential:
    """Three layers to 64."""
    return nn.Sequential(
        nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64)
    )


class Table:
    """A table with row-wise Adagrad.

    Args:
        num_rows: How many rows.
        dim: Width D.
    """

    def __init__(self, num_rows: int, dim: int = DIM) -> None:
        self.weight = torch.randn(num_rows, dim) * 0.05
        self.sums = torch.zeros(num_rows)

    def update(self, rows: Tensor, sources: Tensor, gradients: Tensor) -> None:
        """Sum gradients by row and take a step on these rows.

        Args:
            rows: (K,) int32 rows, repeated ones among them.
            sources: (K,) which of the gradients each of them has.
            gradients: (G, D).
        """
        ordered, order = rows.sort()
        touched, counts = torch.unique_consecutive(ordered, return_counts=True)
        offsets = functional.pad(counts.cumsum(0), (1, 0))
        summed = functional.embedding_bag(
            sources[order], gradients, offsets, mode="sum", include_last_offset=True
        )  # (rows touched, D)
        touched = touched.long()
        sums = self.sums[touched] + summed.square().mean(1)
        self.sums[touched] = sums
        change = summed * (-TABLE_RATE / (sums.sqrt() + EPS))[:, None]
        self.weight.scatter_add_(0, touched[:, None].expand_as(change), change)


def softmax(
    queries: Tensor, items: Tensor, own: Tensor, offsets: Tensor | None, hits: Hits | None
) -> tuple[float, ...]:
    """Loss of the batch, and the gradients of queries (B, V) and items (C, V).

    Args:
        queries: (B, V).
        items: (C, V).
        own: (B,) which item is the target of each query.
        offsets: (C,) taken off logits; None where they are not corrected.
        hits: What else must not stand against a query, or None.
    """
    size, width = len(queries), len(items)
    of_queries, of_items = torch.empty_like(queries), matrix(items.shape[1], width).zero_()
    of_items = of_items[:, :width]
    if offsets is not None:  # a column more of both, which the product hardly notices
        wide = torch.cat([queries / TEMPERATURE, torch.ones(size, 1)], 1)  # (B, V + 1)
        others = torch.cat([items, -offsets[:, None]], 1).T  # (V + 1, C)
    loss = 0.0
    room = matrix(min(BLOCK, size), width).fill_(-torch.inf)
    for start in range(0, size, BLOCK):
        block = queries[start : start + BLOCK]
        stop = start + len(block)
        at = torch.arange(len(block)), own[start:stop]
        if offsets is None:
            logits = torch.mm(block, items.T, out=room[: len(block), :width])  # (b, C)
            logits.div_(TEMPERATURE)
        else:
            logits = torch.mm(wide[start:stop], others, out=room[: len(block), :width])
            if hits is not None:
                first, last = hits[2][start], hits[2][stop]
                logits[hits[0][first:last] - start, hits[1][first:last]] = -torch.inf
            logits[at] = (block * items[own[start:stop]]).sum(1) / TEMPERATURE
        torch.softmax(room[: len(block)], 1, out=room[: len(block)])
        loss -= float(logits[at].log().sum())
        logits[at] -= 1
        torch.mm(logits, items, out=of_queries[start:stop])
        of_items.addmm_(block.T, logits)
    scale = 1 / (TEMPERATURE * size)
    return loss / size, of_queries.mul_(scale), of_items.T.mul_(scale)


def matrix(rows: int, columns: int) -> Tensor:
    """Room for a matrix, and 16 columns: rows a power of two apart share few places of caches."""
    return torch.empty(rows, columns + 16)


def accidental_hits(targets: Tensor) -> Hits:
    """Pairs of a query and a candidate (P,) with the same target, and where each query's begin."""
    ordered, order = targets.sort()
    last = torch.searchsorted(ordered, targets, right=True)
    counts = last - torch.searchsorted(ordered, targets)  # (B,)
    ends = counts.cumsum(0)
    rows = torch.arange(len(targets)).repeat_interleave(counts)  # (P,)
    columns = order[(last - ends).repeat_interleave(counts) + torch.arange(len(rows))]
    return rows, columns, functional.pad(ends, (1, 0)).tolist()


class Model:
    """Tables, towers and a step.

    Args:
        world: The data.
        kind: "right", "merged", or "plain": neither corrected nor masked.
    """

    def __init__(self, world: World, kind: str) -> None:
        self.kind = kind
        self.query_table, self.item_table = Table(world.num_query_rows), Table(world.num_item_rows)
        self.query_tower, self.item_tower = tower(10 * DIM), tower(9 * DIM)
        weights = [*self.query_tower.parameters(), *self.item_tower.parameters()]
        self.adam = torch.optim.Adam(weights, lr=RATE, fused=True)

    def step(self, batch: Batch) -> float:
        """Train on a batch."""
        size, items = len(batch.queries), self.item_table.weight
        hits, offsets, own = None, None, torch.arange(size)
        target_rows, targets = batch.items, batch.items[:, 0].contiguous()
        if self.kind == "right":
            hits, offsets = accidental_hits(targets), batch.log_counts
        elif self.kind == "merged":
            rows, own, copies = targets.unique(return_inverse=True, return_counts=True)
            one_of = torch.empty(len(rows), dtype=torch.long).scatter_(0, own, torch.arange(size))
            target_rows = batch.items.index_select(0, one_of)  # (C, 9)
            offsets = batch.log_counts[one_of] - copies.log()
        query_ids, item_ids = batch.queries.flatten(), target_rows.flatten()
        lengths = batch.offsets.diff()
        history = functional.embedding_bag(
            batch.events, items, batch.offsets, mode="sum", include_last_offset=True
        )  # (B, D)
        shares = 1 / lengths.clamp(min=1).float()[:, None]
        query_rows = self.query_table.weight.index_select(0, query_ids).view(size, -1)
        of_users = torch.cat([query_rows, history * shares], 1).requires_grad_()  # (B, 10 D)
        of_targets = items.index_select(0, item_ids).view(len(target_rows), -1).requires_grad_()
        queries = functional.normalize(self.query_tower(of_users))
        targets = functional.normalize(self.item_tower(of_targets))
        loss, *gradients = softmax(queries.detach(), targets.detach(), own, offsets, hits)
        torch.autograd.backward([queries, targets], gradients)
        self.adam.step()
        self.adam.zero_grad()
        of_users, of_targets = of_users.grad, of_targets.grad
        by_place = of_users.view(-1, DIM)  # (B * 10, D), every tenth of a history
        places = torch.arange(len(by_place), dtype=torch.int32).view(size, 10)
        self.query_table.update(query_ids, places[:, :9].flatten(), by_place)
        owners = torch.arange(size, dtype=torch.int32).repeat_interleave(lengths)  # (E,)
        others = torch.arange(size, size + len(item_ids), dtype=torch.int32)
        pulled = torch.cat([of_users[:, 9 * DIM :] * shares, of_targets.view(-1, DIM)])
        self.item_table.update(
            torch.cat([batch.events, item_ids]), torch.cat([owners, others]), pulled
        )
        return loss


def seconds_of_step(clock: list[float]) -> float:
    """CPU seconds a step after the warm-up, from the end of each step."""
    return (clock[-1] - clock[WARM_UP - 1]) / (len(clock) - WARM_UP)


def keep_freed_memory() -> None:
    """Ask the C library not to give memory back to the system after every step."""
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    mallopt(-3, 2**30), mallopt(-1, 2**32 - 2**12)


def multiply_by_onednn() -> None:
    """Let torch give products to oneDNN, faster on Zen, unless it rounds to bfloat16 (AMX)."""
    torch.set_float32_matmul_precision("medium")
    factor = torch.full((128, 128), 1 + 2**-12)
    if float((factor @ factor)[0, 0]) < 128.03:  # 128.0625, and 128 of rounded factors
        torch.set_float32_matmul_precision("highest")


def measure(folder: Path, mode: str, kind: str, steps: int) -> dict[str, object]:
    """Figures of a run in one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    multiply_by_onednn()
    world = World(folder)
    model = Model(world, kind)
    batches = world.batches()
    if mode == "step":
        batches = cycle(list(islice(batches, 4)))
    clock, losses = [], []
    for batch in islice(batches, WARM_UP + steps):
        losses.append(model.step(batch))
        clock.append(time.process_time())
        end_step()
    seconds = seconds_of_step(clock)
    return {
        "peer": f"bare, {kind}",
        "mode": mode,
        "examples_per_cpu_second": BATCH / seconds,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "loss": float(np.mean(losses[-5:])),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mode", choices=["loop", "step"], default="loop")
    parser.add_argument("--loss", choices=["right", "plain", "merged"], default="right")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, choices=[BATCH], default=BATCH)
    given = parser.parse_args()
    print(json.dumps(measure(given.data, given.mode, given.loss, given.steps)))
