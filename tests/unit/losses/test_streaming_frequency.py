"""The streaming estimate against a loop over targets, known probabilities, and a shift of them."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from twotower.losses.negatives import MixedNegatives
from twotower.losses.streaming_frequency import StreamingFrequency

NUM_ITEMS = 40


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def zipf(num_items: int = NUM_ITEMS) -> Tensor:
    shares = 1 / torch.arange(1, num_items + 1, dtype=torch.float64)
    return shares / shares.sum()


def draws(probability: Tensor, num_batches: int, batch: int, seed: int) -> Tensor:
    return probability.expand(num_batches, -1).multinomial(batch, True, generator=generator(seed))


def estimates_by_loop(stream: list[int], num_items: int, rate: float) -> list[float]:
    """The paper's recursion one target at a time, in plain numbers."""
    last, gap, seen = [0] * num_items, [0.0] * num_items, [0] * num_items
    for time, item in enumerate(stream, start=1):
        seen[item] += 1
        weight = max(rate, 1 / seen[item])
        gap[item] = (1 - weight) * gap[item] + weight * (time - last[item])
        last[item] = time
    estimates = []
    for item in range(num_items):
        weight = max(rate, 1 / (seen[item] + 1))
        with_open = (1 - weight) * gap[item] + weight * (len(stream) - last[item])
        estimates.append(1 / max(gap[item], with_open))
    return estimates


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_batches_of_one_are_the_recursion(rate: float) -> None:
    stream = draws(zipf(), 1, 3000, seed=0)[0]
    frequency = StreamingFrequency(num_buckets=NUM_ITEMS, rate=rate)
    for target in stream:
        frequency.update(target[None])
    expected = estimates_by_loop(stream.tolist(), NUM_ITEMS, rate)
    assert frequency.probability(torch.arange(NUM_ITEMS)).tolist() == pytest.approx(
        expected, rel=1e-12
    )


def test_by_hand() -> None:
    frequency = StreamingFrequency(num_buckets=5, rate=0.25)
    rows = torch.arange(5)
    frequency.update(torch.tensor([2, 0, 2, 2]))  # t = 4: gaps of 4 / 3 for item 2, 4 for item 0
    assert frequency.probability(rows).tolist() == pytest.approx(
        [1 / 4, 1 / 4, 3 / 4, 1 / 4, 1 / 4]
    )
    frequency.update(torch.tensor([0, 1]))  # t = 6: item 0 after 2 more, item 1 after 6
    # Open gaps of 2 for item 2: (3 * 4 / 3 + 2) / 4, but by the rate 3 / 4 * 4 / 3 + 1 / 4 * 2.
    assert frequency.probability(rows).tolist() == pytest.approx(
        [2 / 6, 1 / 6, 1 / 1.5, 1 / 6, 1 / 6]
    )


def test_goes_to_known_probabilities_also_of_items_in_every_batch() -> None:
    probability = zipf()
    frequency = StreamingFrequency(num_buckets=NUM_ITEMS, rate=0.002)
    for targets in draws(probability, 1500, 256, seed=1):
        frequency.update(targets)
    estimate = frequency.probability(torch.arange(NUM_ITEMS))
    assert 256 * probability.max() > 50  # occurrences of the head in every batch
    # Relative error sqrt(0.002 / 2) = 0.03; four times that, over 40 items.
    assert ((estimate / probability).log().abs() < 0.13).all()
    assert (estimate / probability).log().mean().abs() < 0.02  # no bias


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batch_size_does_not_matter_before_the_rate_does(batch: int) -> None:
    """Occurrences over the time of the last one: only that time is known by the batch."""
    stream = draws(zipf(5), 1, 448, seed=2)[0]
    frequency = StreamingFrequency(num_buckets=5, rate=1e-4)
    for targets in stream.split(batch):
        frequency.update(targets)
    counts = torch.bincount(stream, minlength=5) / 448
    ratio = frequency.probability(torch.arange(5)) / counts
    assert (ratio.log().abs() < 0.1).all()


def test_order_within_a_batch_does_not_matter() -> None:
    one, other = (StreamingFrequency(num_buckets=7, num_hashes=2, rate=0.1) for _ in range(2))
    for targets in draws(zipf(), 30, 16, seed=3):
        one.update(targets)
        other.update(targets.flip(0))
    rows = torch.arange(NUM_ITEMS)
    assert torch.equal(one.probability(rows), other.probability(rows))


def test_follows_a_shift() -> None:
    before, after = zipf(), zipf().flip(0)
    after[5] = 0  # vanishes
    after /= after.sum()
    frequency = StreamingFrequency(num_buckets=NUM_ITEMS, rate=0.02)
    for targets in draws(before, 400, 128, seed=4):
        frequency.update(targets)
    for targets in draws(after, 400, 128, seed=5):
        frequency.update(targets)
    estimate = frequency.probability(torch.arange(NUM_ITEMS))
    others = torch.arange(NUM_ITEMS) != 5
    # Relative error sqrt(0.02 / 2) = 0.1; before, the ends were 40 times off.
    assert ((estimate / after)[others].log().abs() < 0.45).all()
    assert estimate[5] < 0.03 * before[5]


def test_items_never_seen_fade_as_time_goes_by() -> None:
    frequency = StreamingFrequency(num_buckets=10)
    assert frequency.probability(torch.tensor([3])).item() == 1  # nothing is known
    frequency.update(torch.zeros(1000, dtype=torch.int64))
    assert frequency.probability(torch.tensor([3, 0])).tolist() == pytest.approx([1e-3, 1])


def test_several_hashes_undo_collisions() -> None:
    probability = zipf(1000)
    errors = []
    for num_hashes in (1, 4):
        frequency = StreamingFrequency(num_buckets=300, num_hashes=num_hashes, rate=0.005)
        for targets in draws(probability, 500, 512, seed=6):
            frequency.update(targets)
        errors.append((frequency.probability(torch.arange(1000)) / probability).log())
    one, several = errors
    assert one.mean() > 1  # a tail item has the frequency of all in its bucket
    assert several.mean() < 0.6 * one.mean()
    # Never the frequency of less than itself; the rarest items occurred 34 times, an error of 0.17.
    assert several.min() > -0.8


def test_as_many_buckets_as_items_need_no_second_hash() -> None:
    frequency = StreamingFrequency(num_buckets=NUM_ITEMS)
    buckets = frequency._buckets(torch.arange(NUM_ITEMS))
    assert sorted(buckets[0].tolist()) == list(range(NUM_ITEMS))


def test_hashes_of_large_rows_are_buckets_and_differ() -> None:
    frequency = StreamingFrequency(num_buckets=97, num_hashes=3)
    rows = torch.arange(2**31 - 5000, 2**31 - 2)
    buckets = frequency._buckets(rows)
    assert buckets.min() >= 0
    assert buckets.max() < 97
    expected = [
        [(row * int(a) + int(b)) % (2**31 - 1) % 97 for row in rows.tolist()]
        for a, b in zip(frequency.factors[:, 0], frequency.terms[:, 0], strict=True)
    ]
    assert buckets.tolist() == expected
    agree = (buckets[1] == buckets[2]).double().mean().item()
    assert agree == pytest.approx(1 / 97, abs=0.01)


def test_goes_on_from_its_state() -> None:
    batches = draws(zipf(), 60, 32, seed=7)
    rows = torch.arange(NUM_ITEMS)
    whole, first, second = (
        StreamingFrequency(num_buckets=16, num_hashes=2, rate=0.05) for _ in range(3)
    )
    for targets in batches:
        whole.update(targets)
    for targets in batches[:25]:
        first.update(targets)
    second.load_state_dict(first.state_dict())
    for targets in batches[25:]:
        second.update(targets)
    assert torch.equal(second.probability(rows), whole.probability(rows))


def test_negatives_are_corrected_by_the_estimate() -> None:
    # 8 targets, 4 of item 1: p = 1 / 2; item 0: 2 of 8. Others: at most 1 in 8.
    frequency = StreamingFrequency(num_buckets=6, rate=0.1)
    negatives = MixedNegatives(in_batch=True, num_uniform=30, frequency=frequency)
    targets = torch.tensor([1, 1, 0, 2, 1, 0, 3, 1])
    wrong = torch.full((6,), 1e-9, dtype=torch.float64)
    drawn = negatives.draw(targets, wrong, generator(0))
    probability = {0: 2 / 8, 1: 4 / 8, 2: 1 / 8, 3: 1 / 8, 4: 1 / 8, 5: 1 / 8}
    for row, log_count in zip(drawn.rows.tolist(), drawn.log_expected_count.tolist(), strict=True):
        assert log_count == pytest.approx(math.log(7 * probability[row] + 30 / 6), abs=1e-6)


def test_counts_over_many_batches_are_those_expected() -> None:
    """What is expected of the pool, by the estimate, is what was there on average."""
    probability = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)
    frequency = StreamingFrequency(num_buckets=4, rate=0.002)
    negatives = MixedNegatives(in_batch=True, num_uniform=3, frequency=frequency)
    counts, num_batches = torch.zeros(4), 4000
    for targets in draws(probability, num_batches, 5, seed=8):
        drawn = negatives.draw(targets, probability, None)
        counts += torch.bincount(drawn.rows[1:], minlength=4)  # the own target stands at 0
    expected = 4 * frequency.probability(torch.arange(4)) + 3 / 4
    assert (counts / num_batches).tolist() == pytest.approx(expected.tolist(), rel=0.12)


@pytest.mark.parametrize(
    "given",
    [{"num_buckets": 0}, {"num_buckets": 5, "num_hashes": 0}, {"num_buckets": 5, "rate": 1}],
)
def test_numbers_out_of_range(given: dict[str, int]) -> None:
    name, value = list(given.items())[-1]
    with pytest.raises(ValueError, match=re.escape(f"{name}={value}")):
        StreamingFrequency(**given)


@pytest.mark.parametrize("num_hashes", [1, 2])
def test_the_estimate_goes_on_under_other_rows(num_hashes):
    """As if the items had always had the rows of the second window."""
    generator = torch.Generator().manual_seed(0)
    first = [torch.randint(0, 20, (16,), generator=generator) for _ in range(30)]
    second = [torch.randint(0, 20, (16,), generator=generator) for _ in range(5)]
    new_row = torch.randperm(20, generator=generator) + 3  # rows 0 to 2 are new items
    before = StreamingFrequency(num_buckets=1000, num_hashes=num_hashes)
    whole = StreamingFrequency(num_buckets=2000, num_hashes=num_hashes)
    for batch in first:
        before.update(batch)
        whole.update(new_row[batch])
    later = StreamingFrequency(num_buckets=2000, num_hashes=num_hashes)
    later.go_on(before.state_dict(), torch.arange(20), new_row)
    for batch in second:
        later.update(new_row[batch])
        whole.update(new_row[batch])
    rows = torch.arange(23)
    torch.testing.assert_close(later.probability(rows), whole.probability(rows))
    assert (later.probability(rows[:3]) <= 1 / later.clock).all()


def test_of_items_in_one_bucket_the_frequent_one_goes_on():
    before = StreamingFrequency(num_buckets=10)
    before.update(torch.tensor([0, 1, 1, 1, 2, 2]))
    later = StreamingFrequency(num_buckets=1)
    later.go_on(before.state_dict(), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    assert later.probability(torch.tensor([0])).item() == pytest.approx(0.5)


def test_another_number_of_hashes_is_refused():
    before = StreamingFrequency(num_buckets=10, num_hashes=2)
    with pytest.raises(ValueError, match=r"1 `num_hashes`, .* has 2"):
        StreamingFrequency(num_buckets=10).go_on(
            before.state_dict(), torch.arange(2), torch.arange(2)
        )
