"""The retrieval task: its loss assembled by hand, its gradients, and vectors in blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from twotower.data.batches import ITEM_ROWS, USER_ROWS, WEIGHTS
from twotower.data.schema import TRAIN
from twotower.losses.alignment import Aligned, Anchor, FrozenItems
from twotower.losses.negatives import MixedNegatives, PoolRows, WholeCatalogue
from twotower.losses.objective import Objective
from twotower.losses.sampled_softmax import FullSoftmax, SampledSoftmax
from twotower.training.optimizers import OptimizerSettings
from twotower.training.retrieval import RetrievalTask, embed_catalogue
from twotower.training.task import evaluating

BATCH = 24
TEMPERATURE = 0.3
OPTIMIZER = OptimizerSettings(learning_rate=0.01, table_learning_rate=0.1)


class GivenNegatives:
    """Candidates that the test knows: the targets of the batch and chosen items.

    An item without a training event is expected 0.01 times, as few as any.
    """

    remembers = False

    def __init__(self, further, *, in_batch):
        self.further = torch.tensor(further)
        self.in_batch = in_batch

    def draw(self, target_rows, item_probability, generator):
        rows = torch.cat([target_rows, self.further])
        return PoolRows(
            rows=rows,
            log_expected_count=item_probability[rows].clamp(min=0.01).log().float(),
            num_in_batch=len(target_rows) if self.in_batch else 0,
        )

    def remember(self, target_rows, targets):
        pass


@pytest.fixture
def item_probability(world):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(world.prepared.num_catalogue, generator=generator).double() + 0.01


@pytest.fixture
def make_task(world, item_probability):
    def make(negatives, loss=None, mask_known=True, mask_later=True, mask_cold=False, **given):
        task = RetrievalTask(
            model=world.towers(**given),
            objective=Objective(
                loss=loss or SampledSoftmax(temperature=TEMPERATURE),
                negatives=negatives,
                mask_known=mask_known,
                mask_later=mask_later,
                mask_cold=mask_cold,
            ),
            columns=world.columns("retrieval"),
            item_probability=item_probability,
            optimizer=OPTIMIZER,
        )
        return task

    return make


@pytest.fixture
def interactions(world):
    """Training positives of a few users, some with the same item."""
    events = world.prepared.events
    return torch.from_numpy(events.interactions[world.prepared.train_events()][:BATCH])


def train_items(prepared, user_row, before=None):
    """Item rows of the training positives of a user, all or those before a time, one by one."""
    log = prepared.interactions
    return {
        int(log.item_rows[i])
        for i in range(len(log.rows))
        if log.user_rows[i] == user_row and log.positive[i] and log.split[i] == TRAIN
        if before is None or log.timestamps[i] < before
    }


def loss_by_hand(task, world, interactions, candidates, item_probability):
    """The formula of the sampled softmax, one query and one candidate at a time, in float64."""
    columns, log = world.columns("retrieval"), world.prepared.interactions
    losses, weights = [], []
    with torch.no_grad():
        for interaction in interactions.tolist():
            row = torch.tensor([interaction])
            target = int(log.item_rows[interaction])
            query = task.model.embed_queries(columns.queries(row))[0].double()
            known = {target}
            if task.objective.mask_known:
                before = None if task.objective.mask_later else log.timestamps[interaction]
                known |= train_items(world.prepared, log.user_rows[interaction], before)
            vectors = {
                item: task.model.embed_items(columns.items(torch.tensor([item])))[0].double()
                for item in {target, *candidates}
            }
            positive = float(query @ vectors[target]) / TEMPERATURE
            total = math.exp(positive) + sum(
                math.exp(
                    float(query @ vectors[item]) / TEMPERATURE - math.log(item_probability[item])
                )
                for item in candidates
                if item not in known
            )
            losses.append(math.log(total) - positive)
            weights.append(float(log.weights[interaction]))
    return float(np.average(losses, weights=weights))


class TestLoss:
    @pytest.mark.parametrize(
        ("in_batch", "masks"),
        [
            *((True, {}), (False, {}), (True, {"mask_known": False})),
            *((True, {"mask_later": False}), (False, {"mask_later": False})),
        ],
    )
    def test_equals_the_one_assembled_by_hand(
        self, in_batch, masks, make_task, world, interactions, item_probability
    ):
        further = [0, 1, 2, 3, 3]
        task = make_task(GivenNegatives(further, in_batch=in_batch), **masks)
        targets = world.prepared.interactions.item_rows[interactions.numpy()].tolist()
        expected = loss_by_hand(
            task, world, interactions, [*targets, *further], item_probability.tolist()
        )
        loss = task.training_step(world.columns("retrieval").examples(interactions), 0)
        assert loss.item() == pytest.approx(expected, rel=1e-5)

    def test_cold_items_do_not_stand_against_a_query(
        self, make_task, world, interactions, item_probability
    ):
        """The loss is that of the other candidates; without the mask it is not."""
        batch = world.columns("retrieval").examples(interactions)
        taken = batch[ITEM_ROWS].tolist()
        new, warm = [row for row in range(world.prepared.num_catalogue) if row not in taken][:2]
        probability = item_probability.clone()
        probability[new] = 0
        losses = {}
        for further, mask_cold in (([warm, new], True), ([warm, new], False), ([warm], True)):
            negatives = GivenNegatives(further, in_batch=True)
            task = make_task(negatives, mask_known=False, mask_cold=mask_cold)
            task.item_probability = probability
            losses[len(further), mask_cold] = task.training_step(batch, 0).item()
        assert losses[2, True] == pytest.approx(losses[1, True], rel=1e-6)
        assert losses[2, False] > losses[2, True] + 1e-3

    def test_order_of_the_batch_does_not_matter(self, make_task, world, interactions):
        task = make_task(GivenNegatives([0, 1], in_batch=True))
        columns = world.columns("retrieval")
        one = task.training_step(columns.examples(interactions), 0)
        other = task.training_step(columns.examples(interactions.flip(0)), 0)
        torch.testing.assert_close(one, other)

    def test_weight_of_an_example(self, make_task, world, interactions):
        """Weight 2 for an example counts as the example twice, weight 0 as not there."""
        task = make_task(GivenNegatives([0, 1, 2], in_batch=False))
        columns = world.columns("retrieval")

        def loss(rows, weights):
            batch = columns.examples(rows) | {WEIGHTS: torch.tensor(weights)}
            task.objective.negatives.draw = lambda *given: PoolRows(
                rows=torch.tensor([0, 1, 2]), log_expected_count=torch.zeros(3), num_in_batch=0
            )
            return task.training_step(batch, 0)

        a, b, c = interactions[[0, 9, 17]]
        twice = loss(torch.stack([a, a, b]), [1.0, 1.0, 1.0])
        torch.testing.assert_close(loss(torch.stack([a, b, c]), [2.0, 1.0, 0.0]), twice)

    def test_probability_reaches_the_negatives(self, make_task, world, interactions):
        task = make_task(MixedNegatives(in_batch=True, num_uniform=3))
        batch = world.columns("retrieval").examples(interactions)
        torch.manual_seed(0)
        one = task.training_step(batch, 0)
        task.item_probability = task.item_probability / 10
        torch.manual_seed(0)
        assert task.training_step(batch, 0).item() != one.item()

    def test_is_taken_down(self, make_task, world, interactions):
        task = make_task(GivenNegatives([0], in_batch=True))
        loss = task.training_step(world.columns("retrieval").examples(interactions), 0)
        assert task.figures == {"retrieval/train/loss": loss}


class TestCopies:
    """Of an item that is in a batch repeatedly."""

    @pytest.fixture
    def num_embedded(self, world, item_probability, interactions):
        """How many rows of items a step embeds, and how many items there are among the targets."""

        def run(model, aligned=None):
            task = RetrievalTask(
                model=model,
                objective=Objective(
                    loss=SampledSoftmax(temperature=TEMPERATURE),
                    negatives=MixedNegatives(in_batch=True, num_uniform=0),
                ),
                columns=world.columns("retrieval"),
                item_probability=item_probability,
                optimizer=OPTIMIZER,
                aligned=aligned,
            )
            embed, sizes = model.embed_items, []

            def counted(columns):
                vectors = embed(columns)
                sizes.append(len(vectors))
                return vectors

            model.embed_items = counted
            batch = world.columns("retrieval").examples(interactions)
            task.training_step(batch, 0)
            (size,) = sizes
            return size, len(batch[ITEM_ROWS].unique())

        return run

    def test_are_embedded_once(self, world, num_embedded):
        size, num_items = num_embedded(world.towers())
        assert size == num_items < BATCH

    def test_are_all_embedded_for_a_batch_norm(self, world, num_embedded):
        model = world.towers()
        model.norm = torch.nn.BatchNorm1d(3)
        assert num_embedded(model)[0] == BATCH

    def test_are_all_embedded_to_be_held(self, world, num_embedded):
        old = torch.zeros(world.prepared.num_catalogue, 8)
        frozen = FrozenItems(vectors=old, known=torch.ones(len(old), dtype=torch.bool))
        aligned = Aligned(alignment=Anchor(weight=1.0), frozen=frozen)
        assert num_embedded(world.towers(), aligned)[0] == BATCH


class TestGradient:
    @pytest.mark.parametrize(
        ("negatives", "loss"),
        [
            (MixedNegatives(in_batch=True, num_uniform=0), None),
            (MixedNegatives(in_batch=True, num_uniform=8), None),
            (MixedNegatives(in_batch=False, num_uniform=8), None),
            (WholeCatalogue(), FullSoftmax(temperature=TEMPERATURE)),
        ],
    )
    def test_every_parameter_has_one(self, negatives, loss, make_task, world, interactions):
        task = make_task(negatives, loss)
        task.training_step(world.columns("retrieval").examples(interactions), 0).backward()
        without = [
            name
            for name, parameter in task.named_parameters()
            if parameter.grad is None or not parameter.grad.abs().sum() > 0
        ]
        assert without == []

    def test_sparse_tables_have_the_gradient_of_dense_ones(
        self, make_task, world, interactions, sparse_tables, monkeypatch
    ):
        gradients = []
        for smallest in (0, 10**9):
            monkeypatch.setattr("twotower.models.embedding.MIN_SPARSE_ROWS", smallest)
            task = make_task(GivenNegatives([0, 1, 2], in_batch=True))
            task.training_step(world.columns("retrieval").examples(interactions), 0).backward()
            gradients.append({name: p.grad for name, p in task.named_parameters()})
        sparse, dense = gradients
        assert sum(g.is_sparse for g in sparse.values()) == 2
        assert not any(g.is_sparse for g in dense.values())
        for name, gradient in sparse.items():
            torch.testing.assert_close(gradient.to_dense(), dense[name])


class TestEmbedCatalogue:
    def test_block_size_does_not_matter(self, world):
        model, columns = world.towers(dropout=0.5), world.columns("retrieval")
        num_items = world.prepared.num_catalogue
        whole = embed_catalogue(model, columns, num_items)
        assert whole.shape == (num_items, 8)
        for block in (1, 7, num_items):
            torch.testing.assert_close(embed_catalogue(model, columns, num_items, block), whole)
        one = model.eval().embed_items(columns.items(torch.tensor([5])))
        torch.testing.assert_close(whole[5], one[0])

    def test_mode_is_restored(self, world):
        model = world.towers()
        for training in (True, False):
            model.train(training)
            with evaluating(model):
                assert not model.training
            assert model.training is training

    def test_mode_is_restored_after_an_error(self, world):
        model = world.towers().train()
        with pytest.raises(KeyError), evaluating(model):
            raise KeyError
        assert model.training


def test_batch_has_what_the_task_reads(world, interactions):
    batch = world.columns("retrieval").examples(interactions)
    assert {ITEM_ROWS, USER_ROWS, WEIGHTS} <= batch.keys()
