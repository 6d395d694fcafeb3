"""What several processes learn with split tables; started by `test_sharded_tasks.py`.

    python sharded_tasks.py <prepared folder> <folder of results> <rank> <size> <port>

The tasks and batches are those of `distributed_cases.py`, whose last batches leave one of 4
processes without an example.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from twotower.data.shuffled_batches import ShuffledBatches
from twotower.losses.ranks import OneRank
from twotower.models import embedding
from twotower.training.distributed import DistributedRanks, take_part
from twotower.training.optimizers import JointOptimizer
from twotower.training.sharded_adagrad import ShardedRowWiseAdagrad
from twotower.training.sharded_tables import shard_tables

NAMES = (
    *(f"{shape}: everything" for shape in ("event", "sequence", "user")),
    *("event: in batch", "event: blockwise", "event: catalogue", "ranking"),
)
EPOCHS = 4


def load_cases():
    path = Path(__file__).with_name("distributed_cases.py")
    spec = importlib.util.spec_from_file_location("distributed_cases", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = load_cases()


def losses(name, world, ranks):
    """Losses of all steps: of one process with whole tables, or of several with split ones."""
    rows, embedding.MIN_SPARSE_ROWS = embedding.MIN_SPARSE_ROWS, 0
    task, examples = cases.build_case(name, world, ranks)
    embedding.MIN_SPARSE_ROWS = rows
    curve = []
    task.forward = lambda batch: task.training_step(batch, 0)
    torch.manual_seed(11)
    step, optimizer = task, cases.OPTIMIZER.optimizer(task)
    if not isinstance(ranks, OneRank):
        rates = cases.OPTIMIZER
        tables = shard_tables(task, device=cases.CPU)
        take_part(task, ranks)
        torch.manual_seed(1000 + ranks.rank)
        dense = AdamW(task.parameters(), lr=rates.learning_rate, weight_decay=0.0)
        sharded = ShardedRowWiseAdagrad(tables, lr=rates.table_learning_rate)
        step = DistributedDataParallel(task, broadcast_buffers=False)
        optimizer = JointOptimizer([dense, sharded])
    loader = ShuffledBatches(
        examples.rows[: cases.NUM_EXAMPLES],
        batch_size=cases.BATCH,
        seed=3,
        assemble=cases.with_weights(examples.share_of_batch(ranks)),
    )
    for _ in range(EPOCHS):
        for batch in loader:
            loss = step(batch)
            optimizer.zero_grad()
            loss.backward()
            task.on_after_backward()
            optimizer.step()
            curve.append(*map(float, task.figures.values()))
    return curve


def main(prepared, results, rank, size, port):
    torch.set_num_threads(1)
    rank, size = int(rank), int(size)
    store = dist.TCPStore("127.0.0.1", int(port), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world = cases.world_of(prepared)
    found = {name: losses(name, world, DistributedRanks()) for name in NAMES}
    torch.save(found, Path(results) / f"{size}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
