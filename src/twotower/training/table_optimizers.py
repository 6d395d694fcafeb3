"""Optimizers for tables: a step touches the rows that have a gradient.

Long tables have a sparse gradient, the rows of the batch, so a step costs the same whether there
are a hundred thousand rows or ten million. Short ones have a dense gradient, and every row is
stepped.

Tables may be kept in bfloat16. What an optimizer knows of them is float32, and steps are rounded
stochastically, by random numbers that follow from how many steps there were: all processes of a
training round alike, and so does one that is resumed.

Shapes: V rows of a table, D width, K rows that have a gradient.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from twotower.models.row_gradients import (
    RowGradients,
    by_row,
    has_kernels,
    rows_left,
    sum_by_row,
    take_rows,
)
from twotower.training.stochastic_rounding import add_rounded

# The state of a narrow table that counts its steps.
ROUNDINGS = "roundings"


class _TableOptimizer(Optimizer):
    """The walk over tables; a subclass says how one is updated."""

    def __init__(self, params: Iterable[Tensor], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        for table in self._tables():
            if table.dtype == torch.bfloat16:
                self.state[table][ROUNDINGS] = torch.zeros((), dtype=torch.long)

    def _tables(self) -> list[Tensor]:
        return [table for group in self.param_groups for table in group["params"]]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state as it was saved; torch's own would make it as narrow as the table."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for table, number in zip(self._tables(), numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                self.state[table][name] = value.to(table.device) if value.dim() else value.clone()

    def _seed(self, table: Tensor) -> int:
        """Of the random numbers for one step of a narrow table; each step of each has its own."""
        if table.dtype != torch.bfloat16:
            return 0
        tables = self._tables()
        (place,) = (place for place, other in enumerate(tables) if other is table)
        self.state[table][ROUNDINGS] += 1
        return int(self.state[table][ROUNDINGS]) * len(tables) + place

    def _noise(self, table: Tensor) -> torch.Generator | None:
        """Those random numbers; None for a table that is not narrow."""
        if table.dtype != torch.bfloat16:
            return None
        return torch.Generator(table.device).manual_seed(self._seed(table))

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
                    self._update(table, table.grad, group, self._noise(table))
        return loss

    @abstractmethod
    def _update(
        self,
        table: Tensor,
        gradient: Tensor,
        group: dict[str, Any],
        noise: torch.Generator | None,
    ) -> None:
        """Update one table in place; with noise where it is narrow."""


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
            # Of several processes, the gradients are averaged first.
            if (has_kernels(table) or not table.is_cuda) and not _several_processes():
                take_rows(table)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what readers of the tables have left, too."""
        super().zero_grad(set_to_none)
        for table in self._tables():
            (rows_left(table) or []).clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows that have a gradient, or whose gradients were left."""
        loss = super().step(closure)
        for group in self.param_groups:
            for table in group["params"]:
                left = rows_left(table)
                if left:
                    self._take(table, RowGradients.joined(left), group)
                if left and has_kernels(table):  # the memory is missed there
                    left.clear()
        return loss

    def _take(self, table: Tensor, gradients: RowGradients, group: dict[str, Any]) -> None:
        """Step a table by gradients that are not summed by row."""
        if not has_kernels(table):
            rows, values = sum_by_row(gradients.rows, gradients.values, gradients.sources)
            self._step_rows(table, rows, values, group, self._noise(table))
            return
        from twotower.training.triton_adagrad import Step

        step = Step(
            table=table,
            accumulator=self.state[table]["sum"],
            lr=group["lr"],
            eps=group["eps"],
            seed=self._seed(table),
        )
        step.take(gradients)

    def _update(
        self,
        table: Tensor,
        gradient: Tensor,
        group: dict[str, Any],
        noise: torch.Generator | None,
    ) -> None:
        if gradient.is_sparse:
            self._step_rows(table, *by_row(gradient), group, noise)
            return
        accumulator = self.state[table]["sum"]
        accumulator += gradient.pow(2).mean(dim=1)  # (V,)
        change = -group["lr"] * gradient / (accumulator.sqrt() + group["eps"])[:, None]  # (V, D)
        if noise is not None:
            add_rounded(table, change, noise)
        else:
            table += change

    def _step_rows(
        self,
        table: Tensor,
        rows: Tensor,
        values: Tensor,
        group: dict[str, Any],
        noise: torch.Generator | None,
    ) -> None:
        """Step distinct rows ``(K,)`` by their gradients ``(K, D)``."""
        accumulator = self.state[table]["sum"]
        lengths = torch.linalg.vector_norm(values, dim=1)  # (K,)
        accumulator.index_add_(0, rows, lengths.square_() / values.shape[1])
        total = accumulator.index_select(0, rows)  # (K,)
        change = values * (-group["lr"] / (total.sqrt() + group["eps"])).unsqueeze(1)  # (K, D)
        if noise is not None:
            add_rounded(table, change, noise, rows)
            return
        # On long tables an index that says the same of every column is ten times as fast as
        # `index_add_`.
        table.scatter_add_(0, rows.unsqueeze(1).expand_as(change), change)


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
            self.state[table]["mean"] = torch.zeros_like(table, dtype=torch.float32)
            self.state[table]["square"] = torch.zeros_like(table, dtype=torch.float32)

    def _update(
        self,
        table: Tensor,
        gradient: Tensor,
        group: dict[str, Any],
        noise: torch.Generator | None,
    ) -> None:
        state = self.state[table]
        state["step"] += 1
        (b1, b2), step = group["betas"], int(state["step"])
        rate = group["lr"] / (1 - b1**step)
        root = math.sqrt(1 - b2**step)
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()  # (K,), (K, D)
            values = values + group["l2"] * table[rows].float()
            mean = torch.lerp(state["mean"][rows], values, 1 - b1)
            square = torch.lerp(state["square"][rows], values.square(), 1 - b2)
            state["mean"][rows], state["square"][rows] = mean, square
            spread = square.sqrt() / root + group["eps"]
            if noise is not None:
                add_rounded(table, -rate * mean / spread, noise, rows)
            else:
                table.index_add_(0, rows, mean / spread, alpha=-rate)
        else:
            values = gradient + group["l2"] * table.float()  # (V, D)
            mean = state["mean"].lerp_(values, 1 - b1)
            square = state["square"].lerp_(values.square(), 1 - b2)
            spread = square.sqrt() / root + group["eps"]
            if noise is not None:
                add_rounded(table, -rate * mean / spread, noise)
            else:
                table.addcdiv_(mean, spread, value=-rate)


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized()
