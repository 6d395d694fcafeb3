"""TorchRec: a two-tower model on its embedding bags, with the loss that its users write.

Variants: `fused`, tables of fbgemm that row-wise Adagrad updates within the backward pass; `plain`,
an EmbeddingBagCollection with dense gradients under Adam. TorchRec has no sampled softmax and no
loader of Parquet: both are written here as one would, the loss by `cross_entropy` of all scores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from measure import Clock, Run, main
from rows import ITEM_COLUMNS, USER_COLUMNS, Events, read_events, sizes
from torch import Tensor, nn
from torch.nn import functional
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.optim import RowWiseAdagrad

DIM, TOWER, TEMPERATURE = 32, [256, 128], 0.05
KEYS = ["user_id", *USER_COLUMNS, "history", "item_id", *ITEM_COLUMNS]
USER_WIDTH = DIM * (2 + len(USER_COLUMNS))


def tower(width: int) -> nn.Module:
    """256-128-64 without an activation at the end."""
    return nn.Sequential(MLP(width, TOWER), nn.Linear(TOWER[-1], 64))


class TwoTower(nn.Module):
    """Both towers on one collection of tables, `item_id` shared with the history."""

    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables
        self.user_tower = tower(USER_WIDTH)
        self.item_tower = tower(DIM * (1 + len(ITEM_COLUMNS)))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """In-batch softmax."""
        found = self.tables(features)
        vectors = torch.cat([found[key] for key in KEYS], dim=1)  # (B, 320 + 288)
        users = functional.normalize(self.user_tower(vectors[:, :USER_WIDTH]), dim=-1)
        items = functional.normalize(self.item_tower(vectors[:, USER_WIDTH:]), dim=-1)
        scores = users @ items.T / TEMPERATURE  # (B, B)
        return functional.cross_entropy(scores, torch.arange(len(scores)))


def collection(counts: dict[str, int], fused: bool) -> nn.Module:
    """A table for each column; the one of items answers to `history` and `item_id`."""
    tables = [
        EmbeddingBagConfig(
            name=name,
            num_embeddings=counts[name],
            embedding_dim=DIM,
            feature_names=["history", "item_id"] if name == "item_id" else [name],
            pooling=PoolingType.MEAN,
        )
        for name in KEYS
        if name != "history"
    ]
    if fused:
        return FusedEmbeddingBagCollection(
            tables, optimizer_type=RowWiseAdagrad, optimizer_kwargs={"lr": 0.02}
        )
    return EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))


def batches(events: Events, size: int) -> Iterator[KeyedJaggedTensor]:
    """An epoch in random order, each batch gathered at once."""
    order = np.random.permutation(len(events.users))
    ones = np.ones(size, dtype=np.int64)
    for first in range(0, len(order) - size + 1, size):
        at = order[first : first + size]
        found = events.take(at)
        history, lengths = events.packed_history(at)
        values = np.concatenate([history if key == "history" else found[key] for key in KEYS])
        counts = np.concatenate([lengths if key == "history" else ones for key in KEYS])
        yield KeyedJaggedTensor.from_lengths_sync(
            keys=KEYS, values=torch.from_numpy(values), lengths=torch.from_numpy(counts)
        )


class Loader:
    """Starts a new epoch each time it is asked."""

    def __init__(self, events: Events, size: int) -> None:
        self.events, self.size = events, size

    def __iter__(self) -> Iterator[KeyedJaggedTensor]:
        return batches(self.events, self.size)


def train(run: Run, clock: Clock) -> tuple[float, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    counts = sizes(run.data)
    loader = Loader(read_events(run.data, run.rows), run.batch)
    ready = time.process_time()
    fused = run.variant == "fused"
    model = TwoTower(collection(counts, fused))
    trained = [
        parameter
        for name, parameter in model.named_parameters()
        if not (fused and name.startswith("tables."))
    ]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    losses = []
    for features in clock.batches(loader):
        optimizer.zero_grad()
        loss = model(features)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return ready, sum(losses) / len(losses)


if __name__ == "__main__":
    main("torchrec two-tower", ("fused", "plain"), train)
