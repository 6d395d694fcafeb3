"""AdamW for dense weights and row-wise Adagrad for tables, as one optimizer of one step.

Row-wise Adagrad keeps a single number a row, the running sum of the mean squared gradient of the
row

    s_r <- s_r + mean_d(g_rd^2),    w_r <- w_r - lr * g_r / (sqrt(s_r) + eps)

and touches the rows of the batch alone, so a step costs the same whether the table has a thousand
rows or ten million (Gupta et al. 2014, "Training Highly Multiclass Classifiers"; Mudigere et al.
2022, "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning Recommendation
Models").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


class RowWiseAdagrad(Optimizer):
    """Adagrad with one accumulator a row, for gradients that are sparse or dense.

    Args:
        params: Tables (V, D).
        lr: Learning rate.
        initial: Accumulator before the first gradient.
        eps: Keeps the division finite.

    Raises:
        ValueError: When the learning rate is not positive.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, initial: float = 0.0, eps: float = 1e-10
    ) -> None:
        if lr <= 0:
            raise ValueError(f"`lr` of the tables must be above 0, got {lr}")
        super().__init__(params, {"lr": lr, "eps": eps})
        for table in self._tables():
            self.state[table]["sum"] = torch.full((table.shape[0],), initial, device=table.device)

    def _tables(self) -> Iterable[Tensor]:
        return (table for group in self.param_groups for table in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, table.grad, group["lr"], group["eps"])
        return loss

    def _update(self, table: Tensor, gradient: Tensor, lr: float, eps: float) -> None:
        accumulator = self.state[table]["sum"]
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()  # (K,), (K, D)
            total = accumulator[rows] + values.pow(2).mean(dim=1)  # (K,)
            accumulator[rows] = total
            table.index_add_(0, rows, values / (total.sqrt() + eps)[:, None], alpha=-lr)
        else:
            accumulator += gradient.pow(2).mean(dim=1)  # (V,)
            table -= lr * gradient / (accumulator.sqrt() + eps)[:, None]


class JointOptimizer(Optimizer):
    """Two optimizers behind one interface: schedulers, checkpoints and Lightning see one.

    Args:
        dense: Optimizer of the dense weights.
        tables: Optimizer of the tables, or None where the model has none.
    """

    def __init__(self, dense: Optimizer, tables: Optimizer | None) -> None:
        self.members = [dense] if tables is None else [dense, tables]
        groups = [group for member in self.members for group in member.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """The members' own groups, so that a scheduler that sets a rate here sets it there."""
        self.param_groups = [group for member in self.members for group in member.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """States of both."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)
        self._share_groups()


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How a model is optimised.

    Args:
        learning_rate: Of AdamW, for dense weights.
        table_learning_rate: Of row-wise Adagrad, for tables.
        weight_decay: Of AdamW; tables have none.
        table_initial: Accumulator of row-wise Adagrad before the first gradient.
        warmup_share: Share of all steps in which the rates rise from 0.
        final_share: Share of the rates at the last step, reached along a cosine; 1 keeps them.
        max_norm: Dense gradients are scaled down to this norm; 0 leaves them.

    Raises:
        ValueError: When a rate or share is out of range.
    """

    learning_rate: float
    table_learning_rate: float
    weight_decay: float = 0.0
    table_initial: float = 0.0
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
            for name in ("weight_decay", "table_initial", "max_norm")
            if (value := getattr(self, name)) < 0
        ]
        if problems:
            raise ValueError("\n".join(problems))

    def optimizer(self, model: nn.Module) -> JointOptimizer:
        """Both optimizers for a model."""
        tables, dense = split_parameters(model)
        dense_optimizer = AdamW(dense, lr=self.learning_rate, weight_decay=self.weight_decay)
        table_optimizer = (
            RowWiseAdagrad(tables, lr=self.table_learning_rate, initial=self.table_initial)
            if tables
            else None
        )
        return JointOptimizer(dense_optimizer, table_optimizer)

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
        """Scale the dense gradients down; row-wise Adagrad scales those of tables itself."""
        if self.max_norm > 0:
            torch.nn.utils.clip_grad_norm_(split_parameters(model)[1], self.max_norm)


def split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Tables and dense weights of a model."""
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    known = {id(table) for table in tables}
    return tables, [p for p in model.parameters() if id(p) not in known]
