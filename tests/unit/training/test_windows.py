"""Windows of events against batches of events: the same histories, targets, masks and loss."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from twotower.data.batches import ITEM_ROWS, USER_ROWS, WEIGHTS
from twotower.data.schema import HISTORY_MASK, TRAIN
from twotower.data.windows import PLACE, WINDOW, Windows
from twotower.losses.blockwise_softmax import BlockwiseSoftmax
from twotower.losses.hard_negatives import HardNegatives
from twotower.losses.negatives import MixedNegatives, WholeCatalogue
from twotower.losses.objective import Objective
from twotower.losses.sampled_softmax import FullSoftmax, SampledSoftmax
from twotower.models.history import MeanPooling
from twotower.models.hstu import HSTU
from twotower.models.transformer import CausalTransformer
from twotower.models.two_tower import Cosine, TwoTower
from twotower.training.optimizers import OptimizerSettings
from twotower.training.retrieval import RetrievalTask

HISTORY = "history.item_id"
LENGTH = 4  # of the history in this world


@pytest.fixture
def columns(world):
    return world.columns("retrieval")


@pytest.fixture
def windows(world, columns):
    return Windows.of(world.prepared, columns)


@pytest.fixture
def make_task(world, columns):
    def make(negatives, loss, history=None, **masks):
        torch.manual_seed(0)
        encoder = partial(CausalTransformer, hidden=8, num_blocks=1, dropout=0.0)
        model = TwoTower(
            inputs=world.pipeline.inputs("retrieval"),
            dim=8,
            embedding_dim=4,
            hidden=[12],
            history=history or encoder,
            similarity=Cosine(),
        )
        task = RetrievalTask(
            model=model,
            objective=Objective(loss=loss, negatives=negatives, **masks),
            columns=columns,
            item_probability=torch.full((world.prepared.num_catalogue,), 0.02),
            optimizer=OptimizerSettings(learning_rate=0.01, table_learning_rate=0.1),
        )
        return task

    return make


def interactions_of(world, windows, chosen):
    """The training events of some windows in the order of the targets, window by window."""
    positions = [
        windows.targets[windows.offsets[w] : windows.offsets[w + 1]] for w in chosen.tolist()
    ]
    return torch.from_numpy(world.prepared.events.interactions[np.concatenate(positions)])


def test_every_training_event_is_a_target_once(world, windows):
    events = world.prepared.events
    assert windows.targets.tolist() == np.flatnonzero(events.split == TRAIN).tolist()
    assert windows.offsets[0] == 0
    assert windows.offsets[-1] == len(windows.targets)
    assert (np.diff(windows.offsets) > 0).all()


def test_targets_and_what_leads_to_them(world, windows, columns):
    """The events up to a target's place are the latest of the history that it has as an event."""
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))[:40]
    batch = windows.batch(chosen)
    rows = interactions_of(world, windows, chosen)
    event = columns.examples(rows)
    for name in (ITEM_ROWS, WEIGHTS, "user_id", "device"):
        assert torch.equal(batch[name], event[name])
    assert torch.equal(batch[USER_ROWS][batch[WINDOW]], event[USER_ROWS])
    begins = world.prepared.events.offsets[windows.user_rows[chosen]]  # (B,)
    whole_histories = 0
    for row, (window, place) in enumerate(zip(batch[WINDOW], batch[PLACE], strict=True)):
        own = slice(0, int(place) + 1)
        here = batch[HISTORY][window, own][batch[HISTORY_MASK][window, own]].tolist()
        whole = event[HISTORY][row][event[HISTORY_MASK][row]].tolist()
        assert here == whole[len(whole) - len(here) :]
        if windows.ends[chosen[window]] - LENGTH <= begins[window]:
            assert here == whole  # nothing came before the window
            whole_histories += 1
        else:
            assert here
    assert 20 < whole_histories < len(event[ITEM_ROWS])


def test_a_window_is_the_same_in_every_batch(world, windows):
    """Alone it has no column that it does not need; beside longer ones there is more padding."""
    rows = torch.arange(len(windows))
    every = windows.batch(rows)
    begins = world.prepared.events.offsets[windows.user_rows]
    held = np.minimum(windows.ends - begins, LENGTH)
    widths = []
    for row in rows.tolist():
        alone, targets = windows.batch(torch.tensor([row])), every[WINDOW] == row
        width = alone[HISTORY].shape[1]
        assert alone[HISTORY_MASK].sum() == every[HISTORY_MASK][row].sum() == held[row]
        assert torch.equal(alone[HISTORY_MASK][0], every[HISTORY_MASK][row, LENGTH - width :])
        assert torch.equal(alone[HISTORY][0], every[HISTORY][row, LENGTH - width :])
        assert torch.equal(alone[PLACE], every[PLACE][targets] - (LENGTH - width))
        assert width == held[row] or alone[PLACE].min() == 0
        widths.append(width)
    assert set(widths) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("sampled", "masks", "history"),
    [
        *((False, {}, None), (True, {}, None), (True, {"mask_known": False}, None)),
        *((False, {"mask_later": False}, None), (True, {"mask_later": False}, None)),
        (False, {}, partial(HSTU, hidden=8, dropout=0.0)),
    ],
)
def test_the_same_loss_as_of_events(world, windows, columns, make_task, sampled, masks, history):
    """Where a window holds the whole history of a user, to the last digit and gradient."""
    begins = world.prepared.events.offsets[windows.user_rows]
    chosen = torch.from_numpy(np.flatnonzero(windows.ends - LENGTH <= begins)[:20])
    batch = windows.batch(chosen)
    event = columns.examples(interactions_of(world, windows, chosen))
    assert len(event[ITEM_ROWS]) > 40
    mixed = MixedNegatives(in_batch=True, num_uniform=9)
    negatives, loss = (mixed, SampledSoftmax) if sampled else (WholeCatalogue(), FullSoftmax)
    task = make_task(negatives, loss(temperature=1.0), history, **masks)
    found = []
    for one in (batch, event):
        task.zero_grad()
        torch.manual_seed(5)
        loss = task.training_step(one, 0)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients))
    (loss, gradients), (expected, expected_gradients) = found
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("in_windows", [True, False])
def test_blockwise_softmax_has_the_loss_of_the_full_one(
    world, windows, columns, make_task, in_windows
):
    batch = windows.batch(torch.arange(20))
    if not in_windows:
        batch = columns.examples(interactions_of(world, windows, torch.arange(20)))
    task = make_task(WholeCatalogue(), FullSoftmax(temperature=0.1))
    expected = task.training_step(batch, 0)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in task.named_parameters()}
    for block in (7, 10**6):
        task.objective = BlockwiseSoftmax(temperature=0.1, block=block)
        task.zero_grad()
        loss = task.training_step(batch, 0)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        for name, parameter in task.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("in_windows", [True, False])
def test_items_that_a_user_took_are_not_mined_for_it(
    world, windows, columns, make_task, in_windows
):
    rows = interactions_of(world, windows, torch.arange(20))
    batch = windows.batch(torch.arange(20)) if in_windows else columns.examples(rows)
    task = make_task(MixedNegatives(in_batch=True, num_uniform=9), SampledSoftmax(temperature=1.0))
    hard = task.objective.hard = HardNegatives(num=30, num_queries=50, every=1)
    mine, found = hard.mine, []
    hard.mine = lambda *given: found.append(mine(*given)) or found[-1]
    task.training_step(batch, 0).backward()
    assert all(p.grad is not None for p in task.parameters())
    (mined,) = found
    log = world.prepared.interactions
    users = log.user_rows[rows[mined.queries]]
    pairs = {(u, i) for u, items in zip(users, mined.rows.tolist(), strict=True) for i in items}
    known = np.flatnonzero(log.positive & (log.split == TRAIN))
    positives = set(zip(log.user_rows[known], log.item_rows[known], strict=True))
    assert len(pairs) > 300
    assert not pairs & positives


def test_events_at_the_same_time_follow_the_same_place(world, windows):
    """Clicks on one slate have one time: none of them is in the history of another."""
    batch = windows.batch(torch.arange(len(windows)))
    rows = interactions_of(world, windows, torch.arange(len(windows)))
    log = world.prepared.interactions
    users, ends = log.user_rows[rows], log.history_end[rows]
    same = (users[1:] == users[:-1]) & (ends[1:] == ends[:-1])
    assert same.sum() > 20
    assert (batch[PLACE].diff()[same] == 0).all()
    assert (batch[WINDOW].diff()[same] == 0).all()


def test_encoders_without_an_order_are_refused(windows, make_task):
    task = make_task(WholeCatalogue(), FullSoftmax(temperature=1.0), history=MeanPooling)
    with pytest.raises(ValueError, match="need an encoder of the history that reads in order"):
        task.training_step(windows.batch(torch.tensor([0, 1])), 0)
