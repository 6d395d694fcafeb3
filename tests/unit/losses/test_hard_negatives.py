"""Mined items against a sort of all scores, and the softmax with them by enumeration."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twotower.losses.gbce import GBCE
from twotower.losses.hard_negatives import HardNegatives, top_rows
from twotower.losses.masks import PositiveMask
from twotower.losses.negatives import MixedNegatives, WholeCatalogue
from twotower.losses.objective import Objective, RetrievalLoss
from twotower.losses.pairwise import BPR
from twotower.losses.sampled_softmax import FullSoftmax, SampledSoftmax
from twotower.losses.step import Step

NUM_ITEMS, DIM = 12, 3
PROBABILITY = torch.tensor([0.55, 0.25, 0.15, 0.05] + [0.0] * 8, dtype=torch.float64)


def vectors(num: int, seed: int) -> Tensor:
    state = torch.Generator().manual_seed(seed)
    return torch.randn(num, DIM, dtype=torch.float64, generator=state).requires_grad_()


def mask_of(targets: list[int], known: list[tuple[int, int]]) -> PositiveMask:
    pairs = torch.tensor(known, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    return PositiveMask(
        target_rows=torch.tensor(targets),
        users=torch.arange(len(targets)),
        num_users=len(targets),
        known_users=pairs[0],
        known_rows=pairs[1],
    )


def step_of(
    queries: Tensor,
    items: Tensor,
    targets: list[int],
    known: list[tuple[int, int]] | None = None,
    embed_catalogue: Callable[[], Tensor] | None = None,
    weights: list[float] | None = None,
) -> Step:
    return Step(
        target_rows=torch.tensor(targets),
        weights=torch.tensor(weights or [1.0] * len(targets), dtype=torch.float64),
        mask=mask_of(targets, known or []),
        item_probability=PROBABILITY[: len(items)],
        embed_queries=lambda: queries,
        embed_items=lambda rows: items[rows],
        embed_catalogue=embed_catalogue or (lambda: items.detach()),
    )


def objective_of(loss: RetrievalLoss, hard: HardNegatives, num_uniform: int = 0) -> Objective:
    negatives = MixedNegatives(in_batch=True, num_uniform=num_uniform)
    return Objective(loss=loss, negatives=negatives, hard=hard)


def sorted_rows(queries: Tensor, items: Tensor, mask: PositiveMask) -> list[list[int]]:
    """All items that a query may get, best first."""
    taken = mask.of(torch.arange(len(items))).tolist()
    scores = (queries @ items.T).tolist()
    return [
        sorted((j for j in range(len(items)) if not out[j]), key=lambda j: -row[j])
        for row, out in zip(scores, taken, strict=True)
    ]


KNOWN = [(0, 1), (0, 2), (1, 0), (2, 11)] + [(3, j) for j in range(10)]


@pytest.mark.parametrize("block", [1, 5, 12, 100])
def test_the_top_is_that_of_all_scores_sorted(block: int) -> None:
    queries, items, mask = vectors(4, 0), vectors(NUM_ITEMS, 1), mask_of([3, 3, 7, 10], KNOWN)
    expected = [(rows + [-1] * 6)[:6] for rows in sorted_rows(queries, items, mask)]
    assert expected[3][1:] == [-1] * 5  # all but item 11 are known
    assert top_rows(queries, items, mask, 6, block).tolist() == expected


def test_a_catalogue_smaller_than_what_is_wanted() -> None:
    found = top_rows(vectors(1, 0), vectors(2, 1), mask_of([1], []), 5)
    assert found.tolist() == [[0, -1, -1, -1, -1]]


def test_the_ranks_after_those_left_out_are_mined() -> None:
    queries, items = vectors(4, 0), vectors(NUM_ITEMS, 1)
    step = step_of(queries, items, [3, 3, 7, 10], KNOWN)
    mined = HardNegatives(num=3, num_queries=9, every=1, skip=2).mine(step, queries)
    assert sorted(mined.queries.tolist()) == [0, 1, 2, 3]
    lists = sorted_rows(queries, items, step.mask)
    for query, rows in zip(mined.queries.tolist(), mined.rows.tolist(), strict=True):
        assert rows == (lists[query] + [-1] * 5)[2:5]


def test_no_more_queries_than_asked_for_and_others_in_the_next_step() -> None:
    queries, items = vectors(50, 0), vectors(NUM_ITEMS, 1)
    step = step_of(queries, items, [0] * 50)
    hard = HardNegatives(num=1, num_queries=5, every=1)
    found = [tuple(hard.mine(step, queries).queries.tolist()) for _ in range(10)]
    assert all(len(set(one)) == 5 for one in found)
    assert len(set(found)) > 1
    assert len(set(itertools.chain(*found))) > 20


def test_the_catalogue_is_embedded_every_few_steps_after_the_warm_up() -> None:
    found: list[int | None] = []
    calls: list[int] = []

    def embed() -> Tensor:
        calls.append(len(found))
        return torch.eye(3, dtype=torch.float64).roll(len(calls), dims=0)

    query = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    step = step_of(query, torch.zeros(3, 3), [0], embed_catalogue=embed)
    step = Step(**{**vars(step), "mask": mask_of([99], [])})
    hard = HardNegatives(num=1, num_queries=1, every=3, warm_up=2)
    for _ in range(8):
        mined = hard.mine(step, query)
        found.append(mined and mined.rows.item())
    assert calls == [2, 5]
    assert found == [None, None, 1, 1, 1, 2, 2, 2]  # the best by vectors that lag behind


@pytest.mark.parametrize("num_queries", [2, 4])
def test_with_every_item_as_a_candidate_nothing_changes(num_queries: int) -> None:
    """Mined or not, an item counts once: the full softmax in value and gradient."""
    queries, items = vectors(4, 0), vectors(NUM_ITEMS, 1)
    step = step_of(queries, items, [3, 3, 7, 10], KNOWN, weights=[1, 2, 0.5, 1])
    results = []
    for hard in (None, HardNegatives(num=4, num_queries=num_queries, every=1, skip=1)):
        objective = Objective(
            loss=FullSoftmax(temperature=0.4), negatives=WholeCatalogue(), hard=hard
        )
        loss = objective(step)
        results.append((loss, *torch.autograd.grad(loss, (queries, items))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("target", range(4))
@pytest.mark.parametrize("skip", [0, 1])
def test_the_partition_estimate_is_exact_on_average_over_all_batches(
    target: int, skip: int
) -> None:
    """Batch of 3 from 4 items: the other queries' targets in all 16 ways."""
    queries, items = vectors(3, 2).detach(), vectors(4, 3).detach()
    hard = HardNegatives(num=2, num_queries=3, every=1, skip=skip)
    objective = objective_of(SampledSoftmax(temperature=0.7), hard)
    target_logit = (queries[0] @ items[target]).item() / 0.7
    estimates, chances = [], []
    for others in itertools.product(range(4), repeat=2):
        step = step_of(queries, items, [target, *others], weights=[1, 0, 0])
        estimates.append(math.exp(objective(step).item() + target_logit))
        chances.append(PROBABILITY[list(others)].prod().item())
    expectation = sum(e * c for e, c in zip(estimates, chances, strict=True))
    exact = (queries[0] @ items.T / 0.7).exp().sum().item()
    assert expectation == pytest.approx(exact, rel=1e-6)
    assert max(estimates) > 1.001 * min(estimates)  # one item is left to chance


def test_what_is_mined_for_a_query_stands_against_it_alone() -> None:
    """Queries 0 and 1 look in directions of their own; item 3 is the best of both, known to 1."""
    queries = torch.eye(2, dtype=torch.float64)
    items = torch.tensor(
        [[0.1, 0.3], [0.2, 0.1], [0.3, 0.2], [2.0, 2.0]], dtype=torch.float64
    ).requires_grad_()
    hard = HardNegatives(num=1, num_queries=2, every=1)
    step = step_of(queries, items, [0, 0], known=[(1, 3)])
    loss = objective_of(BPR(temperature=1), hard)(step)
    # In the batch there is the target alone. Mined: item 3 for query 0, item 2 for query 1.
    first = math.log(1 + math.exp(2.0 - 0.1))
    second = math.log(1 + math.exp(0.2 - 0.3))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-12)
    loss.backward()
    assert (items.grad != 0).tolist() == [
        [True, True],
        [False, False],
        [False, True],
        [True, False],
    ]


def test_gbce_refuses_what_is_there_with_certainty() -> None:
    queries, items = vectors(2, 0), vectors(NUM_ITEMS, 1)
    objective = Objective(
        loss=GBCE(calibration=0.75),
        negatives=MixedNegatives(in_batch=False, num_uniform=3),
        hard=HardNegatives(num=1, num_queries=2, every=1),
    )
    with pytest.raises(ValueError, match=r"all expected equally often .* from 0\.25 to 1"):
        objective(step_of(queries, items, [0, 1]))


def test_goes_on_from_its_state() -> None:
    queries, items = vectors(1, 0), vectors(NUM_ITEMS, 1)
    one, other = (HardNegatives(num=5, num_queries=1, every=3, warm_up=1) for _ in range(2))
    for _ in range(2):
        one.mine(step_of(queries, items, [0]), queries)
    other.load_state_dict(one.state_dict())
    changed = step_of(queries, items, [0], embed_catalogue=lambda: -items.detach())
    for number in range(2, 6):
        rows = other.mine(changed, queries).rows
        assert torch.equal(rows, one.mine(changed, queries).rows)
        lists = sorted_rows(queries, items if number < 4 else -items, changed.mask)
        assert rows.tolist() == [lists[0][:5]]


@pytest.mark.parametrize(
    "given", [{"num": 0}, {"num_queries": 0}, {"every": 0}, {"warm_up": -1}, {"skip": -2}]
)
def test_numbers_out_of_range(given: dict[str, int]) -> None:
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=re.escape(f" {name}={value}")):
        HardNegatives(**{"num": 1, "num_queries": 1, "every": 1, **given})
