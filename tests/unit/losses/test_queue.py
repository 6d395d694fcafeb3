"""The queue by hand, and the softmax with a queue by enumeration of all queues."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from twotower.losses.masks import PositiveMask
from twotower.losses.negatives import MixedNegatives
from twotower.losses.objective import Objective
from twotower.losses.queue import CrossBatchQueue
from twotower.losses.sampled_softmax import SampledSoftmax
from twotower.losses.step import Step

CPU = torch.device("cpu")


def vectors_of(rows: Tensor) -> Tensor:
    """A vector by which the item can be told."""
    return torch.stack([rows.float(), -rows.float()], dim=1)


def content(queue: CrossBatchQueue) -> list[int]:
    found = queue.candidates(CPU)
    if found is None:
        return []
    rows, vectors = found
    assert torch.equal(vectors, vectors_of(rows))
    return rows.tolist()


def test_first_in_first_out() -> None:
    queue = CrossBatchQueue(size=5)
    assert queue.candidates(CPU) is None
    seen = []
    for batch in ([1, 2], [3, 3], [4, 5], [6], [10, 11, 12, 13, 14, 15, 16]):
        queue.push(torch.tensor(batch), vectors_of(torch.tensor(batch)))
        seen.append(content(queue))
    assert seen == [
        [1, 2],
        [1, 2, 3, 3],
        [2, 3, 3, 4, 5],
        [3, 3, 4, 5, 6],
        [12, 13, 14, 15, 16],
    ]


def test_it_fills_before_its_items_are_candidates() -> None:
    queue = CrossBatchQueue(size=100, warm_up=3)
    for step in range(5):
        queue.push(torch.tensor([step]), vectors_of(torch.tensor([step])))
        assert content(queue) == (list(range(step + 1)) if step >= 2 else [])


def test_vectors_are_kept_as_they_were_without_gradient() -> None:
    queue = CrossBatchQueue(size=3)
    vectors = torch.ones(2, 4, dtype=torch.bfloat16, requires_grad=True)
    queue.push(torch.tensor([1, 2]), vectors)
    with torch.no_grad():
        vectors += 1
    _, kept = queue.candidates(CPU) or pytest.fail("nothing was kept")
    assert kept.tolist() == [[1] * 4] * 2
    assert kept.dtype == torch.float32
    assert not kept.requires_grad


def test_goes_on_from_its_state() -> None:
    whole, first, second = (CrossBatchQueue(size=4, warm_up=2) for _ in range(3))
    batches = [torch.tensor([i, i + 1]) for i in range(6)]
    for batch in batches:
        whole.push(batch, vectors_of(batch))
    for batch in batches[:1]:
        first.push(batch, vectors_of(batch))
    second.load_state_dict(first.state_dict())
    assert content(second) == []
    for batch in batches[1:]:
        second.push(batch, vectors_of(batch))
    assert content(second) == content(whole) == [4, 5, 5, 6]


def test_draws_are_expected_to_hold_the_queue() -> None:
    # 2 other targets and 3 of the queue: 5 p; 4 uniform draws from 5 items: 0.8.
    queue = CrossBatchQueue(size=3)
    queue.push(torch.tensor([4, 0, 4]), vectors_of(torch.tensor([4, 0, 4])))
    probability = torch.tensor([0.5, 0.2, 0.1, 0.2, 0.0])
    negatives = MixedNegatives(in_batch=True, num_uniform=4, queue=queue)
    drawn = negatives.draw(torch.tensor([0, 1, 2]), probability, None)
    assert drawn.rows[:3].tolist() == [0, 1, 2]
    assert drawn.rows[-3:].tolist() == [4, 0, 4]
    assert drawn.to_embed.tolist() == drawn.rows[:7].tolist()
    assert torch.equal(drawn.queued, vectors_of(torch.tensor([4, 0, 4])))
    for row, log_count in zip(drawn.rows.tolist(), drawn.log_expected_count.tolist(), strict=True):
        expected = math.log(5 * probability[row].item() + 0.8)
        assert log_count == pytest.approx(expected, abs=1e-6)


NUM_ITEMS = 4
PROBABILITY = torch.tensor([0.55, 0.25, 0.15, 0.05], dtype=torch.float64)


def step_of(
    queries: Tensor, items: Tensor, targets: list[int], known: list[tuple[int, int]] | None = None
) -> Step:
    pairs = torch.tensor(known or [], dtype=torch.int64).reshape(-1, 2).T.contiguous()
    rows = torch.tensor(targets)
    return Step(
        target_rows=rows,
        weights=torch.tensor([1.0] + [0.0] * (len(targets) - 1)),  # the first query counts
        mask=PositiveMask(
            target_rows=rows,
            users=torch.arange(len(targets)),
            num_users=len(targets),
            known_users=pairs[0],
            known_rows=pairs[1],
        ),
        item_probability=PROBABILITY,
        embed_queries=lambda: queries,
        embed_items=lambda rows: items[rows],
        embed_catalogue=lambda: items,
    )


def objective_with(queued: list[int], items: Tensor) -> Objective:
    queue = CrossBatchQueue(size=max(len(queued), 1))
    if queued:
        queue.push(torch.tensor(queued), items[queued])
    negatives = MixedNegatives(in_batch=True, num_uniform=0, queue=queue)
    return Objective(loss=SampledSoftmax(temperature=0.5), negatives=negatives)


@pytest.mark.parametrize("target", range(NUM_ITEMS))
def test_the_partition_estimate_is_exact_on_average_over_all_queues(target: int) -> None:
    """Batch of 2, queue of 3: 4 * 4^3 samples, each with its probability."""
    state = torch.Generator().manual_seed(0)
    # In float32, as the queue keeps them.
    queries, items = torch.randn(2, 3, generator=state), torch.randn(NUM_ITEMS, 3, generator=state)
    target_logit = (queries[0] @ items[target]).item() / 0.5
    expectation = 0.0
    for other, *queued in itertools.product(range(NUM_ITEMS), repeat=4):
        loss = objective_with(queued, items)(step_of(queries, items, [target, other]))
        chance = PROBABILITY[[other, *queued]].prod().item()
        expectation += chance * math.exp(loss.item() + target_logit)
    exact = (queries[0] @ items.T / 0.5).exp().sum().item()
    assert expectation == pytest.approx(exact, rel=1e-5)


def test_what_must_not_stand_against_a_query_does_not_in_the_queue() -> None:
    """Query 0 has target 1 and took 3: of the queue 1, 3, 0, 3 only item 0 stands against it."""
    state = torch.Generator().manual_seed(1)
    queries = torch.randn(1, 3, generator=state)
    items = torch.randn(NUM_ITEMS, 3, generator=state)
    loss = objective_with([1, 3, 0, 3], items)(step_of(queries, items, [1], known=[(0, 3)]))
    target, other = (math.exp((queries[0] @ items[j]).item() / 0.5) for j in (1, 0))
    by_hand = math.log((target + other / (4 * 0.55)) / target)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_a_step_fills_it_with_its_targets_and_old_items_have_no_gradient() -> None:
    state = torch.Generator().manual_seed(2)
    queries = torch.randn(2, 3, generator=state).requires_grad_()
    items = torch.randn(NUM_ITEMS, 3, generator=state).requires_grad_()
    objective = objective_with([3], items)
    objective.negatives.queue.size = 3
    objective(step_of(queries, items, [0, 1])).backward()
    assert items.grad is not None
    assert items.grad[3].tolist() == [0, 0, 0]
    assert (items.grad[:2] != 0).all()
    rows, vectors = objective.negatives.queue.candidates(CPU)
    assert rows.tolist() == [3, 0, 1]
    assert torch.equal(vectors, items[[3, 0, 1]])


def test_items_are_pushed_as_by_the_whole_pool() -> None:
    """Over all batches and queues, as without a queue but a batch of so many more queries.

    Both estimate the sum from 3 draws, in 4^3 ways; with the queue two of the draws have no
    gradient and the third has three times as much.
    """
    state = torch.Generator().manual_seed(3)
    query = torch.randn(1, 3, generator=state)
    items = torch.randn(NUM_ITEMS, 3, generator=state).requires_grad_()
    pushed = [torch.zeros(NUM_ITEMS, 3) for _ in range(2)]
    for draws in itertools.product(range(NUM_ITEMS), repeat=3):
        chance = PROBABILITY[list(draws)].prod().item()
        other, *queued = draws
        ways = [([0, other], queued), ([0, *draws], [])]
        for total, (targets, in_queue) in zip(pushed, ways, strict=True):
            queries = query.expand(len(targets), -1)
            loss = objective_with(in_queue, items)(step_of(queries, items, targets))
            total += chance * torch.autograd.grad(loss, items)[0]
    torch.testing.assert_close(*pushed, rtol=1e-5, atol=1e-6)
    assert pushed[0][3].abs().max() > 0.01


def test_a_batch_of_one_has_nothing_to_scale() -> None:
    items = torch.eye(NUM_ITEMS, 3).requires_grad_()
    loss = objective_with([1], items)(step_of(torch.ones(1, 3), items, [0]))
    (gradient,) = torch.autograd.grad(loss, items)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("given", [{"size": 0}, {"size": 5, "warm_up": -1}])
def test_numbers_out_of_range(given: dict[str, int]) -> None:
    name, value = list(given.items())[-1]
    with pytest.raises(ValueError, match=re.escape(f"{name}={value}")):
        CrossBatchQueue(**given)
