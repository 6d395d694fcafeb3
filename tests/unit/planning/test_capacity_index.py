"""Indexes of a plan against FAISS: bytes of the file, items that a search looks at, recall."""

from __future__ import annotations

import numpy as np
import pytest

from twotower.index.base import index_recall
from twotower.index.faiss_library import faiss
from twotower.index.flat import Flat
from twotower.index.graph import HNSW
from twotower.index.inverted_file import IVFPQ, IVFFlat
from twotower.planning.capacity_devices import GPUS
from twotower.planning.capacity_index import (
    KINDS,
    IndexOption,
    index_options,
    pruning_bytes,
    scanned_bytes,
    visited_items,
)
from twotower.planning.capacity_recall import (
    beam_for,
    recall_of_beam,
    recall_of_share,
    share_for,
)

BUILDERS = {"flat": Flat, "ivf_flat": IVFFlat, "ivf_pq": IVFPQ, "hnsw": HNSW}
H100 = GPUS["h100"]
K, WANTED = 100, 0.95


def cloud(num_items: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit vectors without clusters; the first axes matter most."""
    draws = np.random.default_rng(seed).standard_normal((num_items, dim))
    draws *= np.arange(1, dim + 1) ** -0.5
    return (draws / np.linalg.norm(draws, axis=1, keepdims=True)).astype(np.float32)


def options(num_items, dim, *, k=K, recall=WANTED, gpu=None, kinds=KINDS):
    return index_options(num_items, dim, k=k, recall=recall, gpu=gpu, kinds=kinds)


def builder_of(option: IndexOption):
    """What `export` would build with the overrides of an option."""
    values = dict(text.removeprefix("index.").split("=") for text in option.overrides)
    device = values.pop("device", "cpu")
    numbers = {name: int(value) for name, value in values.items()}
    return BUILDERS[option.kind](**numbers, device=device)


@pytest.mark.parametrize(("num_items", "dim"), [(500, 16), (3_000, 32)])
def test_bytes_are_those_of_the_file(num_items, dim):
    """All but headers, and the random levels of a graph."""
    items, planned = cloud(num_items, dim), options(num_items, dim)
    assert [option.kind for option in planned] == ["flat", "ivf_flat", *["ivf_pq"] * 2, "hnsw"]
    for option in planned:
        written = len(faiss.serialize_index(builder_of(option).build(items).faiss_index))
        assert written == pytest.approx(option.ram, rel=0.01, abs=2_000), option


@pytest.mark.parametrize(("num_items", "dim"), [(3_000, 16), (3_000, 25)])
def test_codes_lose_what_is_planned_at_most(num_items, dim):
    """16 numbers are 8 bytes; 25 are 1, since a code must divide them: no use, and not offered."""
    items, queries = cloud(num_items, dim), cloud(100, dim, seed=1)
    exact = Flat(device="cpu").build(items).search(queries, 20).rows
    planned = options(num_items, dim, k=20, kinds=("ivf_flat", "ivf_pq"))
    cells, *codes = (
        found_by(builder_of(option).build(items), queries, exact) for option in planned
    )
    assert len(codes) == (2 if dim == 16 else 0)
    for option, found in zip(planned[1:], codes, strict=True):
        left = option.recall / planned[0].recall
        assert left == pytest.approx(0.84 if option.note == "not re-ranked" else 1.0)
        assert left * cells - 0.01 < found <= cells


def test_short_codes_lose_more():
    refined, alone = options(100_000, 256, kinds=("ivf_pq",))  # 64 bytes, the most that divide 256
    assert refined.recall / alone.recall == pytest.approx(0.99 / 0.60)


def found_by(index, queries, exact) -> float:
    return float(np.mean(index_recall(index.search(queries, exact.shape[1]).rows, exact)))


@pytest.mark.parametrize("num_items", [20_000, 60_000])
def test_inverted_file(num_items):
    """It finds what is planned, and looks at as many items."""
    items, queries = cloud(num_items, 32), cloud(200, 32, seed=1)
    [option] = options(num_items, 32, k=50, kinds=("ivf_flat",))
    exact = Flat(device="cpu").build(items).search(queries, 50).rows
    index = builder_of(option).build(items)
    cells = index.faiss_index
    faiss.cvar.indexIVF_stats.reset()
    found = found_by(index, queries, exact)
    looked_at = faiss.cvar.indexIVF_stats.ndis / len(queries)
    assert option.recall == pytest.approx(WANTED, abs=0.005)
    assert option.recall - 0.02 < found < option.recall + 0.04
    planned = scanned_bytes(num_items, 1, cells.nlist, cells.nprobe)
    assert looked_at == pytest.approx(planned, rel=0.1)


@pytest.mark.parametrize("num_items", [4_000, 12_000])
def test_graph(num_items):
    """It finds what is planned, and looks at no more items."""
    items, queries = cloud(num_items, 64), cloud(200, 64, seed=1)
    exact = Flat(device="cpu").build(items).search(queries, 20).rows
    [option] = options(num_items, 64, k=20, kinds=("hnsw",))
    index = builder_of(option).build(items)
    faiss.cvar.hnsw_stats.reset()
    found = found_by(index, queries, exact)
    looked_at = faiss.cvar.hnsw_stats.ndis / len(queries)
    assert found > option.recall - 0.02
    beam = int(option.overrides[0].split("=")[1])
    planned = visited_items(HNSW().num_links, beam)
    assert planned / 4 < looked_at < min(planned, num_items)


def test_a_gpu_adds_its_options_and_cagra():
    both = options(1_000_000, 64, gpu=H100)
    assert [(o.kind, o.place) for o in both] == [
        *[("flat", "cpu"), ("flat", "gpu"), ("ivf_flat", "cpu"), ("ivf_flat", "gpu")],
        *[("ivf_pq", "cpu")] * 2,
        *[("ivf_pq", "gpu")] * 2,
        *[("hnsw", "cpu"), ("cagra", "gpu")],
    ]
    assert {o.place for o in options(1_000_000, 64)} == {"cpu"}
    assert [o.kind for o in options(200, 64)] == ["flat", "ivf_flat", "hnsw"]  # too few for codes
    assert "cagra" not in {o.kind for o in options(128, 64, gpu=H100)}  # and for 128 links
    assert {o.kind for o in options(1_000, 64, kinds=("flat", "hnsw"))} == {"flat", "hnsw"}
    # FAISS selects at most 2,048 items on a GPU.
    assert {o.place for o in options(10_000, 64, gpu=H100, k=3_000)} == {"cpu"}


def test_a_gpu_probes_at_most_2048_cells():
    [option] = [
        o for o in options(1_000_000_000, 64, gpu=H100, kinds=("ivf_flat",)) if o.place == "gpu"
    ]
    num_cells, num_probes = (int(text.split("=")[1]) for text in option.overrides[:2])
    assert num_probes <= 2048
    assert num_probes / num_cells == pytest.approx(share_for(WANTED), rel=0.01)


def test_refined_codes_lie_on_the_gpu_and_vectors_beside_the_core():
    refined, alone = (
        o for o in options(10_000_000, 64, gpu=H100, kinds=("ivf_pq",)) if o.place == "gpu"
    )
    assert refined.ram == 10_000_000 * 256
    assert alone.ram == 0
    # A code of 32 bytes and an id of 8.
    assert refined.gpu == alone.gpu == pytest.approx(10_000_000 * 40, rel=0.02)
    # 8 x 100 rows at 5.6 million a second, each kept at 0.2 microseconds.
    assert refined.core_seconds - alone.core_seconds == pytest.approx(800 / 5.6e6 + 800 * 2e-7)


def test_cagra_by_hand():
    """cuVS: vectors and 64 links of 4 bytes; pruning 128 first links takes 4 + 5 x 128 an item."""
    [option] = [o for o in options(1_000_000, 64, gpu=H100, kinds=("cagra",))]
    assert option.gpu == 1_000_000 * (256 + 256)
    assert option.pruning == pruning_bytes(1_000_000, 128) == 644_000_000
    assert option.note == "not checked on a GPU"


@pytest.mark.parametrize("num_items", [1_000_000, 2_000_000])
def test_time_of_exact_search(num_items):
    """1,000,000 x 64 took 31 to 39 ms on one core; twice as many take twice as long."""
    [core] = options(num_items, 64, kinds=("flat",))
    millions = num_items / 1_000_000
    assert 0.031 * millions < core.seconds < 0.045 * millions


def test_effort_and_recall_are_inverse():
    for recall in (0.5, 0.7, 0.9, 0.95, 0.98, 0.995):
        assert recall_of_share(share_for(recall)) == pytest.approx(recall)
    for num_items, k in ((320_000, 100), (10_000_000, 500)):
        for recall in (0.91, 0.95, 0.99):
            beam = beam_for(recall, num_items, k)
            assert recall_of_beam(beam, num_items, k) == pytest.approx(recall, abs=1e-3)
            assert recall_of_beam(beam, num_items, k) >= recall


def test_what_was_measured_is_what_is_planned():
    assert share_for(0.911) == pytest.approx(1 / 16)
    assert share_for(0.1) == 1 / 128
    assert share_for(1.0) == 1.0
    assert recall_of_share(1e-6) == 0.445
    assert beam_for(0.981, 320_000, 100) == 384
    # The same cloud of 80,000: 128 found 0.955, 256 found 0.987.
    assert 115 <= beam_for(0.955, 80_000, 100) <= 140
    assert 230 <= beam_for(0.987, 80_000, 100) <= 290


def test_more_is_never_easier():
    beams = [beam_for(r, 1_000_000, 100) for r in (0.5, 0.9, 0.95, 0.99, 0.999)]
    assert beams == sorted(beams)
    assert beam_for(0.5, 50, 100) == 50
    assert beam_for(0.9, 1_000, 100) == 100
    shares = [share_for(r) for r in np.linspace(0.01, 1, 50)]
    assert shares == sorted(shares)
