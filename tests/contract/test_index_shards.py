"""An index in shards against the same index undivided: rows, scores, files.

Vectors of small whole numbers have inner products that float32 holds exactly, in whatever order
they are summed: there scores are equal to the last bit, and ties are many. k-means on a GPU need
not end the same twice, so that there an index is held against its own file, read undivided.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from twotower.index.faiss_index import load_index
from twotower.index.faiss_library import faiss
from twotower.index.flat import Flat
from twotower.index.graph import HNSW
from twotower.index.inverted_file import IVFPQ, IVFFlat
from twotower.index.shards import shards_of

NUM_ITEMS, DIM, K = 1_201, 16, 30  # a prime: no number of shards divides it

SPECS = {
    "flat": Flat(),
    "ivf_flat": IVFFlat(num_cells=20, num_probes=5),
    "ivf_pq": IVFPQ(num_cells=20, num_probes=5, num_bytes=4, refine=4),
    "ivf_pq_codes": IVFPQ(num_cells=20, num_probes=5, num_bytes=4, refine=0),
}
SHARDS = (2, 3, 5)


@pytest.fixture(scope="module")
def clouds():
    """Items and queries, unit vectors around 40 centres."""
    rng = np.random.default_rng(3)
    points = rng.standard_normal((40, DIM))[rng.integers(0, 40, NUM_ITEMS + 100)]
    points = points + 0.7 * rng.standard_normal(points.shape)
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return points[:NUM_ITEMS], points[NUM_ITEMS:]


@pytest.fixture(scope="module")
def whole_numbers():
    """Items and queries of the numbers -2 to 2."""
    drawn = np.random.default_rng(4).integers(-2, 3, (NUM_ITEMS + 100, DIM)).astype(np.float32)
    return drawn[:NUM_ITEMS], drawn[NUM_ITEMS:]


@pytest.fixture(
    scope="module",
    params=[(name, "cpu") for name in SPECS]
    + [pytest.param((name, "gpu"), marks=pytest.mark.gpu) for name in SPECS],
    ids=lambda case: "-".join(case),
)
def spec(request):
    """A recipe, undivided."""
    name, device = request.param
    if device == "gpu" and faiss.get_num_gpus() < 2:
        pytest.skip("needs 2 NVIDIA GPUs and a GPU build of FAISS")
    return replace(SPECS[name], device=device)


@pytest.fixture(scope="module")
def undivided(spec, clouds):
    return spec.build(clouds[0])


def numbers_of_shards(spec):
    """Those that there are devices for."""
    return [n for n in SHARDS if spec.device == "cpu" or n <= faiss.get_num_gpus()]


def check_equal(found, expected):
    """Equal to the last bit; which rows have the last place's score is FAISS' choice."""
    np.testing.assert_array_equal(found.scores, expected.scores)
    chosen = expected.scores == expected.scores[:, -1:]
    np.testing.assert_array_equal(found.rows[~chosen], expected.rows[~chosen])


def check_same(found, expected):
    """Equal but for the last bits of a score, and rows that change places for these."""
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    moved = found.rows != expected.rows
    neighbours = np.pad(np.diff(expected.scores, axis=1), ((0, 0), (1, 1)), constant_values=-1)
    tied = (np.minimum(-neighbours[:, :-1], -neighbours[:, 1:]) < 1e-6) | (
        expected.scores - expected.scores[:, -1:] < 1e-6
    )
    assert tied[moved].all()
    assert moved.mean() < 0.01


def test_shards_find_what_the_undivided_index_finds(spec, undivided, clouds, tmp_path):
    items, queries = clouds
    for num_shards in numbers_of_shards(spec):
        index = replace(spec, num_shards=num_shards).build(items)
        assert (index.num_shards, index.num_items, index.dim) == (num_shards, NUM_ITEMS, DIM)
        assert index.settings == undivided.settings
        assert f" on {spec.device} in {num_shards} shards: 1,201 items" in index.description
        found = index.search(queries, K)
        if spec.device == "cpu":
            check_same(found, undivided.search(queries, K))
        index.save(tmp_path)
        alone = load_index(tmp_path, device=spec.device)
        assert alone.num_shards == 1
        check_same(found, alone.search(queries, K))


def test_shards_are_as_large_as_each_other_and_trained_alike(spec, clouds):
    for num_shards in numbers_of_shards(spec):
        index = replace(spec, num_shards=num_shards).build(clouds[0])
        shards = shards_of(index.faiss_index)
        sizes = [shard.ntotal for shard in shards]
        assert sum(sizes) == NUM_ITEMS
        assert max(sizes) - min(sizes) == 1
        assert len({getattr(shard, "nprobe", 0) for shard in shards}) == 1


def test_equal_to_the_last_bit_on_whole_numbers(whole_numbers):
    items, queries = whole_numbers
    for spec in (Flat(device="cpu"), IVFFlat(num_cells=8, num_probes=3, device="cpu")):
        for k in (1, K, 200):
            expected = spec.build(items).search(queries, k)
            for num_shards in SHARDS:
                found = replace(spec, num_shards=num_shards).build(items).search(queries, k)
                check_equal(found, expected)


def test_ties_across_shards_are_ordered_by_row():
    """Rows 1, 2, 4, 7, 8 score 1, row 5 scores 2 and the others 0; four shards of two and a row."""
    items = np.zeros((9, 2), np.float32)
    items[[1, 2, 4, 7, 8], 0] = 1
    items[5, 0] = 2
    query = np.array([[1, 0]], np.float32)
    for num_shards in (1, 2, 3, 4, 5, 9):
        index = Flat(device="cpu", num_shards=num_shards).build(items)
        result = index.search(query, 6)
        assert result.rows.tolist() == [[5, 1, 2, 4, 7, 8]]
        assert result.scores.tolist() == [[2, 1, 1, 1, 1, 1]]
        every = index.search(query, 9)
        assert every.rows.tolist() == [[5, 1, 2, 4, 7, 8, 0, 3, 6]]


@pytest.mark.parametrize("num_items", [1, 2, 3, 4, 6, 7])
def test_fewer_items_than_shards_or_a_few_more(num_items):
    rng = np.random.default_rng(5)
    items = rng.integers(-4, 5, (num_items, 3)).astype(np.float32)
    queries = rng.integers(-4, 5, (20, 3)).astype(np.float32)
    scores = queries @ items.T
    order = np.argsort(-scores, axis=1, kind="stable")
    for spec in (Flat(device="cpu"), IVFFlat(num_cells=1, device="cpu")):
        index = replace(spec, num_shards=5).build(items)
        assert index.num_shards == min(5, num_items)
        result = index.search(queries, 10)
        np.testing.assert_array_equal(result.rows[:, :num_items], order)
        found = np.take_along_axis(scores, order, axis=1)
        np.testing.assert_array_equal(result.scores[:, :num_items], found)
        assert (result.rows[:, num_items:] == -1).all()
        assert np.isneginf(result.scores[:, num_items:]).all()


@pytest.mark.parametrize("name", SPECS)
def test_more_wanted_than_there_are(name, clouds):
    items, queries = clouds
    spec = replace(SPECS[name], device="cpu")
    expected = spec.build(items).search(queries[:5], NUM_ITEMS + 7)
    index = replace(spec, num_shards=2).build(items)
    found = index.search(queries[:5], NUM_ITEMS + 7)
    assert found.rows.shape == (5, NUM_ITEMS + 7)
    missing = found.rows == -1
    np.testing.assert_array_equal(missing, expected.rows == -1)
    assert missing[:, -7:].all()
    for row in range(5):
        assert set(found.rows[row]) == set(expected.rows[row])


@pytest.mark.parametrize("name", SPECS)
def test_the_file_is_that_of_the_undivided_index(name, clouds, tmp_path):
    spec = replace(SPECS[name], device="cpu")
    spec.build(clouds[0]).save(tmp_path / "undivided")
    for num_shards in SHARDS:
        built, loaded = tmp_path / f"built_{num_shards}", tmp_path / f"loaded_{num_shards}"
        replace(spec, num_shards=num_shards).build(clouds[0]).save(built)
        load_index(tmp_path / "undivided", num_shards=num_shards).save(loaded)
        for file in ("index.faiss", "index.json"):
            expected = (tmp_path / "undivided" / file).read_bytes()
            assert (built / file).read_bytes() == expected
            assert (loaded / file).read_bytes() == expected


def test_saved_in_some_shards_and_loaded_in_others(spec, clouds, tmp_path):
    items, queries = clouds
    index = replace(spec, num_shards=2).build(items)
    expected = index.search(queries, K)
    index.save(tmp_path)
    for num_shards in numbers_of_shards(spec):
        loaded = load_index(tmp_path, device=spec.device, num_shards=num_shards)
        assert (loaded.num_shards, loaded.settings) == (num_shards, index.settings)
        check_same(loaded.search(queries, K), expected)
    for num_shards in (1, *SHARDS):  # what GPUs built is searched by a CPU
        on_cpu = load_index(tmp_path, num_shards=num_shards)
        assert (on_cpu.num_shards, on_cpu.device) == (num_shards, "cpu")
        assert (on_cpu.search(queries, K).rows == expected.rows).mean() > 0.99


def test_loaded_shards_do_not_read_the_file_again(spec, undivided, clouds, tmp_path):
    """It may be replaced while they are searched."""
    queries = clouds[1]
    undivided.save(tmp_path)
    loaded = load_index(tmp_path, device=spec.device, num_shards=2)
    expected = undivided.search(queries, K)
    file = tmp_path / "index.faiss"
    with file.open("r+b") as opened:
        opened.write(b"\0" * file.stat().st_size)
    check_same(loaded.search(queries, K), expected)
    loaded.save(tmp_path)
    again = load_index(tmp_path, device=spec.device)
    check_same(again.search(queries, K), expected)


def test_searched_by_several_threads_at_once(spec, clouds):
    items, queries = clouds
    index = replace(spec, num_shards=2).build(items)
    expected = index.search(queries, K)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda q: index.search(queries[q : q + 1], K), range(len(queries))))
    rows = np.concatenate([part.rows for part in parts])
    assert (rows == expected.rows).mean() > 0.99


def test_zero_takes_one_for_every_thread(clouds, monkeypatch, tmp_path):
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: 3)
    index = Flat(num_shards=0, device="cpu").build(clouds[0])
    assert index.num_shards == 3
    index.save(tmp_path)
    assert load_index(tmp_path, num_shards=0).num_shards == 3


def test_negative_numbers_are_refused(clouds, tmp_path):
    for builder in (Flat, IVFFlat, IVFPQ):
        with pytest.raises(ValueError, match=rf"{builder.kind}: `num_shards` must be at least 0"):
            builder(num_shards=-1)
    Flat(device="cpu").build(clouds[0]).save(tmp_path)
    with pytest.raises(ValueError, match="load_index: `num_shards` must be at least 0, got -2"):
        load_index(tmp_path, num_shards=-2)


@pytest.mark.parametrize("num_shards", [0, 2])
def test_a_graph_cannot_be_divided(clouds, tmp_path, num_shards):
    HNSW().build(clouds[0][:100]).save(tmp_path)
    message = f"`hnsw` cannot be divided, got num_shards={num_shards}; kinds that can: flat, ivf_f"
    with pytest.raises(ValueError, match=message):
        load_index(tmp_path, num_shards=num_shards)
    assert load_index(tmp_path).num_shards == 1


def test_a_damaged_file_is_refused(clouds, tmp_path):
    IVFFlat(device="cpu").build(clouds[0]).save(tmp_path)
    path = tmp_path / "index.faiss"
    path.write_bytes(path.read_bytes()[:-1_000])
    with pytest.raises(ValueError, match=r"index\.faiss is not a readable FAISS index"):
        load_index(tmp_path, num_shards=2)
