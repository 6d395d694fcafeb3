"""The kinds of index side by side: bytes, time of a search, recall, and what `export` is told.

Sizes are those of `twotower.index`, held against FAISS' files by tests. CAGRA has the formula of
cuVS' documentation and the effort of HNSW, and was not checked on a GPU.

Letters: N items, D width of the vectors, k candidates a query wants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from twotower.index.flat import Flat
from twotower.index.gpu_index import MAX_GPU_SELECTION
from twotower.index.graph import HNSW, Cagra
from twotower.index.inverted_file import (
    IVFPQ,
    NUM_CODES,
    IVFFlat,
    default_code_bytes,
    default_num_cells,
)
from twotower.planning.capacity_devices import CORE, Gpu
from twotower.planning.capacity_recall import (
    beam_for,
    recall_of_beam,
    recall_of_share,
    share_for,
)

KINDS: Final = ("flat", "ivf_flat", "ivf_pq", "hnsw", "cagra")
FLOAT: Final = 4
# How deep re-ranking looks, times k.
REFINE: Final = 8
# Of the recall of their cells, what codes with so many numbers a byte leave: alone, and re-ranked.
# A cloud of 20,000 x 64; two numbers a byte also 100,000 x 64, where 0.84 were left.
CODE_RECALL: Final = ((2, 0.84, 1.0), (4, 0.60, 0.99), (8, 0.40, 0.94), (16, 0.30, 0.84))
# What keeping an item among the best costs a core.
KEEP_SECONDS: Final = 2e-7
# Distances that HNSW computes for each link of an item of the beam: the rest were seen before.
VISITED: Final = 1.5
# How much larger than others the cells are that queries look into, since items crowd there.
CROWDED: Final = 1.15
# The scan of one query against the bandwidth of a copy, measured on cores.
SCAN_EFFICIENCY: Final = 0.6
SEARCH_LAUNCH_SECONDS: Final = 5e-5
# What a call of FAISS costs a core besides.
CALL_SECONDS: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class IndexOption:
    """One kind of index on one kind of device.

    Args:
        kind: Option of the group ``index``.
        place: Where it is searched.
        recall: Share of the exact best k, on hard vectors.
        overrides: What else `export` is told.
        ram: Bytes in the memory of the machine.
        gpu: Bytes in the memory of GPUs.
        pruning: Further bytes there while it is built.
        core_seconds: Of one query on a core.
        gpu_seconds: Of one query on a GPU.
        note: What is to be known about it.
    """

    kind: str
    place: Literal["cpu", "gpu"]
    recall: float
    overrides: tuple[str, ...] = ()
    ram: int = 0
    gpu: int = 0
    pruning: int = 0
    core_seconds: float = 0.0
    gpu_seconds: float = 0.0
    note: str = ""

    @property
    def seconds(self) -> float:
        """Of one query on its own."""
        return self.core_seconds + self.gpu_seconds


def index_options(
    num_items: int, dim: int, *, k: int, recall: float, gpu: Gpu | None, kinds: Sequence[str]
) -> tuple[IndexOption, ...]:
    """All options for a corpus.

    Args:
        num_items: N.
        dim: D.
        k: Items a query wants.
        recall: Share of the exact best k that is asked for.
        gpu: The GPU, or None without one.
        kinds: Which of `KINDS`.
    """
    gpus = [None] if gpu is None or k > MAX_GPU_SELECTION else [None, gpu]
    found = [
        option
        for place in gpus
        for option in _options(num_items, dim, k=k, recall=recall, gpu=place)
        if option.kind in kinds
    ]
    return tuple(sorted(found, key=lambda option: KINDS.index(option.kind)))


def _options(
    num_items: int, dim: int, *, k: int, recall: float, gpu: Gpu | None
) -> Iterator[IndexOption]:
    yield _plain("flat", gpu, Flat().memory_bytes(num_items, dim), scanned=FLOAT * num_items * dim)
    yield _ivf_flat(num_items, dim, recall, gpu)
    if num_items >= NUM_CODES and dim / default_code_bytes(dim) <= CODE_RECALL[-1][0]:
        refine = REFINE if gpu is None else min(REFINE, MAX_GPU_SELECTION // k)
        for depth in (refine, 0) if refine > 1 else (0,):
            yield _ivf_pq(num_items, dim, recall, gpu, k=k, refine=depth)
    if gpu is None:
        yield _hnsw(num_items, dim, recall, k)
    elif num_items > Cagra().intermediate_graph_degree:
        yield _cagra(num_items, dim, recall, k, gpu)


def scanned_bytes(num_items: int, bytes_an_item: int, num_cells: int, num_probes: int) -> float:
    """Bytes of the probed cells, which are a little larger than the others.

    Jegou et al. 2011, "Product Quantization for Nearest Neighbor Search", section IV.

    Args:
        num_items: N.
        bytes_an_item: Bytes of an item that a scan reads.
        num_cells: Cells of the inverted file.
        num_probes: Cells that are looked into.
    """
    share = min(1.0, CROWDED * num_probes / num_cells)
    return num_items * bytes_an_item * share


def visited_items(num_links: int, beam: int) -> float:
    """Items whose distance a search of a graph computes, at most about.

    In HNSW an item has 2 M links on the lowest level (Malkov and Yashunin 2018, section 4.1); some
    lead to items that were seen before.

    Args:
        num_links: M.
        beam: Items of the beam.
    """
    return VISITED * num_links * beam


def pruning_bytes(num_items: int, first_links: int) -> int:
    """Bytes on the GPU while cuVS prunes the first graph of CAGRA, beside the vectors.

    cuVS, page "CAGRA", section "Build peak memory usage": n (4 + (sizeof(IdxT) + 1) degree).

    Args:
        num_items: N.
        first_links: Links of an item before pruning.
    """
    return num_items * (4 + 5 * first_links)


def _plain(
    kind: str,
    gpu: Gpu | None,
    size: int,
    *,
    scanned: float,
    recall: float = 1.0,
    overrides: tuple[str, ...] = (),
) -> IndexOption:
    """An index that scans vectors as they are."""
    if gpu is None:
        return IndexOption(
            kind=kind,
            place="cpu",
            recall=recall,
            overrides=overrides,
            ram=size,
            core_seconds=CALL_SECONDS + _core_scan(scanned),
        )
    return IndexOption(
        kind=kind,
        place="gpu",
        recall=recall,
        overrides=(*overrides, "index.device=gpu"),
        gpu=size,
        core_seconds=CALL_SECONDS,
        gpu_seconds=_gpu_scan(scanned, gpu),
    )


def _cells(num_items: int, recall: float, gpu: Gpu | None) -> tuple[int, int]:
    """Cells and probes; on a GPU probes are limited, and cells are fewer and larger instead."""
    share, num_cells = share_for(recall), default_num_cells(num_items)
    if gpu is not None:
        num_cells = min(num_cells, math.floor(MAX_GPU_SELECTION / share))
    return num_cells, math.ceil(num_cells * share)


def _ivf_flat(num_items: int, dim: int, recall: float, gpu: Gpu | None) -> IndexOption:
    num_cells, num_probes = _cells(num_items, recall, gpu)
    scanned = scanned_bytes(num_items, FLOAT * dim, num_cells, num_probes)
    return _plain(
        "ivf_flat",
        gpu,
        IVFFlat(num_cells=num_cells).memory_bytes(num_items, dim),
        scanned=scanned + FLOAT * dim * num_cells,
        recall=recall_of_share(num_probes / num_cells),
        overrides=(f"index.num_cells={num_cells}", f"index.num_probes={num_probes}"),
    )


def _ivf_pq(
    num_items: int, dim: int, recall: float, gpu: Gpu | None, *, k: int, refine: int
) -> IndexOption:
    """Codes on the device; exact vectors, where they are kept, in the memory of the machine."""
    num_cells, num_probes = _cells(num_items, recall, gpu)
    codes = IVFPQ(num_cells=num_cells, refine=0).memory_bytes(num_items, dim)
    exact = FLOAT * num_items * dim if refine else 0
    scanned = scanned_bytes(num_items, default_code_bytes(dim), num_cells, num_probes)
    centres, again = FLOAT * dim * num_cells, refine * k * (1 / CORE.rows + KEEP_SECONDS)
    on_core = scanned / CORE.lookups + _core_scan(centres) if gpu is None else 0.0
    device = () if gpu is None else ("index.device=gpu",)
    return IndexOption(
        kind="ivf_pq",
        place="cpu" if gpu is None else "gpu",
        recall=recall_of_share(num_probes / num_cells) * _left(dim, refine),
        overrides=(
            f"index.num_cells={num_cells}",
            f"index.num_probes={num_probes}",
            f"index.refine={refine}",
            *device,
        ),
        ram=exact + (codes if gpu is None else 0),
        gpu=0 if gpu is None else codes,
        core_seconds=CALL_SECONDS + on_core + again,
        gpu_seconds=0.0 if gpu is None else _gpu_scan(scanned + centres, gpu),
        note="re-ranked" if refine else "not re-ranked",
    )


def _left(dim: int, refine: int) -> float:
    """Of the recall of their cells, what codes leave."""
    numbers = dim / default_code_bytes(dim)
    alone, again = next(row[1:] for row in CODE_RECALL if numbers <= row[0])
    return again if refine else alone


def _hnsw(num_items: int, dim: int, recall: float, k: int) -> IndexOption:
    beam = beam_for(recall, num_items, k)
    builder = HNSW(ef_search=beam)
    rows = min(visited_items(builder.num_links, beam), num_items)
    return IndexOption(
        kind="hnsw",
        place="cpu",
        recall=recall_of_beam(beam, num_items, k),
        overrides=(f"index.ef_search={beam}",),
        ram=builder.memory_bytes(num_items, dim),
        core_seconds=CALL_SECONDS + rows * max(1.0, FLOAT * dim / 256) / CORE.rows,
    )


def _cagra(num_items: int, dim: int, recall: float, k: int, gpu: Gpu) -> IndexOption:
    beam = beam_for(recall, num_items, k)
    builder = Cagra(beam=beam)
    rows = min(visited_items(builder.graph_degree, beam), num_items)
    return IndexOption(
        kind="cagra",
        place="gpu",
        recall=recall_of_beam(beam, num_items, k),
        overrides=(f"index.beam={beam}",),
        gpu=builder.memory_bytes(num_items, dim),
        pruning=pruning_bytes(num_items, builder.intermediate_graph_degree),
        core_seconds=CALL_SECONDS,
        gpu_seconds=_gpu_scan(FLOAT * dim * rows, gpu),
        note="not checked on a GPU",
    )


def _core_scan(scanned: float) -> float:
    return scanned / CORE.bandwidth / SCAN_EFFICIENCY


def _gpu_scan(scanned: float, gpu: Gpu) -> float:
    return scanned / gpu.bandwidth / SCAN_EFFICIENCY + SEARCH_LAUNCH_SECONDS
