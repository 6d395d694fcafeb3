"""Real models of the sizes that a plan speaks of, and meters that count what they do."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from twotower.features.spec import FeatureInput, ModelInputs
from twotower.losses.fused_softmax import fused_softmax
from twotower.losses.logits import Logits
from twotower.losses.masks import PositiveMask
from twotower.models.cross import full_rank
from twotower.models.dcn import DCNv2, Parallel
from twotower.models.history import MeanPooling, RecentAndMean
from twotower.models.mlp import MLP
from twotower.models.two_tower import Cosine, TwoTower
from twotower.planning.capacity_work import NUM_RECENT, Ranker, Towers
from twotower.training.optimizers import split_parameters

NUM_USERS, NUM_ITEMS = 60_000, 70_000

# What only looks at a tensor in another way, or makes room for one.
NO_TRAFFIC = ("detach", "view", "expand", "empty", "empty_like", "new_empty", "alias")
NO_TRAFFIC += ("_values", "_indices", "is_coalesced", "_coalesced_", "sparse_dim", "_nnz", "t")
NO_TRAFFIC += ("_unsafe_view", "_sparse_coo_tensor_with_dims_and_tensors")


def inputs_of(num_users: int, num_items: int, history: int) -> ModelInputs:
    """An id a side and a history of items."""
    features = tuple(
        FeatureInput(name=f"{side}_id", side=side, kind="id", dim=0, num_rows=rows + 1, width=0)
        for side, rows in (("user", num_users), ("item", num_items))
    )
    return ModelInputs(features=features, history_length=history, history_features=("item_id",))


def batch_of(size: int, history: int) -> dict[str, Tensor]:
    """Ids that were never drawn for another place of the batch more often than chance has it."""
    draws = torch.Generator().manual_seed(0)
    return {
        "user_id": torch.randint(1, NUM_USERS, (size,), generator=draws),
        "item_id": torch.randint(1, NUM_ITEMS, (size,), generator=draws),
        "history.item_id": torch.randint(1, NUM_ITEMS, (size, history), generator=draws),
        "history.mask": torch.ones(size, history, dtype=torch.bool),
        "retrieval_score": torch.rand(size, generator=draws),
    }


def towers_model(towers: Towers) -> TwoTower:
    return TwoTower(
        inputs=inputs_of(NUM_USERS, NUM_ITEMS, towers.history),
        dim=towers.dim,
        embedding_dim=towers.width,
        hidden=towers.hidden,
        history=MeanPooling,
        similarity=Cosine(),
        dropout=0.1,
    )


def ranker_model(ranker: Ranker) -> DCNv2:
    return DCNv2(
        inputs=inputs_of(NUM_USERS, NUM_ITEMS, ranker.history),
        embedding_dim=ranker.width,
        structure=Parallel,
        cross=functools.partial(full_rank, num_layers=ranker.cross_layers),
        deep=functools.partial(MLP, hidden=ranker.hidden, dropout=0.1),
        history=functools.partial(RecentAndMean, num_recent=NUM_RECENT),
        retrieval_score=True,
    )


def tables_of(model: nn.Module) -> list[Tensor]:
    return split_parameters(model)[0]


def towers_loss(model: TwoTower, batch: dict[str, Tensor]) -> Tensor:
    return model.embed_queries(batch).sum() + model.embed_items(batch).sum()


def softmax_step(size: int, candidates: int, dim: int) -> Callable[[], None]:
    """Loss and gradients of some queries against some candidates."""
    torch.manual_seed(0)
    queries, targets, others = (
        functional.normalize(torch.randn(rows, dim)).requires_grad_()
        for rows in (size, size, candidates)
    )
    own, none = torch.arange(size), torch.zeros(0, dtype=torch.long)
    mask = PositiveMask(
        target_rows=own, users=own, num_users=size, known_users=none, known_rows=none
    )
    logits = Logits(
        temperature=0.05,
        log_expected_count=torch.zeros(candidates),
        masked=mask.on(torch.arange(candidates)),
    )
    return lambda: fused_softmax(queries, targets, others, logits).backward()


class Traffic(TorchDispatchMode):
    """Counts operations, and bytes that they would read and write one after the other.

    Of a table that is looked up or written to by rows, only those rows are counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = self.num_operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket).removeprefix("aten.")
        read = [_bytes(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        written = sum(_bytes(t) for t in tree_leaves(found) if isinstance(t, Tensor))
        if func.is_view or name in NO_TRAFFIC:
            return found
        if name in ("embedding", "index", "index_select"):  # of the table, what comes out
            read = [written, *read[1:]]
        if name in ("index_add_", "index_put_", "scatter_add_"):  # of the table, what goes in
            read = read[1:]
            written = max(read)
        self.num_bytes += sum(read) + written
        self.num_operations += 1
        return found


def _bytes(tensor: Tensor) -> int:
    if tensor.is_sparse:
        return _bytes(tensor._values()) + _bytes(tensor._indices())
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    there = math.prod(size for size, step in sizes if step)  # what is expanded is there once
    return there * tensor.element_size()


def traffic(step: Callable[[], object]) -> Traffic:
    with Traffic() as meter:
        step()
    return meter


def operations(step: Callable[[], object]) -> int:
    """Floating point operations of matrix products."""
    in_place = {torch.ops.aten.addmm_: _addmm_operations}
    with FlopCounterMode(display=False, custom_mapping=in_place) as meter:
        step()
    return int(meter.get_total_flops())


def _addmm_operations(total, left, right, *_, out_shape=None, **__) -> int:
    return 2 * left[0] * left[1] * right[1]


def peak_bytes(step: Callable[[], object]) -> int:
    """Most bytes that were alive at a time, of those that a step allocated."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak
