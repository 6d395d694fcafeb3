"""A pool whose copies of an item are merged, against the same pool with all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from twotower.losses.cosine_contrastive import CosineContrastive
from twotower.losses.hard_negatives import HardNegatives
from twotower.losses.masks import PositiveMask
from twotower.losses.negatives import MixedNegatives, PoolRows
from twotower.losses.objective import Objective
from twotower.losses.queue import CrossBatchQueue
from twotower.losses.sampled_softmax import SampledSoftmax
from twotower.losses.step import Step
from twotower.losses.streaming_frequency import StreamingFrequency

NUM_QUERIES, NUM_ITEMS, DIM = 12, 7, 3


def rows_of_targets(seed: int) -> Tensor:
    """Fewer items than queries, so that there are copies."""
    state = torch.Generator().manual_seed(seed)
    return torch.randint(NUM_ITEMS, (NUM_QUERIES,), generator=state)


class Tables:
    """Queries and items, and which items were embedded."""

    def __init__(self) -> None:
        state = torch.Generator().manual_seed(0)
        self.queries = torch.randn(NUM_QUERIES, DIM, generator=state, requires_grad=True)
        self.items = torch.randn(NUM_ITEMS, DIM, generator=state, requires_grad=True)
        self.embedded: list[list[int]] = []

    def step(self, targets: Tensor, merge_copies: bool, **given: Any) -> Step:
        """A step whose users each have one event, and the next event as a known positive."""

        def embed(rows: Tensor) -> Tensor:
            self.embedded.append(rows.tolist())
            return self.items[rows]

        users = torch.arange(NUM_QUERIES)
        mask = PositiveMask(
            target_rows=targets,
            users=users,
            num_users=NUM_QUERIES,
            known_users=users,
            known_rows=targets.roll(1),
        )
        probability = torch.arange(1.0, NUM_ITEMS + 1)
        return Step(
            target_rows=targets,
            weights=given.pop("weights", torch.ones(len(targets))),
            mask=mask,
            item_probability=probability / probability.sum(),
            embed_queries=lambda: self.queries,
            embed_items=embed,
            embed_catalogue=lambda: self.items.detach(),
            merge_copies=merge_copies,
            **given,
        )


def test_merged_rows_by_hand() -> None:
    pool = PoolRows(
        rows=torch.tensor([5, 2, 5, 9, 5, 2, 8]),
        log_expected_count=torch.tensor([0.5, 0.2, 0.5, 0.9, 0.5, 0.2, 0.8]),
        num_in_batch=3,
        queued=torch.zeros(2, DIM),
        gradient_scale=torch.tensor([5.0, 2, 5, 9, 5]),
    )
    merged = pool.merged()
    # A queued vector is an earlier one of its item, so copies among them are none.
    assert merged.rows.tolist() == [2, 5, 9, 2, 8]
    assert merged.to_embed.tolist() == [2, 5, 9]
    of_five = 0.5 - math.log(3)
    expected = pytest.approx([0.2, of_five, 0.9, 0.2, 0.8])
    assert merged.log_expected_count.tolist() == expected
    assert merged.gradient_scale is not None
    assert merged.gradient_scale.tolist() == [2, 5, 9]
    assert merged.log_copies is not None
    assert merged.log_copies.tolist() == pytest.approx([0, math.log(3), 0, 0, 0])
    vectors = torch.tensor([[2.0], [5], [9]])
    assert merged.targets_of(vectors, torch.tensor([5, 2, 5])).tolist() == [[5], [2], [5]]


def mixed(**given: Any) -> MixedNegatives:
    return MixedNegatives(in_batch=True, **{"num_uniform": 0, **given})


@pytest.mark.parametrize(
    "negatives",
    [
        pytest.param(mixed, id="in the batch"),
        pytest.param(lambda: mixed(num_uniform=9), id="uniform ones"),
        pytest.param(lambda: mixed(num_uniform=4, queue=CrossBatchQueue(size=20)), id="a queue"),
        pytest.param(
            lambda: mixed(frequency=StreamingFrequency(num_buckets=32, rate=0.1)), id="frequencies"
        ),
    ],
)
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("with_hard", [True, False])
@pytest.mark.parametrize("with_weights", [True, False])
def test_the_loss_and_its_gradients_are_those_of_all_copies(
    negatives: Callable[[], MixedNegatives], corrected: bool, with_hard: bool, with_weights: bool
) -> None:
    found = []
    for merge_copies in (False, True):
        tables, losses, weights = Tables(), [], torch.ones(NUM_QUERIES)
        hard = HardNegatives(num=2, num_queries=5, every=2) if with_hard else None
        loss = SampledSoftmax(temperature=0.3, corrected=corrected)
        objective = Objective(loss=loss, negatives=negatives(), hard=hard)
        torch.manual_seed(3)
        if with_weights:
            weights = torch.arange(1.0, NUM_QUERIES + 1)
        for seed in range(3):
            step = tables.step(rows_of_targets(seed), merge_copies, weights=weights)
            losses.append(objective(step))
        torch.stack(losses).sum().backward()
        found.append((torch.stack(losses).detach(), tables.queries.grad, tables.items.grad))
    torch.testing.assert_close(found[1], found[0])


def test_an_item_is_embedded_once() -> None:
    targets, tables = rows_of_targets(0), Tables()
    objective = Objective(loss=SampledSoftmax(temperature=1), negatives=mixed())
    objective(tables.step(targets, True))
    assert tables.embedded == [sorted(set(targets.tolist()))]


def test_a_loss_that_counts_candidates_has_all_of_them() -> None:
    targets, losses = rows_of_targets(0), []
    for merge_copies in (False, True):
        tables = Tables()
        objective = Objective(loss=CosineContrastive(margin=0.2, weight=2), negatives=mixed())
        losses.append(objective(tables.step(targets, merge_copies)))
        assert tables.embedded == [targets.tolist()]
    assert torch.equal(*losses)


def test_several_targets_of_a_query() -> None:
    targets = rows_of_targets(1)
    owners, found = torch.arange(NUM_QUERIES) // 3, []
    for merge_copies in (False, True):
        tables = Tables()
        objective = Objective(loss=SampledSoftmax(temperature=0.3), negatives=mixed())
        loss = objective(tables.step(targets, merge_copies, owners=owners))
        loss.backward()
        found.append((loss.detach(), tables.queries.grad, tables.items.grad))
    torch.testing.assert_close(found[1], found[0])
