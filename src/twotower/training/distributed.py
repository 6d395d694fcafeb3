"""Several processes as one: what each holds is gathered, and what all must agree on is the same.

Everything here is a collective of torch: all processes must call it, in the same order. Gradients
of dense weights are averaged by `torch.nn.parallel.DistributedDataParallel`, those of tables that
it cannot take by `average_tables`: NCCL adds up no sparse tensors, and gradients of tables in
bfloat16 are wider than these.

Shapes: R processes, n things of one of them, N of all, V rows of a table, D width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from twotower.losses.ranks import Ranks
from twotower.training.batch_norm import SynchronisedBatchNorm

Array = npt.NDArray[Any]


class DistributedRanks:
    """The processes of a process group; see `twotower.losses.ranks.Ranks`.

    Args:
        group: The group; None for all processes.
        local_size: How many of them run on each machine; None for all.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, local_size: int | None = None
    ) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.local_size = local_size or self.size
        self._generators: dict[str, torch.Generator] = {}

    def share_random_state(self, device: torch.device) -> None:
        """From now on draw what is drawn for all from where torch's global generators stand."""
        self._generators = {"cpu": torch.Generator()}
        self._generators["cpu"].set_state(torch.get_rng_state())
        if device.type == "cuda":
            self._generators["cuda"] = torch.Generator(device)
            self._generators["cuda"].set_state(torch.cuda.get_rng_state(device))

    def generator(self, device: torch.device) -> torch.Generator | None:
        """See `Ranks`."""
        return self._generators[device.type]

    def random_states(self) -> dict[str, Tensor]:
        """States (bytes,) of the shared generators, by type of device."""
        return {device: state.get_state() for device, state in self._generators.items()}

    def set_random_states(self, states: Mapping[str, Tensor]) -> None:
        """Put the shared generators back, (bytes,) each; of devices that are there."""
        for device, state in states.items():
            if device in self._generators:
                self._generators[device].set_state(state.cpu())

    def counts(self, num: int) -> Sequence[int]:
        """See `Ranks`; a device is not waited for."""
        found = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(found, torch.tensor([num]), group=self.group)
        return [int(count) for count in found]

    def gather(self, values: Tensor) -> Tensor:
        """See `Ranks`; vectors in half precision come as float32, as gradients are added up."""
        if values.is_floating_point() and values.element_size() < torch.float32.itemsize:
            values = values.float()
        gathered: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
            values, self.counts(len(values)), self
        )
        return gathered

    def share_of(self, mean: Tensor, weights: Tensor) -> Tensor:
        """See `Ranks`."""
        own = weights.sum().to(mean.dtype)
        total = self.sum(own).clamp_min(torch.finfo(mean.dtype).tiny)
        return mean * (self.size * own / total)

    def mean(self, value: Tensor) -> Tensor:
        """See `Ranks`."""
        return self.sum(value) / self.size

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes, without gradient; in the same shape."""
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def first(self, value: Tensor) -> Tensor:
        """What the first process has, in all of them; any shape, but the same type in all."""
        sent = value.detach().clone()
        if sent.numel():
            dist.broadcast(sent, group=self.group, group_src=0)
        return sent


class _Gather(torch.autograd.Function):
    """All-gather of uneven shares, whose gradient is the sum over processes."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context
        values: Tensor,
        counts: Sequence[int],
        ranks: DistributedRanks,
    ) -> Tensor:
        """(n, ...) to (N, ...)."""
        ctx.counts, ctx.ranks = counts, ranks
        return _concatenated(_gather_padded(values, counts, ranks.group), counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        """(N, ...) to (n, ...), the gradients that all processes have for them."""
        total = gradient.clone(memory_format=torch.contiguous_format)  # the first is autograd's
        if len(total):
            dist.all_reduce(total, group=ctx.ranks.group)
        return torch.split(total, ctx.counts)[ctx.ranks.rank], None, None


def _gather_padded(
    values: Tensor, counts: Sequence[int], group: dist.ProcessGroup | None
) -> Tensor:
    """Values (R, max n, ...) of all processes, zeros behind the shorter shares."""
    longest = max(counts)
    padded = values.contiguous()
    if len(values) < longest:
        padded = values.new_zeros(longest, *values.shape[1:])
        padded[: len(values)] = values
    gathered = values.new_empty(len(counts), longest, *values.shape[1:])
    if longest:
        dist.all_gather(list(gathered.unbind()), padded, group=group)
    return gathered


def _concatenated(gathered: Tensor, counts: Sequence[int]) -> Tensor:
    """(R, max n, ...) to (N, ...)."""
    if min(counts) == max(counts):
        return gathered.flatten(0, 1)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def take_part(task: nn.Module, ranks: DistributedRanks) -> None:
    """Make a task ready to be trained by several processes.

    Args:
        task: The same in all processes, on the device that it is trained on.
        ranks: The processes; from now on they share a random state, the global one as it is now.

    Raises:
        ValueError: When it normalises over the batch in a way that sees a share alone.
    """
    local = [
        name
        for name, module in task.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SynchronisedBatchNorm)
    ]
    if local:
        raise ValueError(
            f"{', '.join(local)}: batch normalisation would see the share of one process alone; "
            "several processes can train a ranker with it, and no two-tower model"
        )
    tables = tables_apart(task)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        task, [*tables]
    )
    for table in tables.values():
        table.data.copy_(ranks.first(table))
    ranks.share_random_state(next(task.parameters()).device)


def tables_apart(model: nn.Module) -> dict[str, Tensor]:
    """Tables (V, D) of a model that `average_tables` is for, by name."""
    return {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and (module.sparse or module.weight.dtype != torch.float32)
    }


@torch.no_grad()
def average_tables(tables: Iterable[Tensor], ranks: DistributedRanks) -> None:
    """Average gradients over processes; what follows sees every row of a sparse one once.

    Args:
        tables: Tables (V, D) with a gradient of this process each.
        ranks: The processes.
    """
    for table in tables:
        if table.grad is None:
            continue
        if not table.grad.is_sparse:
            table.grad = ranks.mean(table.grad)
            continue
        own = table.grad.coalesce()
        rows, values = ranks.gather(own.indices()[0]), ranks.gather(own.values())  # (N,), (N, D)
        total = torch.sparse_coo_tensor(
            rows.unsqueeze(0), values / ranks.size, table.shape, check_invariants=False
        )
        table.grad = total.coalesce()


def wait_for_all(ranks: Ranks) -> None:
    """Go on when all processes have come here."""
    ranks.counts(0)


def agreed(values: Mapping[str, float], ranks: Ranks) -> dict[str, float]:
    """Figures as the first process has them, in all processes; all have the same names."""
    if not isinstance(ranks, DistributedRanks):
        return dict(values)
    found = ranks.first(torch.tensor([*values.values()], dtype=torch.float64))
    return dict(zip(values, found.tolist(), strict=True))


def arrays_of_first(
    arrays: Mapping[str, Array] | None, ranks: DistributedRanks
) -> dict[str, Array]:
    """Arrays that the first process has, in all processes.

    Args:
        arrays: Of any shape, by name; of the first process, the others' are not looked at.
        ranks: The processes.
    """
    given = arrays or {}
    header = json.dumps([(name, a.dtype.str, a.shape) for name, a in given.items()]).encode()
    size = ranks.first(torch.tensor([len(header)]))
    text = ranks.first(_bytes(np.frombuffer(header, np.uint8), int(size)))
    found = {}
    for name, dtype, shape in json.loads(text.numpy().tobytes()):
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        sent = ranks.first(_bytes(np.ascontiguousarray(given.get(name, ())), num_bytes))
        found[name] = sent.numpy().view(dtype).reshape(shape)
    return found


def _bytes(values: Array, size: int) -> Tensor:
    """The bytes of an array as (size,) uint8; other processes than the first have as many zeros."""
    own = values.reshape(-1).view(np.uint8)
    return (
        torch.from_numpy(own.copy()) if len(own) == size else torch.zeros(size, dtype=torch.uint8)
    )
