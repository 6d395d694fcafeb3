"""Cells of an inverted file, against centres and a loop."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.index.allowed import AllowedRows
from twotower.index.cells import Cells
from twotower.index.faiss_index import FaissIndex
from twotower.index.flat import Flat
from twotower.index.graph import HNSW
from twotower.index.inverted_file import IVFPQ, IVFFlat

NUM_CELLS, NUM_PROBES = 40, 6


@pytest.fixture(scope="module", params=["ivf_flat", "ivf_flat in shards", "ivf_pq", "ivf_pq_codes"])
def index(request: pytest.FixtureRequest, clustered) -> FaissIndex:
    sizes = {"num_cells": NUM_CELLS, "num_probes": NUM_PROBES, "device": "cpu"}
    builders = {
        "ivf_flat": IVFFlat(**sizes),
        "ivf_flat in shards": IVFFlat(**sizes, num_shards=3),
        "ivf_pq": IVFPQ(**sizes),
        "ivf_pq_codes": IVFPQ(**sizes, refine=0),
    }
    return builders[request.param].build(clustered[0])


@pytest.fixture(scope="module")
def cells(index: FaissIndex) -> Cells:
    assert index.cells is index.cells
    return index.cells


def centres_of(index: FaissIndex) -> np.ndarray:
    inner = index.cells._shards[0]
    return np.stack([inner.quantizer.reconstruct(cell) for cell in range(inner.nlist)])


def test_every_item_lies_in_the_cell_of_its_nearest_centre(index, cells, clustered) -> None:
    nearest = np.argmax(clustered[0] @ centres_of(index).T, axis=1)
    assert (cells.of_row == nearest).mean() > 0.999  # ties of float32
    assert (cells.num_cells, cells.num_probes) == (NUM_CELLS, NUM_PROBES)
    assert cells.expected_looks == 3_000 * 6 / 40


def test_cells_nearest_to_a_query(index, cells, clustered) -> None:
    queries = clustered[1][:7]
    expected = np.argsort(-(queries @ centres_of(index).T), axis=1)
    found, scores = cells.nearest(queries, NUM_CELLS)
    assert found.tolist() == expected.tolist()
    products = queries @ centres_of(index).T
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), atol=1e-5)
    assert cells.nearest(queries, 3)[0].tolist() == expected[:, :3].tolist()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.01])
@pytest.mark.parametrize("least", [1, 30, 450])
def test_as_many_cells_as_hold_enough(index, cells, clustered, share: float, least: int) -> None:
    queries = clustered[1][:20]
    mask = np.random.default_rng(5).random(3_000) < share
    order = np.argsort(-(queries @ centres_of(index).T), axis=1)
    expected = []
    for cells_of_query in order:
        looked_at = num_cells = 0
        while num_cells < NUM_CELLS and (looked_at < least or num_cells < NUM_PROBES):
            looked_at += int(mask[cells.of_row == cells_of_query[num_cells]].sum())
            num_cells += 1
        expected.append(num_cells)
    assert cells.needed(queries, AllowedRows(mask), least).tolist() == expected


def test_where_an_item_stands(index, cells, clustered) -> None:
    query = clustered[1][:1]
    centres = query @ centres_of(index).T
    for row in (0, 17, 2_999):
        cell = cells.of_row[row]
        place = int((centres > centres[0, cell]).sum()) + 1
        probe = cells.probe(query, row, NUM_PROBES)
        assert (probe.cell, probe.place, probe.num_probes) == (cell, place, NUM_PROBES)
        assert probe.looked_into == (place <= NUM_PROBES)


def test_other_kinds_have_none(clustered) -> None:
    for builder in (Flat(device="cpu"), HNSW(device="cpu", ef_construction=10)):
        assert builder.build(clustered[0][:300]).cells is None
