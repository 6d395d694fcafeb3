"""The yardstick of ranker training: DCN-v2 by hand, as fast as plain PyTorch allows.

    python benchmarks/speed/bare_ranker.py --data FOLDER [--batch 16384] [--further large]

26 columns embedded 16 wide in one table and 13 numbers, 429 wide, and three zeros, so that rows
begin where cache lines do; three full-rank cross layers beside 256-128-64; log loss; row-wise
Adagrad on the rows of the batch, Adam for the rest.
`--further` adds a column, of 10M values or of 1,000.

Data: `world.py`. Prints one line of JSON as `bare_two_tower.py` does.

Shapes: B rows of a batch, F columns, D width of the table, W width of the input.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from bare_two_tower import (
    RATE,
    WARM_UP,
    Table,
    keep_freed_memory,
    multiply_by_onednn,
    seconds_of_step,
)
from torch import Tensor, nn
from torch.nn import functional
from turns import end_step
from world import CLICK_FILES, click_sizes

DIM, NUM_CROSS = 16, 3
LINE = 16  # numbers of a cache line
Batch = tuple[Tensor, Tensor, Tensor]  # rows of the table (B, F), numbers (B, 16), labels (B,)


class Clicks:
    """The training rows of the click table.

    Args:
        folder: What `world.py` wrote.
        further: Which further column is there, a key of `CLICK_FILES`.
    """

    def __init__(self, folder: Path, further: str) -> None:
        world = json.loads((folder / "world.json").read_text())
        sizes = click_sizes(world, further)
        table = pq.read_table(folder / CLICK_FILES[further])
        table = table.filter(pc.equal(table.column("split").cast("string"), "train"))
        starts = np.concatenate([[0], np.cumsum(list(sizes.values()))])
        rows = np.empty((len(table), len(sizes)), np.int32)
        for at, name in enumerate(sizes):
            rows[:, at] = table.column(name).to_numpy() + starts[at]
        numbers = np.stack([table.column(n).to_numpy() for n in world["dense_columns"]], 1)
        numbers = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % LINE)))
        self.num_rows = int(starts[-1])
        self.rows = torch.from_numpy(rows)
        self.numbers = torch.from_numpy(numbers.astype(np.float32))
        self.labels = torch.from_numpy(table.column("label").to_numpy().astype(np.float32))

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of a seeded permutation, without end."""
        generator = torch.Generator().manual_seed(0)
        while True:
            order = torch.randperm(len(self.labels), generator=generator)
            for chosen in order.split(size)[: len(order) // size]:
                columns = (self.rows, self.numbers, self.labels)
                rows, numbers, labels = (c.index_select(0, chosen) for c in columns)
                yield rows, numbers, labels


class Network(nn.Module):
    """Cross layers beside a perceptron.

    Args:
        width: W.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(NUM_CROSS))
        self.deep = nn.Sequential(
            *(nn.Linear(width, 256), nn.ReLU()),
            *(nn.Linear(256, 128), nn.ReLU()),
            *(nn.Linear(128, 64), nn.ReLU()),
        )
        self.head = nn.Linear(width + 64, 1)

    def forward(self, x0: Tensor) -> Tensor:
        """Logits (B,) of inputs (B, W)."""
        x = x0
        for layer in self.cross:
            x = torch.addcmul(x, x0, layer(x))
        logits: Tensor = self.head(torch.cat([x, self.deep(x0)], 1)).squeeze(1)
        return logits


class Model:
    """Table, network and a step.

    Args:
        clicks: The data.
    """

    def __init__(self, clicks: Clicks) -> None:
        self.table = Table(clicks.num_rows, DIM)
        width = clicks.rows.shape[1] * DIM + clicks.numbers.shape[1]
        self.network = Network(width)
        self.adam = torch.optim.Adam(self.network.parameters(), lr=RATE, fused=True)

    def step(self, batch: Batch) -> float:
        """Train on a batch."""
        rows, values, labels = batch
        found = self.table.weight.index_select(0, rows.flatten()).view(len(rows), -1)
        found.requires_grad_()  # (B, F D)
        logits = self.network(torch.cat([found, values], 1))
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
        loss.backward()
        self.adam.step()
        self.adam.zero_grad()
        flat = rows.flatten()
        places = torch.arange(len(flat), dtype=torch.int32)
        self.table.update(flat, places, found.grad.view(-1, DIM))
        return float(loss.detach())


def measure(given: argparse.Namespace) -> dict[str, object]:
    """Figures of a run in one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    multiply_by_onednn()
    clicks = Clicks(given.data, given.further)
    model = Model(clicks)
    batches = clicks.batches(given.batch)
    if given.mode == "step":
        batches = cycle(list(islice(batches, 4)))
    clock, losses = [], []
    for batch in islice(batches, WARM_UP + given.steps):
        losses.append(model.step(batch))
        clock.append(time.process_time())
        end_step()
    return {
        "peer": "bare",
        "mode": given.mode,
        "examples_per_cpu_second": given.batch / seconds_of_step(clock),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "loss": float(np.mean(losses[-5:])),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mode", choices=["loop", "step"], default="loop")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--further", choices=list(CLICK_FILES), default="none")
    parser.add_argument("--steps", type=int, default=30)
    print(json.dumps(measure(parser.parse_args())))
