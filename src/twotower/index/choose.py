"""``index=auto``: the first index of a ladder that meets recall, latency and memory, as measured.

Exact search is taken for small corpora and wherever it is fast enough. Otherwise the options are
tried from the cheapest to build to the dearest, each kind from little search effort to much, on
held-out queries against exact search; every trial is reported. When none meets the targets that is
an error, not a quiet compromise.

Letters: ``Q`` queries, ``N`` items, ``D`` dimensions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from twotower.index.base import (
    FloatArray,
    IndexBuilder,
    IntArray,
    checked_items,
    checked_vectors,
    index_recall,
)
from twotower.index.faiss_index import FaissIndex
from twotower.index.faiss_library import Handle, faiss
from twotower.index.flat import Flat
from twotower.index.gpu_index import MAX_GPU_SELECTION, Device, Place, pick_device
from twotower.index.graph import HNSW, Cagra
from twotower.index.inverted_file import IVFPQ, NUM_CODES, IVFFlat, default_num_cells

# Up to so many items, exact search of one query takes a millisecond or two.
SMALL_CORPUS = 50_000
MAX_QUERIES = 1_000
MAX_TIMED_QUERIES = 100
WARM_UP_QUERIES = 3

PROBED_SHARES = (64, 32, 16, 8, 4)  # one cell in so many
REFINE = 16
LEAST_BEAM = 64
BEAM_FACTORS = (1, 2, 4)  # times k

logger = logging.getLogger(__name__)


class Tunable(IndexBuilder, Protocol):
    """A builder whose search effort can be changed after building."""

    kind: ClassVar[str]

    def build(self, vectors: FloatArray, *, queries: FloatArray | None = None) -> FaissIndex:
        """Build the index; see `IndexBuilder`."""

    def tuned(self, index: Handle, place: Place) -> FaissIndex:
        """Apply the search settings to a filled FAISS index."""

    def memory_bytes(self, num_items: int, dim: int) -> int:
        """Estimated size of the index in bytes."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What an index is asked for.

    Args:
        k: Items a query wants.
        recall: Least mean share of the exact top ``k``.
        latency_ms: Most milliseconds for one query on its own, the median.
        memory_bytes: Most bytes of the index; None for no limit.

    Raises:
        ValueError: When a target is out of range.
    """

    k: int
    recall: float
    latency_ms: float
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.k < 1:
            problems.append(f"auto: `k` must be at least 1, got {self.k}")
        if not 0 < self.recall <= 1:
            problems.append(f"auto: `recall_target` must lie in (0, 1], got {self.recall}")
        if not self.latency_ms > 0:
            problems.append(f"auto: `latency_target_ms` must be above 0, got {self.latency_ms}")
        if self.memory_bytes is not None and self.memory_bytes < 1:
            problems.append(
                f"auto: `memory_limit_bytes` must be above 0 or null, got {self.memory_bytes}"
            )
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One measured option.

    Args:
        builder: The option.
        description: It in words.
        recall: Mean share of the exact top ``k`` that was found.
        ms_per_query: Median milliseconds of one query on its own.
        num_bytes: Estimated size of the index.
    """

    builder: Tunable
    description: str
    recall: float
    ms_per_query: float
    num_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.description}: recall {self.recall:.4f}, {self.ms_per_query:.3f} ms a query, "
            f"{self.num_bytes:,} bytes"
        )

    def fits(self, targets: Targets) -> bool:
        """Whether it is small enough."""
        return targets.memory_bytes is None or self.num_bytes <= targets.memory_bytes

    def meets(self, targets: Targets) -> bool:
        """Whether recall, latency and size are within the targets."""
        found_enough = self.recall >= targets.recall
        return found_enough and self.ms_per_query <= targets.latency_ms and self.fits(targets)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen index and what led to it.

    Args:
        index: The index, ready to search.
        trials: Everything that was measured, in order; the last was chosen.
        left_out: Kinds that were not built because of their size.
    """

    index: FaissIndex
    trials: tuple[Trial, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Builder that measures a ladder of options and keeps the first that meets the targets.

    Args:
        k: Items a query wants; the number of candidates that retrieval hands on.
        recall_target: Least mean share of the exact top ``k``.
        latency_target_ms: Most milliseconds for one query on its own.
        memory_limit_bytes: Most bytes of the index; None for no limit.
        device: ``cpu``, ``gpu`` or ``auto``.
    """

    k: int = 100
    recall_target: float = 0.95
    latency_target_ms: float = 10.0
    memory_limit_bytes: int | None = None
    device: Device = "auto"

    kind: ClassVar[str] = "auto"

    def build(self, vectors: FloatArray, *, queries: FloatArray | None = None) -> FaissIndex:
        """Build the chosen index; see `IndexBuilder` and `choose_index`."""
        if queries is None:
            raise ValueError("auto needs held-out queries to measure its options on, got none")
        choice = choose_index(
            vectors,
            queries,
            k=self.k,
            recall_target=self.recall_target,
            latency_target_ms=self.latency_target_ms,
            memory_limit_bytes=self.memory_limit_bytes,
            device=self.device,
        )
        return choice.index


def choose_index(
    vectors: FloatArray,
    held_out_queries: FloatArray,
    *,
    k: int,
    recall_target: float,
    latency_target_ms: float,
    memory_limit_bytes: int | None,
    device: Device,
) -> Choice:
    """Measure a ladder of indexes and take the first that meets the targets.

    Args:
        vectors: Item vectors (N, D).
        held_out_queries: Query vectors (Q, D) of users whom training has not seen; at most 1,000,
            evenly spaced, are used.
        k: Items a query wants.
        recall_target: Least mean share of the exact top ``k``.
        latency_target_ms: Most milliseconds for one query on its own, the median of 100.
        memory_limit_bytes: Most bytes of the index; None for no limit.
        device: ``cpu``, ``gpu`` or ``auto``.

    Raises:
        ValueError: When an argument is out of range or no option meets the targets.
    """
    targets = Targets(
        k=k, recall=recall_target, latency_ms=latency_target_ms, memory_bytes=memory_limit_bytes
    )
    items = checked_items(vectors)
    queries = _sample(checked_vectors("held-out queries", held_out_queries, dim=items.shape[1]))
    exact = Flat(device=device)
    index = exact.build(items)
    truth = index.search(queries, k).rows
    trials = [_measure(exact, index, queries, truth)]
    if trials[0].meets(targets) or (len(items) <= SMALL_CORPUS and trials[0].fits(targets)):
        return _chosen(index, trials, [])
    left_out = []
    for family in _families(items.shape, k, pick_device(device, IVFFlat.kind)):
        num_bytes = family[0].memory_bytes(*items.shape)
        if targets.memory_bytes is not None and num_bytes > targets.memory_bytes:
            left_out.append(f"{family[0].kind} ({num_bytes:,} bytes)")
            continue
        index = family[0].build(items)
        for builder in family:
            index = builder.tuned(index.faiss_index, index.device)
            trials.append(_measure(builder, index, queries, truth))
            if trials[-1].meets(targets):
                return _chosen(index, trials, left_out)
            if trials[-1].ms_per_query > targets.latency_ms:
                break  # more search effort is slower still
    raise ValueError(_complaint(targets, trials, left_out))


def _chosen(index: FaissIndex, trials: Sequence[Trial], left_out: Sequence[str]) -> Choice:
    logger.info("index: auto chose %s", trials[-1])
    return Choice(index=index, trials=tuple(trials), left_out=tuple(left_out))


def _sample(queries: FloatArray) -> FloatArray:
    if len(queries) == 0:
        raise ValueError("auto needs at least one held-out query, got none")
    picked = np.linspace(0, len(queries) - 1, min(len(queries), MAX_QUERIES)).astype(np.int64)
    return queries[picked]


def _families(shape: tuple[int, ...], k: int, place: Place) -> Iterator[Sequence[Tunable]]:
    """Options that differ in search effort alone, from little to much, in the order of trying."""
    num_items = shape[0]
    num_cells = default_num_cells(num_items)
    probes = sorted({min(-(-num_cells // share), MAX_GPU_SELECTION) for share in PROBED_SHARES})
    beams = sorted({max(LEAST_BEAM, factor * k) for factor in BEAM_FACTORS})
    refine = REFINE
    if place == "gpu":
        refine = min(refine, MAX_GPU_SELECTION // min(k, num_items))
    codes = num_items >= NUM_CODES
    yield [IVFFlat(num_probes=n, device=place) for n in probes]
    if codes and refine > 1:
        yield [IVFPQ(num_probes=n, refine=refine, device=place) for n in probes]
    if codes:
        yield [IVFPQ(num_probes=n, refine=0, device=place) for n in probes]
    if place == "cpu":
        yield [HNSW(ef_search=beam, device=place) for beam in beams]
    elif hasattr(faiss, "GpuIndexCagra"):
        yield [Cagra(beam=beam, device=place) for beam in beams]


def _measure(builder: Tunable, index: FaissIndex, queries: FloatArray, truth: IntArray) -> Trial:
    """Recall over all queries (Q, D) and the time of some of them, one by one."""
    k = truth.shape[1]
    recall = float(np.mean(index_recall(index.search(queries, k).rows, truth)))
    seconds = []
    for row in np.arange(WARM_UP_QUERIES + min(len(queries), MAX_TIMED_QUERIES)) % len(queries):
        start = time.perf_counter()
        index.search(queries[row : row + 1], k)
        seconds.append(time.perf_counter() - start)
    trial = Trial(
        builder=builder,
        description=index.description,
        recall=recall,
        ms_per_query=1000 * float(np.median(seconds[WARM_UP_QUERIES:])),
        num_bytes=builder.memory_bytes(index.num_items, index.dim),
    )
    logger.info("index: auto tried %s", trial)
    return trial


def _complaint(targets: Targets, trials: Sequence[Trial], left_out: Sequence[str]) -> str:
    limit = "" if targets.memory_bytes is None else f", at most {targets.memory_bytes:,} bytes"
    too_large = f"\n  too large to be tried: {', '.join(left_out)}" if left_out else ""
    measured = "".join(f"\n  {trial}" for trial in trials)
    return (
        f"auto: no index has recall@{targets.k} of at least {targets.recall}, at most "
        f"{targets.latency_ms} ms a query{limit}; relax a target or choose the index yourself. "
        f"Measured:{measured}{too_large}"
    )
