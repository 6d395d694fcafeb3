"""The optimizer of tables that are split over processes; see `twotower.training.sharded_tables`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.optim import Optimizer

from twotower.training.sharded_tables import ShardedTable


class ShardedRowWiseAdagrad(Optimizer):
    """Row-wise Adagrad on tables that are split over processes.

    It steps as `twotower.training.table_optimizers.RowWiseAdagrad` does with gradients that are
    averaged over processes. Its state is the rate; the accumulators are saved with the rows.

    Args:
        tables: The tables by name, at least one.
        lr: Learning rate.
        initial: Accumulator before the first gradient.

    Raises:
        ValueError: When the learning rate is not positive or the accumulator is negative.
    """

    def __init__(
        self, tables: Mapping[str, ShardedTable], *, lr: float, initial: float = 0.0
    ) -> None:
        if lr <= 0:
            raise ValueError(f"`lr` of the tables must be above 0, got {lr}")
        if initial < 0:
            raise ValueError(f"`initial` of the tables must be at least 0, got {initial}")
        self.tables = dict(tables)
        super().__init__([table.shard for table in self.tables.values()], {"lr": lr})
        for table in self.tables.values():
            table.sums.fill_(initial)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the rows that have a gradient; all processes step together."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for table in self.tables.values():
            table.update(self.param_groups[0]["lr"])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of what was looked up, not what was looked up for this step."""
        for table in self.tables.values():
            table.forget_gradients()
