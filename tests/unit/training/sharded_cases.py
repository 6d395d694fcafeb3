"""What 1, 2 and 4 processes learn of the same batches; started by `test_sharded_tables.py`.

    python sharded_cases.py <folder of results> <rank> <size> <port>

Every step has 10 examples, which 4 processes cannot share evenly, or 3, so that one of 4 has none.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather
from torch.nn import functional
from torch.optim import AdamW

from twotower.features.spec import FeatureInput, ModelInputs
from twotower.models import embedding
from twotower.models.history import MeanPooling
from twotower.models.two_tower import Cosine, TwoTower
from twotower.training.optimizers import JointOptimizer, OptimizerSettings
from twotower.training.sharded_adagrad import ShardedRowWiseAdagrad
from twotower.training.sharded_checkpoint import load_tables, save_tables
from twotower.training.sharded_tables import shard_tables
from twotower.training.table_optimizers import RowWiseAdagrad

SIZES = (2, 1, 4)  # two come first, and save
STEPS, SAVED_AFTER = 12, 5
TEMPERATURE, INITIAL = 0.2, 0.01
# Rows of the tables; none can be shared evenly by 2 or by 4.
USERS, ITEMS, TAGS, LENGTH = 23, 17, 11, 4
CPU = torch.device("cpu")
SETTINGS = OptimizerSettings(
    learning_rate=0.01,
    table_learning_rate=0.1,
    table_optimizer=partial(RowWiseAdagrad, initial=INITIAL),
    warmup_share=0.3,
    final_share=0.1,
)


def feature(name, side, kind, num_rows, width=0):
    return FeatureInput(name=name, side=side, kind=kind, dim=0, num_rows=num_rows, width=width)


def build(seed):
    """A two-tower model whose tables all have sparse gradients."""
    torch.manual_seed(seed)
    rows, embedding.MIN_SPARSE_ROWS = embedding.MIN_SPARSE_ROWS, 0
    model = TwoTower(
        inputs=ModelInputs(
            features=(
                feature("user_id", "user", "id", USERS),
                feature("item_id", "item", "id", ITEMS),
                feature("tags", "item", "tags", TAGS, width=3),
            ),
            history_length=LENGTH,
            history_features=("item_id", "tags"),
        ),
        dim=8,
        embedding_dim=4,
        hidden=[12],
        history=MeanPooling,
        similarity=Cosine(),
    )
    embedding.MIN_SPARSE_ROWS = rows
    return model


def batch_of(step):
    """All examples of a step: users, items, and histories that share rows with the items."""
    draw = torch.Generator().manual_seed(step)
    size = 3 if step % 4 == 3 else 10

    def rows(high, *shape):
        return torch.randint(high, (size, *shape), generator=draw)

    return {
        "user_id": rows(USERS),
        "item_id": rows(ITEMS),
        "tags": rows(TAGS, 3),
        "history.item_id": rows(ITEMS, LENGTH),
        "history.tags": rows(TAGS, LENGTH, 3),
        "history.mask": rows(2, LENGTH).bool(),
    }


def loss_of(model, batch):
    """In-batch softmax over all processes, so that the mean of the gradients is that of one."""
    total = len(batch["user_id"])
    size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    counts = [total // size + (at < total % size) for at in range(size)]
    first = sum(counts[:rank])
    own = {name: column[first : first + counts[rank]] for name, column in batch.items()}
    queries, items = model.embed_queries(own), model.embed_items(own)
    if size > 1:
        padded = functional.pad(items, (0, 0, 0, max(counts) - len(items)))
        gathered = all_gather(padded)
        items = torch.cat([part[:num] for part, num in zip(gathered, counts, strict=True)])
    targets = torch.arange(first, first + counts[rank])
    losses = functional.cross_entropy(queries @ items.T / TEMPERATURE, targets, reduction="sum")
    return losses * size / total


def train(model, optimizer, steps, after=lambda step: None):
    """Losses of the steps, of all processes together."""
    schedule = SETTINGS.schedule(optimizer, STEPS)
    curve = []
    for step in range(STEPS):
        if step not in steps:
            schedule.step()
            continue
        loss = loss_of(model, batch_of(step))
        optimizer.zero_grad()  # after the look-ups, as Lightning does
        loss.backward()
        whole = loss.detach().clone()
        if dist.is_initialized():
            for value in (whole, *(p.grad for p in model.parameters())):
                dist.all_reduce(value)
                value /= dist.get_world_size()
        curve.append(whole.item())
        optimizer.step()
        schedule.step()
        after(step + 1)
    return curve


def one_process():
    """Losses with whole tables in one process, and the tables after some and after all steps."""
    model = build(seed=0)
    kept = {}
    curve = train(
        model,
        SETTINGS.optimizer(model),
        range(STEPS),
        after=lambda step: kept.update({step: tables_of(model)}),
    )
    return curve, kept[SAVED_AFTER], kept[STEPS]


def tables_of(model):
    return {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
    }


def split(seed):
    """Model, optimizer and tables, the tables split over the processes."""
    model = build(seed)
    tables = shard_tables(model, device=CPU)
    rates = {"lr": SETTINGS.table_learning_rate, "initial": INITIAL}
    dense = AdamW(model.parameters(), lr=SETTINGS.learning_rate, weight_decay=0.0)
    return model, JointOptimizer([dense, ShardedRowWiseAdagrad(tables, **rates)]), tables


def whole(tables):
    """Every row, looked up by all processes."""
    with torch.no_grad():
        return {name: table(torch.arange(table.num_embeddings)) for name, table in tables.items()}


def trained(folder):
    """Train all steps; two processes save on their way."""
    model, optimizer, tables = split(0)

    def save(step):
        if step == SAVED_AFTER and dist.get_world_size() == 2:
            save_tables(tables, folder / "tables")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, folder / f"dense-{dist.get_rank()}.pt")

    curve = train(model, optimizer, range(STEPS), save)
    return {"curve": curve, "tables": whole(tables), "parameters": [*model.state_dict()]}


def resumed(folder):
    """Go on from what two processes saved, with nothing else of theirs."""
    model, optimizer, tables = split(99)
    state = torch.load(folder / "dense-0.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    load_tables(tables, folder / "tables")
    curve = train(model, optimizer, range(SAVED_AFTER, STEPS))
    return {"curve": curve, "tables": whole(tables)}


def main(results, rank, size, port):
    """Train from the start, then once more from what two processes have saved."""
    torch.set_num_threads(1)
    folder, rank, size = Path(results), int(rank), int(size)
    store = dist.TCPStore("127.0.0.1", int(port), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    for task in (trained, resumed):
        torch.save(task(folder), folder / f"{task.__name__}-{size}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
