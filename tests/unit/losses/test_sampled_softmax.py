"""Sampled softmax against the full softmax, by enumeration of all samples and by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from twotower.losses.negatives import Pool, WholeCatalogue, log_expected_count
from twotower.losses.sampled_softmax import FullSoftmax, SampledSoftmax

NUM_ITEMS = 6
PROBABILITY = torch.tensor([0.6, 0.2, 0.1, 0.06, 0.03, 0.01], dtype=torch.float64)


def world(num_queries: int, dim: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and item vectors in float64."""
    state = torch.Generator().manual_seed(seed)
    queries = torch.randn(num_queries, dim, dtype=torch.float64, generator=state)
    items = torch.randn(NUM_ITEMS, dim, dtype=torch.float64, generator=state)
    return queries.requires_grad_(), items.requires_grad_()


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


def none_masked(num_queries: int, num_candidates: int) -> Tensor:
    return torch.zeros(num_queries, num_candidates, dtype=torch.bool)


@pytest.mark.parametrize("loss_type", [SampledSoftmax, FullSoftmax])
def test_all_items_as_candidates_is_the_full_softmax(loss_type: type[FullSoftmax]) -> None:
    queries, items = world(num_queries=5)
    target_rows = torch.tensor([0, 3, 3, 5, 1])
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0], dtype=torch.float64)
    drawn = WholeCatalogue().draw(target_rows, PROBABILITY, None)
    pool = Pool(
        vectors=items[drawn.rows], rows=drawn.rows, log_expected_count=drawn.log_expected_count
    )
    masked = pool.rows == target_rows[:, None]
    loss = loss_type(temperature=0.3)(queries, items[target_rows], pool, masked, weights)

    each = functional.cross_entropy(queries @ items.T / 0.3, target_rows, reduction="none")
    full = (each * weights).sum() / weights.sum()
    torch.testing.assert_close(loss, full, rtol=1e-13, atol=0)
    for ours, theirs in zip(
        gradients(loss, queries, items), gradients(full, queries, items), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("target", range(NUM_ITEMS))
def test_the_partition_estimate_is_exact_on_average_over_all_samples(target: int) -> None:
    """Batch of 3, 2 uniform draws: 6^2 * 6^2 samples, each with its probability."""
    queries, items = world(num_queries=1)
    temperature, target_rows = 0.5, torch.tensor([target])
    loss = SampledSoftmax(temperature=temperature)
    expectation = 0.0
    with torch.no_grad():
        target_logit = (queries @ items[target]).item() / temperature
        for sample in itertools.product(range(NUM_ITEMS), repeat=4):
            rows = torch.tensor([target, *sample])
            pool = Pool(
                vectors=items[rows],
                rows=rows,
                log_expected_count=log_expected_count(
                    PROBABILITY[rows], num_in_batch=3, num_uniform=2, num_items=NUM_ITEMS
                ),
            )
            masked = rows == target_rows[:, None]
            estimate = math.exp(
                loss(queries, items[target_rows], pool, masked).item() + target_logit
            )
            chance = PROBABILITY[sample[0]] * PROBABILITY[sample[1]] / NUM_ITEMS**2
            expectation += chance.item() * estimate
        exact = (queries @ items.T / temperature).exp().sum().item()
    # The counts are kept in float32.
    assert expectation == pytest.approx(exact, rel=1e-6)
    # Not a vacuous check: the most popular item is expected more than once, 2 * 0.6 + 2 / 6.
    assert log_expected_count(
        PROBABILITY, num_in_batch=3, num_uniform=2, num_items=NUM_ITEMS
    ).exp().max().item() == pytest.approx(1.5333333)


def expected_gradients(num_draws: int, target: int) -> list[Tensor]:
    """Gradients averaged over all samples of so many uniform draws.

    All samples at once: the pool has `num_draws` copies of every item, and a query for every
    multiset of draws sees as many copies of an item as the multiset has. Its weight is the
    multiset's probability.
    """
    queries, items = world(num_queries=1)
    multisets = list(itertools.combinations_with_replacement(range(NUM_ITEMS), num_draws))
    draws = torch.tensor(multisets)
    counts = functional.one_hot(draws, NUM_ITEMS).sum(dim=1)  # (S, N)
    ways = torch.tensor([math.factorial(n) for n in range(num_draws + 1)], dtype=torch.float64)
    chance = ways[num_draws] / ways[counts].prod(dim=1) / float(NUM_ITEMS) ** num_draws
    assert chance.sum().item() == pytest.approx(1)

    rows = torch.arange(NUM_ITEMS).repeat_interleave(num_draws)
    copy = torch.arange(num_draws).repeat(NUM_ITEMS)
    masked = (copy >= counts[:, rows]) | (rows == target)  # (S, N * draws)
    pool = Pool(
        vectors=items[rows],
        rows=rows,
        log_expected_count=torch.full((rows.numel(),), math.log(num_draws / NUM_ITEMS)),
    )
    num_samples = len(multisets)
    loss = SampledSoftmax(temperature=0.7)(
        queries.expand(num_samples, -1),
        items[[target]].expand(num_samples, -1),
        pool,
        masked,
        chance,
    )
    return gradients(loss, queries, items)


@pytest.mark.parametrize("target", [0, 4])
def test_the_expected_gradient_goes_to_the_full_one_as_the_pool_grows(target: int) -> None:
    queries, items = world(num_queries=1)
    full = functional.cross_entropy(queries @ items.T / 0.7, torch.tensor([target]))
    exact = torch.cat(gradients(full, queries, items))
    bias = [
        (torch.cat(expected_gradients(num_draws, target)) - exact).norm().item()
        for num_draws in (2, 4, 8, 12)
    ]
    # The bias of a ratio of means falls as 1 / draws: 4 / 2 times the draws, at most 0.65 of it.
    assert bias[1] < 0.65 * bias[0]
    assert bias[2] < 0.65 * bias[1]
    assert bias[3] < 0.75 * bias[2]
    assert bias[3] < 0.1 * exact.norm().item()


def test_the_temperature_comes_before_the_correction() -> None:
    """Equal scores, head p = 1e-2, tail p = 1e-6, T = 0.05: 9.21 between the logits, not 184."""
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    candidates = torch.tensor([[0.4, 0.1], [0.4, 0.1]], dtype=torch.float64, requires_grad=True)
    log_count = log_expected_count(
        torch.tensor([1e-2, 1e-6], dtype=torch.float64),
        num_in_batch=1025,
        num_uniform=0,
        num_items=2,
    )
    pool = Pool(vectors=candidates, rows=torch.tensor([1, 2]), log_expected_count=log_count)
    loss = SampledSoftmax(temperature=0.05)(query, query * 0.4, pool, none_masked(1, 2))
    (gradient,) = gradients(loss, candidates)
    # A candidate's gradient is its softmax share times q / T, so shares can be read off.
    head, tail = gradient[:, 0].tolist()
    assert math.log(tail / head) == pytest.approx(4 * math.log(10), abs=1e-5)
    assert 4 * math.log(10) == pytest.approx(9.21, abs=0.001)
    wrong = 4 * math.log(10) / 0.05
    assert wrong == pytest.approx(184, abs=0.5)


def test_an_item_expected_more_than_once_is_divided_by_its_count() -> None:
    # s_t = 1, one candidate with s = 2 expected 3.7 times: ln(e + e^2 / 3.7) - 1.
    pool = Pool(
        vectors=torch.tensor([[2.0]]),
        rows=torch.tensor([8]),
        log_expected_count=torch.tensor([math.log(3.7)]),
    )
    loss = SampledSoftmax(temperature=1)(
        torch.tensor([[1.0]]), torch.tensor([[1.0]]), pool, none_masked(1, 1)
    )
    by_hand = math.log(math.e + math.e**2 / 3.7) - 1
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_probability_1e_9_keeps_its_full_correction() -> None:
    # Expected count 1000 * 1e-9 = 1e-6; all scores 0: ln(1 + 1e6).
    log_count = log_expected_count(
        torch.tensor([1e-9]), num_in_batch=1001, num_uniform=0, num_items=5
    )
    pool = Pool(vectors=torch.zeros(1, 2), rows=torch.tensor([3]), log_expected_count=log_count)
    loss = SampledSoftmax(temperature=0.05)(
        torch.ones(1, 2), torch.zeros(1, 2), pool, none_masked(1, 1)
    )
    assert loss.item() == pytest.approx(math.log(1 + 1e6), rel=1e-6)


def test_an_item_drawn_twice_counts_twice() -> None:
    pool = Pool(
        vectors=torch.zeros(2, 1),
        rows=torch.tensor([3, 3]),
        log_expected_count=torch.full((2,), math.log(0.5)),
    )
    loss = SampledSoftmax(temperature=1)(
        torch.ones(1, 1), torch.zeros(1, 1), pool, none_masked(1, 2)
    )
    assert loss.item() == pytest.approx(math.log(1 + 2 / 0.5))


MASKED = torch.tensor(
    [[True, False, False, True], [False, False, True, True], [False, True, False, True]]
)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_pairs_get_exactly_zero_gradient(dtype: torch.dtype, autocast: bool) -> None:
    state = torch.Generator().manual_seed(1)
    queries = torch.eye(3).to(dtype).requires_grad_()  # dimension i is seen by query i alone
    targets = torch.randn(3, 3, generator=state).to(dtype)
    candidates = torch.randn(4, 3, generator=state).to(dtype).requires_grad_()
    pool = Pool(
        vectors=candidates,
        rows=torch.arange(4),
        log_expected_count=torch.tensor([-9.0, -0.5, 1.0, -20.0]),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = SampledSoftmax(temperature=0.05)(queries, targets, pool, MASKED)
    query_gradient, gradient = gradients(loss, queries, candidates)
    assert loss.dtype == torch.float32
    assert (gradient.T[MASKED] == 0).all()
    assert (gradient.T[~MASKED] != 0).any(dim=0)
    assert query_gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_masked_candidate_is_as_good_as_absent(dtype: torch.dtype) -> None:
    state = torch.Generator().manual_seed(2)
    queries, targets = torch.randn(2, 3, 4, generator=state).to(dtype)
    queries.requires_grad_()
    candidates = torch.randn(4, 4, generator=state).to(dtype)
    log_count = torch.randn(4, generator=state)
    results = []
    for last in (candidates[3], -candidates[3], 1e4 * torch.ones(4, dtype=dtype)):
        vectors = torch.cat([candidates[:3], last.unsqueeze(0)])
        pool = Pool(vectors=vectors, rows=torch.arange(4), log_expected_count=log_count)
        loss = SampledSoftmax(temperature=0.1)(queries, targets, pool, MASKED)
        results.append((loss, *gradients(loss, queries)))
    pool = Pool(vectors=candidates[:3], rows=torch.arange(3), log_expected_count=log_count[:3])
    loss = SampledSoftmax(temperature=0.1)(queries, targets, pool, MASKED[:, :3])
    results.append((loss, *gradients(loss, queries)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    # Rows are divided by what no candidate can exceed, of whatever length; that rounds.
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[0], results[3])


def test_bfloat16_vectors_lose_nothing_in_the_loss() -> None:
    state = torch.Generator().manual_seed(3)
    queries, targets = functional.normalize(
        torch.randn(2, 8, 16, generator=state), dim=-1
    ).bfloat16()
    candidates = functional.normalize(torch.randn(30, 16, generator=state), dim=-1).bfloat16()
    log_count = torch.randn(30, generator=state)
    exact = -torch.log_softmax(
        torch.cat(
            [
                (queries.double() * targets.double()).sum(dim=1, keepdim=True) / 0.05,
                queries.double() @ candidates.double().T / 0.05 - log_count,
            ],
            dim=1,
        ),
        dim=1,
    )[:, 0].mean()
    pool = Pool(vectors=candidates, rows=torch.arange(30), log_expected_count=log_count)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SampledSoftmax(temperature=0.05)(queries, targets, pool, none_masked(8, 30))
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)


def test_a_query_without_candidates_costs_nothing_even_alone_in_its_batch() -> None:
    # In a batch of one the only candidate is the target, which was never to be expected: log 0.
    query = torch.tensor([[1.0, 2.0]], requires_grad=True)
    target = torch.tensor([[3.0, 4.0]], requires_grad=True)
    log_count = log_expected_count(torch.tensor([0.5]), num_in_batch=1, num_uniform=0, num_items=9)
    pool = Pool(vectors=target, rows=torch.tensor([7]), log_expected_count=log_count)
    loss = SampledSoftmax(temperature=0.05)(query, target, pool, torch.tensor([[True]]))
    assert loss.item() == 0
    for gradient in gradients(loss, query, target):
        assert gradient.tolist() == [[0, 0]]


def test_a_masked_candidate_is_nothing_even_beside_a_hopeless_target() -> None:
    # Logits of target and masked candidate -20,000 and 20,000: any finite penalty would show.
    pool = Pool(
        vectors=torch.tensor([[1.0]]), rows=torch.tensor([0]), log_expected_count=torch.zeros(1)
    )
    loss = SampledSoftmax(temperature=5e-5)(
        torch.tensor([[1.0]]), torch.tensor([[-1.0]]), pool, torch.tensor([[True]])
    )
    assert loss.item() == 0


def test_large_logits_do_not_overflow() -> None:
    # Scores of +-1 at T = 0.001: the loss is the difference of the logits, 2000.
    pool = Pool(
        vectors=torch.tensor([[1.0]]), rows=torch.tensor([0]), log_expected_count=torch.zeros(1)
    )
    loss = SampledSoftmax(temperature=0.001)(
        torch.tensor([[1.0]]), torch.tensor([[-1.0]]), pool, none_masked(1, 1)
    )
    assert loss.item() == pytest.approx(2000, rel=1e-6)


def test_the_order_of_candidates_and_queries_does_not_matter() -> None:
    queries, items = world(num_queries=3)
    targets, log_count = (
        items[[0, 1, 2]],
        torch.randn(4, generator=torch.Generator().manual_seed(0)),
    )
    order, query_order = [3, 1, 0, 2], [2, 0, 1]

    def run(candidate_order: list[int], of_queries: list[int]) -> Tensor:
        pool = Pool(
            vectors=items[candidate_order],
            rows=torch.tensor(candidate_order),
            log_expected_count=log_count[candidate_order],
        )
        masked = MASKED[of_queries][:, candidate_order]
        weights = torch.tensor([1.0, 2.0, 3.0])[of_queries]
        loss = SampledSoftmax(temperature=0.2)
        return loss(queries[of_queries], targets[of_queries], pool, masked, weights)

    torch.testing.assert_close(run([0, 1, 2, 3], [0, 1, 2]), run(order, query_order))


def test_a_query_of_weight_zero_has_no_gradient() -> None:
    queries, items = world(num_queries=2)
    pool = Pool(vectors=items, rows=torch.arange(6), log_expected_count=torch.zeros(6))
    loss = SampledSoftmax(temperature=1)(
        queries, items[[0, 1]], pool, none_masked(2, 6), torch.tensor([0.0, 1.0])
    )
    (gradient,) = gradients(loss, queries)
    assert gradient[0].tolist() == [0, 0, 0]
    assert gradient[1].abs().sum() > 0


@pytest.mark.parametrize("loss_type", [SampledSoftmax, FullSoftmax])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive(loss_type: type[FullSoftmax], temperature: float) -> None:
    with pytest.raises(ValueError, match="`temperature` must be a number above 0, got"):
        loss_type(temperature=temperature)


def test_the_full_softmax_refuses_a_sample() -> None:
    queries, items = world(num_queries=1)
    pool = Pool(
        vectors=items, rows=torch.arange(6), log_expected_count=torch.full((6,), math.log(0.5))
    )
    with pytest.raises(ValueError, match=r"WholeCatalogue\), got a sample of 6 candidates"):
        FullSoftmax(temperature=1)(queries, items[[0]], pool, none_masked(1, 6))


def test_without_the_correction_counts_are_not_looked_at() -> None:
    queries, items = world(num_queries=4)
    masked = none_masked(4, 3)
    losses = [
        SampledSoftmax(temperature=0.5, corrected=corrected)(
            queries,
            items[:4],
            Pool(vectors=items[3:], rows=torch.arange(3, 6), log_expected_count=counts),
            masked,
        )
        for corrected, counts in (
            (True, torch.zeros(3)),
            (False, torch.tensor([-3.0, 0.5, 2.0])),
            (True, torch.tensor([-3.0, 0.5, 2.0])),
        )
    ]
    assert losses[0].item() == losses[1].item() != losses[2].item()
