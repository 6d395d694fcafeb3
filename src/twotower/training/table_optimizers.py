"""Optimizers for tables: a step touches the rows that have a gradient.

Long tables have a sparse gradient, the rows of the batch, so a step costs the same whether there
are a hundred thousand rows or ten million. Short ones have a dense gradient, and every row is
stepped.

Shapes: V rows of a table, D width, K rows that have a gradient.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from twotower.models.tables import sum_by_row


class _TableOptimizer(Optimizer):
    """The walk over tables; a subclass says how one is updated."""

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
                    self._update(table, table.grad, group)
        return loss

    @abstractmethod
    def _update(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Update one table in place."""


class RowWiseAdagrad(_TableOptimizer):
    """Adagrad with one accumulator a row, for gradients that are sparse or dense.

    It keeps the running sum of the mean squared gradient of a row r:

        s_r <- s_r + mean_d(g_rd^2),    w_r <- w_r - lr * g_r / (sqrt(s_r) + eps)

    Gupta et al. 2014, "Training Highly Multiclass Classifiers"; Mudigere et al. 2022,
    "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning Recommendation
    Models".

    Args:
        params: Tables (V, D).
        lr: Learning rate.
        initial: Accumulator before the first gradient.
        eps: Keeps the division finite.

    Raises:
        ValueError: When the learning rate is not positive or the accumulator is negative.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, initial: float = 0.0, eps: float = 1e-10
    ) -> None:
        if lr <= 0:
            raise ValueError(f"`lr` of the tables must be above 0, got {lr}")
        if initial < 0:
            raise ValueError(f"`initial` of the tables must be at least 0, got {initial}")
        super().__init__(params, {"lr": lr, "eps": eps})
        for table in self._tables():
            self.state[table]["sum"] = torch.full((table.shape[0],), initial, device=table.device)

    def _update(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        accumulator = self.state[table]["sum"]
        lr, eps = group["lr"], group["eps"]
        if gradient.is_sparse:
            # Rows that a GPU fills up with are there again, with zeros: nothing but sums will do.
            rows, values = sum_by_row(_narrow(gradient), gradient._values())  # (K,), (K, D)
            accumulator.index_add_(0, rows, values.pow(2).mean(dim=1))
            total = accumulator.index_select(0, rows)  # (K,)
            change = values * (-lr / (total.sqrt() + eps)).unsqueeze(1)  # (K, D)
            # On long tables an index that says the same of every column is ten times as fast as
            # `index_add_`.
            table.scatter_add_(0, rows.unsqueeze(1).expand_as(change), change)
        else:
            accumulator += gradient.pow(2).mean(dim=1)  # (V,)
            table -= lr * gradient / (accumulator.sqrt() + eps)[:, None]


class LazyAdam(_TableOptimizer):
    """Adam, with an L2 penalty, on the rows that have a gradient.

    With g the gradient of a row plus ``l2`` times the row, and t the number of steps:

        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
        w <- w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    So the loss has ``l2 / 2`` times the squared norm added: of the whole table where its gradient
    is dense, of the rows of the batch where it is sparse. Rows that a sparse gradient leaves out
    keep their moments too, which is what makes it lazy.

    Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization".

    Args:
        params: Tables (V, D).
        lr: Learning rate.
        l2: Weight of the penalty.
        betas: Decay b1 and b2 of the moments.
        eps: Keeps the division finite.

    Raises:
        ValueError: When a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        l2: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        problems = [] if lr > 0 else [f"`lr` of the tables must be above 0, got {lr}"]
        if l2 < 0:
            problems.append(f"`l2` of the tables must be at least 0, got {l2}")
        if not all(0 <= beta < 1 for beta in betas):
            problems.append(f"`betas` of the tables must be within [0, 1), got {tuple(betas)}")
        if problems:
            raise ValueError("\n".join(problems))
        super().__init__(params, {"lr": lr, "l2": l2, "betas": tuple(betas), "eps": eps})
        for table in self._tables():
            self.state[table]["step"] = torch.zeros((), dtype=torch.long)
            self.state[table]["mean"] = torch.zeros_like(table)
            self.state[table]["square"] = torch.zeros_like(table)

    def _update(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        state["step"] += 1
        (b1, b2), step = group["betas"], int(state["step"])
        rate = group["lr"] / (1 - b1**step)
        root = math.sqrt(1 - b2**step)
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()  # (K,), (K, D)
            values = values + group["l2"] * table[rows]
            mean = torch.lerp(state["mean"][rows], values, 1 - b1)
            square = torch.lerp(state["square"][rows], values.square(), 1 - b2)
            state["mean"][rows], state["square"][rows] = mean, square
            table.index_add_(0, rows, mean / (square.sqrt() / root + group["eps"]), alpha=-rate)
        else:
            values = gradient + group["l2"] * table  # (V, D)
            mean = state["mean"].lerp_(values, 1 - b1)
            square = state["square"].lerp_(values.square(), 1 - b2)
            table.addcdiv_(mean, square.sqrt() / root + group["eps"], value=-rate)


def _narrow(gradient: Tensor) -> Tensor:
    """Rows of a sparse gradient, repeats among them; as int32 there is half to sort."""
    rows = gradient._indices()[0]
    return rows.int() if len(gradient) <= torch.iinfo(torch.int32).max else rows
