"""Shares of batches: together they are the batch, and random numbers are those of the whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from twotower.data.batches import ITEM_ROWS, USER_ROWS, WEIGHTS
from twotower.data.schema import BORROWED, HISTORY_OFFSETS, OWNER, TASK_WEIGHTS
from twotower.data.shuffled_batches import ShuffledBatches
from twotower.models.columns import stage_columns
from twotower.training.batches import EventBatches, TrainingExamples, UserBatches

BATCH = 7


class Place:
    """A process as the loader sees it."""

    def __init__(self, rank, size):
        self.rank = rank
        self.size = size
        self.state = torch.Generator().manual_seed(5)

    def generator(self, device):
        return self.state


def epoch(examples, rank=0, size=1):
    """The batches of an epoch as a process sees them."""
    torch.manual_seed(5)
    assemble = examples.share_of_batch(Place(rank, size))
    loader = ShuffledBatches(
        examples.rows, batch_size=BATCH, seed=2, assemble=assemble, pool=examples.pool
    )
    return list(loader)


def together(name, shares):
    """One column of a batch, from the shares of all processes that have one."""
    columns = [share[name] for share in shares if BORROWED not in share]
    if name == HISTORY_OFFSETS:  # each begins at 0
        lengths = torch.cat([column.diff() for column in columns])
        return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return torch.cat(columns)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_of_events_are_the_batches_of_one_process(size, world):
    examples = EventBatches().examples(world.prepared, world.columns("retrieval"), world.towers())
    examples = replace(examples, rows=examples.rows[: 4 * BATCH + 2])
    whole = epoch(examples)
    assert len(whole[-1][ITEM_ROWS]) == 2
    shares = [epoch(examples, rank, size) for rank in range(size)]
    for step, batch in enumerate(whole):
        of_step = [share[step] for share in shares]
        for name, column in batch.items():
            assert torch.equal(together(name, of_step), column), (step, name)
        sizes = [len(share[ITEM_ROWS]) for share in of_step if BORROWED not in share]
        assert max(sizes) - min(sizes) <= 1
    assert [BORROWED in share[-1] for share in shares] == [rank >= 2 for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3])
def test_shares_of_users_have_the_histories_that_one_process_draws(size, world):
    given = world.pipeline.inputs("retrieval")
    inputs = replace(given, features=tuple(f for f in given.features if f.side != "context"))
    columns = stage_columns(world.prepared, inputs)
    examples = UserBatches().examples(world.prepared, columns, world.towers_for(inputs))
    whole = epoch(examples)
    shares = [epoch(examples, rank, size) for rank in range(size)]
    for step, batch in enumerate(whole):
        of_step = [share[step] for share in shares]
        for name in (USER_ROWS, ITEM_ROWS, WEIGHTS, "history.item_id", HISTORY_OFFSETS):
            assert torch.equal(together(name, of_step), batch[name]), (step, name)
        owners, before = [], 0
        for share in of_step:
            owners.append(share[OWNER] + before)
            before += len(share[USER_ROWS])
        assert torch.equal(torch.cat(owners), batch[OWNER]), step


def test_a_borrowed_example_has_no_weight():
    def assemble(rows):
        return {name: torch.ones(len(rows)) for name in (WEIGHTS, TASK_WEIGHTS, "feature")}

    examples = TrainingExamples(rows=torch.arange(2), assemble=assemble)
    (batch,) = epoch(examples, rank=2, size=3)
    assert BORROWED in batch
    assert batch["feature"].tolist() == [1]
    assert batch[WEIGHTS].tolist() == batch[TASK_WEIGHTS].tolist() == [0]
