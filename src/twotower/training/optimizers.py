"""AdamW for dense weights and an optimizer for tables, as one optimizer of one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from twotower.training.sharded_adagrad import ShardedRowWiseAdagrad
from twotower.training.sharded_tables import EPS, ShardedTable
from twotower.training.table_optimizers import RowWiseAdagrad


class JointOptimizer(Optimizer):
    """Optimizers behind one interface: schedulers, checkpoints and Lightning see one.

    Args:
        members: The optimizers, at least one.
    """

    def __init__(self, members: Sequence[Optimizer]) -> None:
        self.members = list(members)
        groups = [group for member in self.members for group in member.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """The members' own groups, so that a scheduler that sets a rate here sets it there."""
        self.param_groups = [group for member in self.members for group in member.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step all."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all."""
        for member in self.members:
            member.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """States of all."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all."""
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)
        self._share_groups()


class TableOptimizer(Protocol):
    """Builds the optimizer of the tables; in YAML it stands with ``_partial_: true``."""

    def __call__(self, params: Iterable[Tensor], *, lr: float) -> Optimizer:
        """An optimizer for tables (V, D) whose gradients are sparse or dense."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How a model is optimised.

    Args:
        learning_rate: Of AdamW, for dense weights.
        table_learning_rate: Of the tables' optimizer.
        table_optimizer: Builds it; see `twotower.training.table_optimizers`.
        weight_decay: Of AdamW; tables have none.
        warmup_share: Share of all steps in which the rates rise from 0.
        final_share: Share of the rates at the last step, reached along a cosine; 1 keeps them.
        max_norm: Dense gradients are scaled down to this norm; 0 leaves them.

    Raises:
        ValueError: When a rate or share is out of range.
    """

    learning_rate: float
    table_learning_rate: float
    table_optimizer: TableOptimizer = RowWiseAdagrad
    weight_decay: float = 0.0
    warmup_share: float = 0.0
    final_share: float = 1.0
    max_norm: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            f"`{name}` must be above 0, got {value}"
            for name in ("learning_rate", "table_learning_rate")
            if (value := getattr(self, name)) <= 0
        ]
        problems += [
            f"`{name}` must be within 0..1, got {value}"
            for name in ("warmup_share", "final_share")
            if not 0 <= (value := getattr(self, name)) <= 1
        ]
        problems += [
            f"`{name}` must be at least 0, got {value}"
            for name in ("weight_decay", "max_norm")
            if (value := getattr(self, name)) < 0
        ]
        if problems:
            raise ValueError("\n".join(problems))

    def optimizer(self, model: nn.Module) -> JointOptimizer:
        """The optimizers of a model: one for dense weights, one for tables, where it has them."""
        tables, dense = split_parameters(model)
        members: dict[str, Optimizer] = {}
        if dense:
            members["learning_rate"] = AdamW(
                dense, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
            )
        if tables:
            members["table_learning_rate"] = self.table_optimizer(
                tables, lr=self.table_learning_rate
            )
        split = {n: m for n, m in model.named_modules() if isinstance(m, ShardedTable)}
        if split:
            members["split_table_learning_rate"] = ShardedRowWiseAdagrad(
                split, lr=self.table_learning_rate, initial=_initial(self.table_optimizer)
            )
        for name, member in members.items():
            member.param_groups[0]["name"] = name
        return JointOptimizer(list(members.values()))

    def schedule(self, optimizer: Optimizer, num_steps: int) -> LambdaLR:
        """Warm-up and cosine over `num_steps` steps."""
        warmup = self.warmup_share * num_steps

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            progress = min(1.0, (step - warmup) / max(1.0, num_steps - warmup))
            cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
            return self.final_share + (1.0 - self.final_share) * cosine

        return LambdaLR(optimizer, factor)

    def clip(self, model: nn.Module) -> None:
        """Scale the dense gradients down; the optimizers of tables scale theirs themselves."""
        if self.max_norm > 0:
            torch.nn.utils.clip_grad_norm_(split_parameters(model)[1], self.max_norm)


def _initial(table_optimizer: TableOptimizer) -> float:
    """The first accumulator of row-wise Adagrad, which is what split tables are stepped by."""
    function = getattr(table_optimizer, "func", table_optimizer)
    options = dict(getattr(table_optimizer, "keywords", {}))
    initial = float(options.pop("initial", 0.0))
    if function is not RowWiseAdagrad or options.pop("eps", EPS) != EPS or options:
        raise ValueError(
            "split tables are stepped by RowWiseAdagrad with no option but `initial`, got "
            f"{table_optimizer}"
        )
    return initial


def split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Tables ``(V, D)`` and dense weights, of any shape, of a model."""
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    known = {id(table) for table in tables}
    return tables, [p for p in model.parameters() if id(p) not in known]
