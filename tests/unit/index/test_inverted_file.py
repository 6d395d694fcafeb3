"""Inverted files: settings by hand, all cells probed against numpy, sizes against the file."""

import numpy as np
import pytest

from twotower.index.faiss_library import faiss
from twotower.index.inverted_file import (
    IVFPQ,
    IVFFlat,
    default_code_bytes,
    default_num_cells,
)


def best_rows(queries, items, k):
    return np.argsort(-(queries.astype(np.float64) @ items.T), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize(
    ("num_items", "num_cells"),
    [
        (1, 1),
        (38, 1),
        (100, 2),  # 40 by the root, but 100 // 39 = 2
        (3_706, 95),  # 244 by the root, but 3,706 // 39 = 95
        (40_000, 800),  # 4 x 200
        (1_000_000, 4_000),
    ],
)
def test_default_cells(num_items, num_cells):
    assert default_num_cells(num_items) == num_cells


@pytest.mark.parametrize(
    ("dim", "num_bytes"), [(64, 32), (48, 24), (96, 48), (128, 64), (10, 2), (7, 1), (1, 1)]
)
def test_default_code_bytes(dim, num_bytes):
    assert default_code_bytes(dim) == num_bytes


@pytest.mark.parametrize(
    ("num_cells", "num_probes", "settings"),
    [
        (0, 0, "76 cells, 8 probes"),  # 3,000 // 39; a sixteenth is 5, at least 8
        (200, 0, "200 cells, 13 probes"),
        (5, 0, "5 cells, 5 probes"),
        (20, 50, "20 cells, 20 probes"),
        (20, 3, "20 cells, 3 probes"),
    ],
)
def test_settings(clustered, num_cells, num_probes, settings):
    spec = IVFFlat(num_cells=num_cells, num_probes=num_probes, device="cpu")
    assert spec.build(clustered[0]).description.startswith(f"ivf_flat ({settings}) on cpu")


def test_all_cells_are_all_items(clustered):
    items, queries = clustered
    result = IVFFlat(num_cells=30, num_probes=30, device="cpu").build(items).search(queries, 10)
    np.testing.assert_array_equal(result.rows, best_rows(queries, items, 10))


def test_more_probes_find_more(clustered):
    items, queries = clustered
    truth = best_rows(queries, items, 20)
    found = [
        np.isin(
            IVFFlat(num_cells=60, num_probes=n, device="cpu").build(items).search(q, 20).rows, t
        ).sum()
        for n in (1, 4, 60)
        for q, t in [(queries[:1], truth[:1])]
    ]
    assert found[0] <= found[1] <= found[2] == 20


def test_few_cells_pad(clustered):
    items, queries = clustered
    result = IVFFlat(num_cells=70, num_probes=1, device="cpu").build(items).search(queries, 500)
    assert result.rows.shape == (100, 500)
    missing = result.rows == -1
    assert missing.any(axis=1).all()
    assert np.isneginf(result.scores[missing]).all()
    assert np.isfinite(result.scores[~missing]).all()
    assert (np.diff(missing.astype(int), axis=1) >= 0).all()  # padding stands at the end


def test_refined_scores_are_exact(clustered):
    items, queries = clustered
    index = IVFPQ(num_cells=20, num_probes=20, num_bytes=4, refine=10, device="cpu").build(items)
    result = index.search(queries, 10)
    expected = np.take_along_axis(queries @ items.T, result.rows, axis=1)
    np.testing.assert_allclose(result.scores, expected, rtol=1e-5)
    assert index.settings == "20 cells, 20 probes, 4 bytes, refined from 10 k"


def test_refining_finds_more_than_codes_alone(clustered):
    items, queries = clustered
    truth = best_rows(queries, items, 10)
    shares = []
    for refine in (0, 10):
        spec = IVFPQ(num_cells=20, num_probes=20, num_bytes=4, refine=refine, device="cpu")
        rows = spec.build(items).search(queries, 10).rows
        shares.append(
            np.mean([len(set(a) & set(b)) for a, b in zip(rows, truth, strict=True)]) / 10
        )
    assert shares[0] < 0.8
    assert shares[1] > 0.95


@pytest.mark.parametrize(
    "spec",
    [
        IVFFlat(device="cpu"),
        IVFPQ(refine=0, device="cpu"),
        IVFPQ(num_bytes=4, refine=4, device="cpu"),
    ],
)
def test_sizes(clustered, spec):
    items, _ = clustered
    size = len(faiss.serialize_index(spec.build(items).faiss_index))
    assert spec.memory_bytes(*items.shape) == pytest.approx(size, rel=0.05)


def test_same_seed_same_index(clustered):
    items, queries = clustered
    first, second = (
        IVFPQ(num_bytes=2, device="cpu").build(items).search(queries, 10) for _ in range(2)
    )
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.scores, second.scores)


def test_more_cells_than_items(clustered):
    with pytest.raises(ValueError, match="at most the number of items 50, got 51"):
        IVFFlat(num_cells=51, device="cpu").build(clustered[0][:50])


def test_too_few_items_for_codes(clustered):
    with pytest.raises(ValueError, match="needs at least 256 items to train its codes, got 255"):
        IVFPQ(device="cpu").build(clustered[0][:255])


def test_code_length_must_divide(clustered):
    message = "one of 1, 2, 4, 8, 16 for vectors of width 16 on a CPU, got 5"
    with pytest.raises(ValueError, match=message):
        IVFPQ(num_bytes=5, device="cpu").build(clustered[0])


def test_all_bad_settings_at_once():
    with pytest.raises(ValueError, match=r"(?s)`num_cells` must be at least 0, got -1.*`refine`"):
        IVFPQ(num_cells=-1, refine=-2)
    with pytest.raises(ValueError, match="ivf_flat: `num_probes` must be at least 0, got -3"):
        IVFFlat(num_probes=-3)
