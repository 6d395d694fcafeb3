"""TorchRec: a deep & cross ranker on its embedding bags and its cross network.

Variants: `fused`, full-rank cross layers of width 429 beside the perceptron on tables that row-wise
Adagrad updates within the backward pass; `plain`, the same with dense gradients under Adam; `dlrm`,
TorchRec's own DLRM_DCN (dense columns through a perceptron to 16, low-rank cross layers of 216 on
27 x 16, the perceptron behind them) on fused tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from measure import Clock, Run, main
from rows import Clicks, read_clicks, sizes
from torch import Tensor, nn
from torch.nn import functional
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM_DCN
from torchrec.modules.crossnet import CrossNet
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.optim import RowWiseAdagrad

DIM, LAYERS, CROSS_LAYERS, LOW_RANK = 16, [256, 128, 64], 3, 216
Batch = tuple[Tensor, KeyedJaggedTensor, Tensor]


class CrossRanker(nn.Module):
    """Cross layers and a perceptron side by side."""

    def __init__(self, tables: nn.Module, width: int) -> None:
        super().__init__()
        self.tables = tables
        self.cross = CrossNet(width, CROSS_LAYERS)
        self.deep = MLP(width, LAYERS)
        self.head = nn.Linear(width + LAYERS[-1], 1)

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        """Logits of shape (B, 1)."""
        inputs = torch.cat([self.tables(features).values(), dense], dim=1)  # (B, 429)
        return self.head(torch.cat([self.cross(inputs), self.deep(inputs)], dim=1))


def collection(names: tuple[str, ...], counts: dict[str, int], fused: bool) -> nn.Module:
    """A table for each categorical column."""
    tables = [
        EmbeddingBagConfig(
            name=name, num_embeddings=counts[name], embedding_dim=DIM, feature_names=[name]
        )
        for name in names
    ]
    if fused:
        return FusedEmbeddingBagCollection(
            tables, optimizer_type=RowWiseAdagrad, optimizer_kwargs={"lr": 0.02}
        )
    return EmbeddingBagCollection(tables=tables, device=torch.device("cpu"))


class Loader:
    """Batches in random order, cut from two matrices as TorchRec's Criteo loader does."""

    def __init__(self, clicks: Clicks, size: int) -> None:
        self.keys, self.size = list(clicks.names), size
        self.values = np.stack(list(clicks.categorical.values()), axis=1)  # (E, columns)
        self.dense = np.stack(list(clicks.dense.values()), axis=1)  # (E, 13)
        self.labels = clicks.labels
        self.lengths = torch.ones(len(self.keys) * size, dtype=torch.int64)

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.permutation(len(self.labels))
        for first in range(0, len(order) - self.size + 1, self.size):
            at = order[first : first + self.size]
            features = KeyedJaggedTensor.from_lengths_sync(
                keys=self.keys,
                values=torch.from_numpy(self.values[at].T.reshape(-1)),
                lengths=self.lengths,
            )
            yield torch.from_numpy(self.dense[at]), features, torch.from_numpy(self.labels[at])


def model_of(variant: str, clicks: Clicks, counts: dict[str, int]) -> nn.Module:
    """The variant's model."""
    tables = collection(clicks.names, counts, fused=variant != "plain")
    if variant != "dlrm":
        return CrossRanker(tables, DIM * len(clicks.names) + len(clicks.dense))
    # DLRM_DCN asks for the class but needs only the tables' configurations and their output.
    unfused = EmbeddingBagCollection(
        tables=tables.embedding_bag_configs(), device=torch.device("meta")
    )
    model = DLRM_DCN(
        embedding_bag_collection=unfused,
        dense_in_features=len(clicks.dense),
        dense_arch_layer_sizes=[*LAYERS, DIM],
        over_arch_layer_sizes=[*LAYERS, 1],
        dcn_num_layers=CROSS_LAYERS,
        dcn_low_rank_dim=LOW_RANK,
        dense_device=torch.device("cpu"),
    )
    model.sparse_arch.embedding_bag_collection = tables
    return model


def train(run: Run, clock: Clock) -> tuple[float, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    counts = sizes(run.data)
    clicks = read_clicks(run.data, run.rows, run.large)
    loader = Loader(clicks, run.batch)
    ready = time.process_time()
    model = model_of(run.variant, clicks, counts)
    fused = {
        id(table)
        for part in model.modules()
        if isinstance(part, FusedEmbeddingBagCollection)  # updated within the backward pass
        for table in part.parameters()
    }
    trained = [parameter for parameter in model.parameters() if id(parameter) not in fused]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    losses = []
    for dense, features, labels in clock.batches(loader):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(dense, features)[:, 0], labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return ready, sum(losses) / len(losses)


if __name__ == "__main__":
    main("torchrec ranker", ("fused", "plain", "dlrm"), train)
