"""Users as sets: every item is history or target, and the loss is that of its targets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from twotower.data.batches import ITEM_ROWS, USER_ROWS, WEIGHTS
from twotower.data.schema import HISTORY_MASK, HISTORY_OFFSETS, DataError
from twotower.data.user_sets import OWNER, UserSets
from twotower.losses.negatives import WholeCatalogue
from twotower.losses.objective import Objective
from twotower.losses.sampled_softmax import FullSoftmax
from twotower.models.columns import stage_columns
from twotower.models.history import RecentAndMean
from twotower.training.batches import UserBatches
from twotower.training.optimizers import OptimizerSettings
from twotower.training.retrieval import RetrievalTask

HISTORY = "history.item_id"


def inputs(world, length=50):
    """What the towers of the world are given, without its context."""
    given = world.pipeline.inputs("retrieval")
    kept = tuple(f for f in given.features if f.side != "context")
    return replace(given, features=kept, history_length=length)


def sets_of(world, share=0.5, length=50, power=0.0):
    columns = stage_columns(world.prepared, inputs(world, length))
    return UserSets.of(world.prepared, columns, history_share=share, user_power=power)


def histories(batch):
    """Encoded ids of every user's history."""
    offsets = batch[HISTORY_OFFSETS].tolist()
    assert len(offsets) == len(batch[USER_ROWS]) + 1
    return [batch[HISTORY][a:b].tolist() for a, b in pairwise(offsets)]


def test_every_item_is_history_or_target(world):
    sets = sets_of(world)
    chosen = torch.tensor([5, 0, 17, 3])
    torch.manual_seed(0)
    batch = sets.batch(chosen)
    events, encoded = world.prepared.events, world.prepared.items.columns["item_id"]
    assert batch[USER_ROWS].tolist() == sets.user_rows[chosen].tolist()
    for row, (user, history) in enumerate(zip(batch[USER_ROWS], histories(batch), strict=True)):
        train = slice(events.offsets[user], events.part_end(0)[user])
        targets = batch[ITEM_ROWS][batch[OWNER] == row].tolist()
        assert targets
        together = Counter(history) + Counter(encoded[targets].tolist())
        assert together == Counter(encoded[events.item_rows[train]].tolist())
    assert (
        batch["user_id"]
        == torch.from_numpy(world.prepared.users.columns["user_id"])[batch[USER_ROWS]]
    ).all()
    assert batch[WEIGHTS].shape == batch[OWNER].shape == batch[ITEM_ROWS].shape


def test_the_share_and_a_new_part_every_time(world):
    sets = sets_of(world, share=0.3)
    everyone = torch.arange(len(sets))
    events = world.prepared.events
    users = [
        u for u in range(len(world.prepared.users)) if events.part_end(0)[u] > events.offsets[u]
    ]
    assert sets.user_rows.tolist() == users
    torch.manual_seed(0)
    first, second = sets.batch(everyone), sets.batch(everyone)
    num_events = len(world.prepared.train_events())
    drawn = len(first[HISTORY]) / num_events
    assert drawn == pytest.approx(0.3, abs=4 * (0.21 / num_events) ** 0.5 + 0.02)
    assert histories(first) != histories(second)
    torch.manual_seed(0)
    assert histories(sets.batch(everyone)) == histories(first)


def test_a_longer_history_keeps_its_latest_events(world):
    everyone = torch.arange(len(sets_of(world)))
    torch.manual_seed(0)
    whole = sets_of(world).batch(everyone)
    torch.manual_seed(0)
    short = sets_of(world, length=2).batch(everyone)
    assert [h[-2:] for h in histories(whole)] == histories(short)
    assert max(map(len, histories(whole))) > 2
    assert torch.equal(whole[ITEM_ROWS], short[ITEM_ROWS])


def make_task(world, **masks):
    model = world.towers_for(inputs(world))
    task = RetrievalTask(
        model=model,
        objective=Objective(loss=FullSoftmax(temperature=0.5), negatives=WholeCatalogue(), **masks),
        columns=stage_columns(world.prepared, inputs(world)),
        item_probability=torch.full((world.prepared.num_catalogue,), 0.02),
        optimizer=OptimizerSettings(learning_rate=0.01, table_learning_rate=0.1),
    )
    return task


def test_loss_by_hand(world):
    """One target at a time: softmax over it and the items that its user never took."""
    batch = sets_of(world).batch(torch.tensor([2, 9, 4]))
    task = make_task(world)
    loss = task.training_step(batch, 0)
    model, events = task.model, world.prepared.events
    with torch.no_grad():
        queries = model.embed_queries(batch).double()
        items = model.embed_items(task.columns.items(torch.arange(world.prepared.num_catalogue)))
    scores = (queries @ items.double().T / 0.5).tolist()
    losses = []
    for owner, target in zip(batch[OWNER].tolist(), batch[ITEM_ROWS].tolist(), strict=True):
        user = batch[USER_ROWS][owner]
        taken = set(events.item_rows[events.offsets[user] : events.part_end(0)[user]].tolist())
        others = [s for item, s in enumerate(scores[owner]) if item not in taken]
        total = np.log(np.sum(np.exp([scores[owner][target], *others])))
        losses.append(total - scores[owner][target])
    weights = batch[WEIGHTS].numpy()
    expected = (np.array(losses) * weights).sum() / weights.sum()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_vectors_are_those_of_padded_histories(world):
    """Users whose history is empty included."""
    batch = sets_of(world, share=0.1).batch(torch.arange(30))
    model = world.towers_for(inputs(world))
    rows = [torch.tensor(history) for history in histories(batch)]
    assert min(map(len, rows)) == 0
    padded = {
        HISTORY: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long(),
        HISTORY_MASK: torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True
        ),
    }
    users = {"user_id": batch["user_id"]}
    torch.testing.assert_close(model.embed_queries(batch), model.embed_queries(users | padded))


def test_an_encoder_that_looks_at_the_order_is_refused(world):
    model = world.towers_for(inputs(world), history=partial(RecentAndMean, num_recent=2))
    columns = stage_columns(world.prepared, inputs(world))
    with pytest.raises(ValueError, match=r"does not look at its order(.|\n)*got RecentAndMean"):
        UserBatches().examples(world.prepared, columns, model)


@pytest.mark.parametrize("name", ["mask_known", "mask_later"])
def test_positives_that_stand_against_each_other_are_refused(world, name):
    batch = sets_of(world).batch(torch.tensor([2, 9]))
    with pytest.raises(ValueError, match=rf"set losses\.retrieval\.mask_known(.|\n)*{name}=False"):
        make_task(world, **{name: False}).training_step(batch, 0)


def test_no_history_and_context_are_refused_together(world):
    given = replace(world.pipeline.inputs("retrieval"), history_length=0)
    with pytest.raises(DataError, match=r"need a history(.|\n)*leave out device"):
        UserSets.of(
            world.prepared,
            stage_columns(world.prepared, given),
            history_share=0.5,
            user_power=0.5,
        )


def test_what_a_target_weighs(world):
    """With power 1 the targets of every user weigh 1 together, where events weigh 1 each."""
    everyone = torch.arange(20)
    for power, expected in ((0.0, lambda n: n), (0.5, lambda n: n**0.5), (1.0, lambda n: 1.0)):
        batch = sets_of(world, power=power).batch(everyone)
        for user in everyone:
            own = batch[OWNER] == user
            assert batch[WEIGHTS][own].sum().item() == pytest.approx(expected(own.sum().item()))


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_share_out_of_range(share):
    with pytest.raises(ValueError, match=f"`history_share` must lie between 0 and 1, got {share}"):
        UserBatches(history_share=share)


@pytest.mark.parametrize("power", [-0.1, 1.5])
def test_power_out_of_range(power):
    with pytest.raises(ValueError, match=rf"`user_power` must lie within 0\.\.1, got {power}"):
        UserBatches(user_power=power)
