"""What an example of the retrieval stage is: an event, a window of events, or a user's set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from twotower.data.batches import WEIGHTS, Batch, Columns
from twotower.data.prepared import Prepared
from twotower.data.schema import BORROWED, TASK_WEIGHTS
from twotower.data.user_sets import UserSets
from twotower.data.windows import Windows
from twotower.losses.ranks import Ranks, share
from twotower.models.two_tower import TwoTower


@dataclass(frozen=True, kw_only=True)
class TrainingExamples:
    """What batches are drawn from.

    Args:
        rows: (E,) int64 the examples of every epoch.
        assemble: Turns examples (B,) into a batch.
        assemble_share: Turns a share of examples (B,) into a batch; for examples that draw random
            numbers, from the given state and for all of them. None for examples that do not.
        pool: (F,) int64 further examples, of which every epoch draws some anew; None for none.
        num_drawn: How many.
    """

    rows: Tensor
    assemble: Callable[[Tensor], Batch]
    pool: Tensor | None = None
    num_drawn: int = 0
    assemble_share: Callable[[Tensor, slice, torch.Generator | None], Batch] | None = None

    def share_of_batch(self, ranks: Ranks) -> Callable[[Tensor], Batch]:
        """Turns the examples (B,) of a batch into the share that a process has in it.

        Where there is none, the batch holds an example of another process and says so.
        """
        if ranks.size == 1:
            return self.assemble

        def assemble(rows: Tensor) -> Batch:
            own = share(ranks, len(rows))
            is_empty = own.start == own.stop
            own = slice(0, 1) if is_empty else own
            if self.assemble_share is None:
                batch = self.assemble(rows[own])
            else:
                batch = self.assemble_share(rows, own, ranks.generator(torch.device("cpu")))
            return _borrowed(batch) if is_empty else batch

        return assemble


def _borrowed(batch: Batch) -> Batch:
    """The batch without weight."""
    weights = {
        name: torch.zeros_like(batch[name]) for name in (WEIGHTS, TASK_WEIGHTS) if name in batch
    }
    return batch | weights | {BORROWED: torch.ones(1, dtype=torch.bool)}


class TrainingBatches(Protocol):
    """Says what an example is."""

    def examples(self, prepared: Prepared, columns: Columns, model: TwoTower) -> TrainingExamples:
        """The examples of the training part.

        Raises:
            ValueError: When the data or the model are not made for such examples.
        """


@dataclass(frozen=True, kw_only=True)
class EventBatches:
    """An example is a training event with the history before it."""

    def examples(self, prepared: Prepared, columns: Columns, model: TwoTower) -> TrainingExamples:
        """See `TrainingBatches`."""
        events, _, _ = prepared.require_events()
        rows = torch.from_numpy(events.interactions[prepared.train_events()])
        history = columns.history_sets if model.averages else columns.history
        return TrainingExamples(rows=rows, assemble=partial(columns.examples, history=history))


@dataclass(frozen=True, kw_only=True)
class SequenceBatches:
    """An example is a window of a user's events, with a query after each of them."""

    def examples(self, prepared: Prepared, columns: Columns, model: TwoTower) -> TrainingExamples:
        """See `TrainingBatches`; the encoder of the history must read in order."""
        model.sequence_encoder()
        windows = Windows.of(prepared, columns)
        return TrainingExamples(rows=torch.arange(len(windows)), assemble=windows.batch)


@dataclass(frozen=True, kw_only=True)
class UserBatches:
    """An example is a user: a random part of its items is the history, the others are targets.

    For logs without times, and models that do not look at the order of a history.

    Args:
        history_share: Share of a user's items that becomes the history, on average.
        user_power: A target of a user with n targets weighs n ** -user_power as much: with 0 all
            events count the same, with 1 all users.

    Raises:
        ValueError: When a number is out of range.
    """

    history_share: float = 0.5
    user_power: float = 0.5

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.history_share < 1:
            problems.append(f"`history_share` must lie between 0 and 1, got {self.history_share}")
        if not 0 <= self.user_power <= 1:
            problems.append(f"`user_power` must lie within 0..1, got {self.user_power}")
        if problems:
            raise ValueError("\n".join(f"user batches: {problem}" for problem in problems))

    def examples(self, prepared: Prepared, columns: Columns, model: TwoTower) -> TrainingExamples:
        """See `TrainingBatches`; the encoder of the history must not look at its order."""
        model.check_means()
        sets = UserSets.of(
            prepared, columns, history_share=self.history_share, user_power=self.user_power
        )
        return TrainingExamples(
            rows=torch.arange(len(sets)), assemble=sets.batch, assemble_share=sets.batch
        )
