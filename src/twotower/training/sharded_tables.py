"""Tables that outgrow one device: their rows are split over processes by TorchRec.

`shard_tables` puts a `ShardedTable` in the place of every table of a model that has sparse
gradients; each process then holds a share of the rows. What a process looks up comes from the
others by an all-to-all, and so do the gradients go back: those of a step are summed, averaged over
processes, and fbgemm updates every row once. Steps are those of
`twotower.training.table_optimizers.RowWiseAdagrad` on a table that every process holds.

Looking up and stepping are collectives: all processes do them in the same order, as they do when
all run the same model; one that has no rows to look up takes part with none.

The rows are no parameters of the model: AdamW, DistributedDataParallel and its checkpoint see the
weights that all processes hold. `twotower.training.sharded_checkpoint` saves the rows.

Ivchenko et al. 2022, "TorchRec: a PyTorch Domain Library for Recommendation Systems"; Mudigere et
al. 2022, "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
Recommendation Models".

Shapes: V rows of a table, D width, R processes, K distinct rows of one look-up, N of a step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-10
WIDTHS = 4
# The one table of a collection of TorchRec, and the feature that is looked up in it.
TABLE = "table"
ROWS, SUMS = "rows", "sums"


@dataclass(frozen=True)
class _LookUp:
    """Rows (K,) and their vectors (K, D), whose gradient is what the table is to learn."""

    rows: Tensor
    vectors: Tensor


class ShardedTable(nn.Module):
    """A table of which every process holds a share of the rows; called as `nn.Embedding` is.

    Args:
        table: The table as it starts, the same in all processes; it is copied.
        env: The processes, a ``torchrec.distributed.types.ShardingEnv``.
        device: Where this process holds its share and looks up.
        eps: Of row-wise Adagrad; keeps its division finite.

    Raises:
        ValueError: When the last process would hold no row, or the rows are of an odd width.
    """

    def __init__(
        self,
        table: nn.Embedding,
        *,
        env: Any,  # noqa: ANN401 - TorchRec is an extra
        device: torch.device,
        eps: float,
    ) -> None:
        super().__init__()
        num_processes = dist.get_world_size()
        share = -(-table.num_embeddings // num_processes)
        if table.embedding_dim % WIDTHS:
            raise ValueError(
                f"a table that is split must be a multiple of {WIDTHS} wide, as fbgemm stores it; "
                f"got {table.embedding_dim}"
            )
        if share * (num_processes - 1) >= table.num_embeddings:
            raise ValueError(
                f"a table of {table.num_embeddings} rows cannot be split over {num_processes} "
                f"processes of {share} rows each: the last one would have none; take fewer "
                "processes, or keep the table whole"
            )
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx, self.device = table.padding_idx, device
        # Behind a tuple it is no part of this module, so its share is no parameter of the model.
        # What TorchRec draws for its rows is not kept, so nothing that is drawn later may change.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._parts = (_collection(table, env, device, eps),)
        self._look_ups: list[_LookUp] = []
        first = dist.get_rank() * share
        with torch.no_grad():
            self.shard.copy_(table.weight[first : first + share])

    @property
    def shard(self) -> Tensor:
        """The rows of this process, (ceil(V / R), D) or, of the last one, fewer."""
        return _local(self.state()[ROWS])

    @property
    def sums(self) -> Tensor:
        """Their accumulators of row-wise Adagrad, (ceil(V / R),) or fewer."""
        return _local(self.state()[SUMS])

    def state(self) -> dict[str, Any]:
        """Rows and accumulators of all processes, as torch.distributed.checkpoint takes them."""
        (collection,) = self._parts
        (optimizer_state,) = collection.fused_optimizer.state_dict()["state"].values()
        return {
            ROWS: collection.state_dict()[f"embeddings.{TABLE}.weight"],
            SUMS: optimizer_state[f"{TABLE}.momentum1"],
        }

    def forward(self, rows: Tensor) -> Tensor:
        """Look rows up.

        Args:
            rows: ``(...)`` within 0..V - 1; other processes may look up other numbers of rows.

        Returns:
            ``(..., D)``.
        """
        distinct, places = torch.unique(rows, return_inverse=True)  # (K,), (...)
        with torch.no_grad():
            vectors = self._collect(distinct)  # (K, D)
        if torch.is_grad_enabled():
            vectors.requires_grad_()
            self._look_ups.append(_LookUp(distinct, vectors))
        return functional.embedding(places, vectors)  # (..., D)

    def update(self, lr: float) -> None:
        """Step the rows that have a gradient in any process, and forget what was looked up.

        Args:
            lr: Learning rate.
        """
        rows, gradients = self._gradients()  # (N,), (N, D)
        (collection,) = self._parts
        for group in collection.fused_optimizer.param_groups:
            group["lr"] = lr
        collection.fused_optimizer.step()  # hands the rate on; the backward pass does the step
        with torch.enable_grad():
            vectors = self._collect(rows)  # (N, D)
            torch.autograd.backward(vectors, gradients * self._to_mean())

    def forget_gradients(self) -> None:
        """Drop the gradients of what was looked up."""
        for look_up in self._look_ups:
            look_up.vectors.grad = None

    def _gradients(self) -> tuple[Tensor, Tensor]:
        """Rows (N,) that this process has gradients (N, D) for, each once."""
        with_gradient = [each for each in self._look_ups if each.vectors.grad is not None]
        self._look_ups = []
        rows = torch.cat(
            [torch.empty(0, dtype=torch.long, device=self.device)]
            + [each.rows for each in with_gradient]
        )
        values = torch.cat(
            [torch.empty(0, self.embedding_dim, device=self.device)]
            + [each.vectors.grad for each in with_gradient if each.vectors.grad is not None]
        )
        if self.padding_idx is not None:
            kept = rows != self.padding_idx
            rows, values = rows[kept], values[kept]
        distinct, places = torch.unique(rows, return_inverse=True)
        return distinct, values.new_zeros(len(distinct), self.embedding_dim).index_add_(
            0, places, values
        )

    def _collect(self, rows: Tensor) -> Tensor:
        """Vectors (K, D) of rows (K,), from all processes."""
        from torchrec import KeyedJaggedTensor

        (collection,) = self._parts
        # One bag of all rows: an example each would be as many lengths to send.
        lengths = torch.tensor([len(rows)], device=self.device)
        asked = KeyedJaggedTensor(keys=[TABLE], values=rows, lengths=lengths)
        vectors: Tensor = collection(asked)[TABLE].values()
        return vectors

    def _to_mean(self) -> float:
        """What a gradient is multiplied by, so that TorchRec makes the mean over processes."""
        from torchrec.distributed.comm_ops import get_gradient_division

        return 1.0 if get_gradient_division() else 1.0 / dist.get_world_size()


def shard_tables(
    model: nn.Module,
    *,
    device: torch.device,
    eps: float = EPS,
) -> dict[str, ShardedTable]:
    """Split every table of a model that has sparse gradients; all processes call it together.

    Args:
        model: The same in all processes, its tables still whole; changed in place.
        device: Where this process trains.
        eps: Of row-wise Adagrad.

    Returns:
        The tables by the name of their module, for the optimizer and the checkpoint.

    Raises:
        ValueError: When the model has no table with sparse gradients, or one that cannot be split.
        ImportError: Without the extra `distributed`.
    """
    with _quiet():
        return _shard_tables(model, device, eps)


def _shard_tables(model: nn.Module, device: torch.device, eps: float) -> dict[str, ShardedTable]:
    env = _environment()
    sharded: dict[str, ShardedTable] = {}
    of_table: dict[nn.Module, ShardedTable] = {}
    for path, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):
            if not (isinstance(child, nn.Embedding) and child.sparse):
                continue
            if child not in of_table:
                of_table[child] = ShardedTable(child, env=env, device=device, eps=eps)
                sharded[f"{path}.{name}".lstrip(".")] = of_table[child]
            setattr(parent, name, of_table[child])
    if not sharded:
        raise ValueError(
            "the model has no table to split: none has sparse gradients; embedders of the model "
            "must be built with sparse=True, and have a table of at least "
            "`twotower.models.embedding.MIN_SPARSE_ROWS` rows"
        )
    return sharded


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what fbgemm and TorchRec say of every table, some of it as the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _local(tensor: Any) -> Tensor:  # noqa: ANN401 - a ShardedTensor, which has no type
    """The share of this process, not a copy."""
    (shard,) = tensor.local_shards()
    part: Tensor = shard.tensor
    return part


def _environment() -> Any:  # noqa: ANN401 - TorchRec is an extra
    """All processes, as TorchRec takes them; they call it together."""
    try:
        from torchrec.distributed.types import ShardingEnv
    except ImportError as error:
        raise ImportError(
            "splitting tables over processes needs TorchRec and fbgemm: "
            f"pip install 'twotower[distributed]' ({error})"
        ) from error
    # Not a group of some: TorchRec makes groups of its own, which is for all to do.
    return ShardingEnv.from_process_group(dist.distributed_c10d._get_default_group())


def _collection(
    table: nn.Embedding,
    env: Any,  # noqa: ANN401 - TorchRec is an extra
    device: torch.device,
    eps: float,
) -> Any:  # noqa: ANN401
    """TorchRec's collection of this one table, its rows over the processes, not yet filled."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise

    config = EmbeddingConfig(
        name=TABLE,
        num_embeddings=table.num_embeddings,
        embedding_dim=table.embedding_dim,
        feature_names=[TABLE],
    )
    whole = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    # The rate is set before each step.
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.0, "eps": eps}
    sharder = EmbeddingCollectionSharder(fused_params=fused)
    plan = construct_module_sharding_plan(
        whole,
        per_param_sharding={TABLE: row_wise(compute_kernel="fused")},
        sharder=sharder,
        world_size=dist.get_world_size(),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())),
        device_type=device.type,
    )
    return sharder.shard(whole, plan, env, device)
