import numpy as np
import pytest

from twotower.features.transforms import Time
from twotower.monitoring.bins import (
    HOURS,
    NUM_SHARED,
    NUM_SINGLE,
    Bins,
    coarse,
    direction,
    number_edges,
    vocabulary_edges,
)


def bins(kind, edges, **more):
    return Bins(name="user.x", feature="x", side="user", kind=kind, edges=tuple(edges), **more)


def test_few_numbers_have_a_bin_each():
    assert number_edges(np.array([3.0, 1.0, np.nan, 2.0, 1.0])) == (2.0, 3.0)
    assert number_edges(np.array([np.nan])) == ()
    assert number_edges(np.array([7.0, 7.0])) == ()


def test_many_numbers_share_bins_of_equal_weight():
    numbers = np.random.default_rng(0).permutation(64_000).astype(np.float64)
    edges = number_edges(numbers)
    counts = np.bincount(np.searchsorted(edges, numbers, side="right"))
    assert len(counts) == 64
    assert set(counts.tolist()) == {1000}


def test_a_number_that_is_frequent_is_alone_in_its_bin():
    rng = np.random.default_rng(1)
    numbers = np.concatenate([np.zeros(5000), rng.normal(size=5000)])
    edges = number_edges(numbers)
    codes = np.searchsorted(edges, numbers, side="right")
    of_zero = np.unique(codes[numbers == 0])
    assert len(of_zero) == 1
    assert np.all(numbers[codes == of_zero[0]] == 0)


def test_numbers_to_bins():
    one = bins("numeric", [0.0, 1.5])
    encoded = np.array([[-1, 0], [0, 0], [1.5, 0], [1.4, 0], [0, 1], [9, 0]], np.float32)
    assert one.codes(encoded).tolist() == [0, 1, 2, 1, -1, 2]
    label = Bins(name="label", feature="", side="outcome", kind="numeric", edges=(0.5,))
    assert label.codes(np.array([0, 1, np.nan], np.float32)).tolist() == [0, 1, -1]


def test_few_values_have_a_bin_each_and_unknown_ones_none():
    edges = vocabulary_edges(np.array([99, 5, 4, 3]))
    assert edges == (2.0, 3.0)
    one = bins("categorical", edges, values=3)
    assert one.codes(np.array([0, 1, 2, 3])).tolist() == [-1, 0, 1, 2]
    tags = bins("tags", edges, values=3)
    assert tags.codes(np.array([[1, 3, 0], [0, 0, 0]])).tolist() == [[0, 2, -1], [-1, -1, -1]]
    assert bins("id", vocabulary_edges(np.array([0, 7])), values=1).codes(
        np.array([1, 0])
    ).tolist() == [0, -1]


def test_many_values_share_bins_of_about_equal_weight():
    counts = np.concatenate([[0], np.sort(np.random.default_rng(2).zipf(1.5, 20_000))[::-1]])
    counts = np.minimum(counts, 10**6)
    edges = vocabulary_edges(counts)
    assert len(edges) + 1 <= NUM_SINGLE + NUM_SHARED
    one = bins("id", edges, values=20_000)
    codes = one.codes(np.arange(1, 20_001))
    assert codes[:NUM_SINGLE].tolist() == list(range(NUM_SINGLE))
    assert np.all(np.diff(codes) >= 0)
    weights = np.bincount(codes, weights=counts[1:])[NUM_SINGLE:]
    assert weights.max() < 2 * weights.sum() / NUM_SHARED


def test_hours_of_the_day():
    hours = np.array([0, 1, 5, 12, 13, 18, 23]) * 3600.0
    encoded = Time().waves(np.append(hours + 20_000 * 86_400, np.nan))
    one = bins("time", range(1, HOURS))
    assert one.codes(encoded).tolist() == [0, 1, 5, 12, 13, 18, 23, -1]
    seconds = np.arange(0, 86_400, 7.0) + 1_700_006_400
    codes = one.codes(Time().waves(seconds))
    off = codes != (seconds % 86_400) // 3600
    assert off.sum() <= 1 * HOURS  # within a second of the full hour


def test_vectors_along_fixed_directions():
    along = direction(3, 1)
    assert np.linalg.norm(along) == pytest.approx(1)
    assert not np.allclose(along, direction(3, 0))
    one = bins("vector", [0.0], direction=1)
    vectors = np.stack([along, -along, np.zeros(3)]).astype(np.float32)
    assert one.codes(vectors).tolist() == [1, 0, -1]


def test_fewer_bins_of_about_equal_weight():
    assert coarse(np.array([1.0, 1, 1, 1]), 2).tolist() == [0, 0, 1, 1]
    assert coarse(np.array([97.0, 1, 1, 1]), 2).tolist() == [0, 1, 1, 1]
    assert coarse(np.array([1.0, 2]), 10).tolist() == [0, 1]
    places = coarse(np.ones(64), 10)
    assert sorted(set(np.bincount(places).tolist())) == [6, 7]
    assert np.all(np.diff(places) >= 0)


def test_bins_survive_json():
    one = bins("numeric", [0.1, 0.25])
    assert Bins.from_dict(one.to_dict()) == one
