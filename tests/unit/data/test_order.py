"""Orders and ranks of a log that comes in blocks, against sorting all of it."""

import numpy as np
import pytest

from twotower.data.order import nth_smallest, stable_order


def cut(values, rng, num_blocks=4):
    places = np.sort(rng.integers(0, len(values) + 1, num_blocks))
    return np.split(values, places)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.integers(0, 2**62, 500),
        lambda rng: rng.integers(-(2**40), 2**40, 500),
        lambda rng: rng.integers(0, 3, 500),  # ties
        lambda rng: np.full(500, 7),
        lambda rng: 10**15 + rng.integers(0, 90, 500) ** 9,  # most values in few bins
    ],
)
def test_ranks_against_a_sorted_array(draw):
    rng = np.random.default_rng(0)
    values = draw(rng).astype(np.int64)
    blocks = cut(values, rng)
    ranks = [0, 1, 250, 251, 498, 499]
    assert nth_smallest(lambda: iter(blocks), ranks) == np.sort(values)[ranks].tolist()


@pytest.mark.parametrize("num_keys", [1, 5, 2**16, 2**16 + 1, 2**33])
@pytest.mark.parametrize("with_times", [True, False])
def test_the_order_against_lexsort(num_keys, with_times):
    rng = np.random.default_rng(1)
    key = rng.integers(0, num_keys, 3000) // 7 * 7
    times = rng.integers(0, 40, 3000) if with_times else None
    keys = [np.arange(3000), *([times] if with_times else []), key]
    assert stable_order(key, times).tolist() == np.lexsort(keys).tolist()


def test_the_order_of_nothing():
    assert stable_order(np.empty(0, np.int64), None).tolist() == []
