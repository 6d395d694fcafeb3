"""How much work an example and a request are, and how long a device needs for it.

Work is counted, in floating point operations of matrix products and in bytes moved to and from
memory when every operation reads its inputs and writes its outputs; a test counts both again on the
real models, at two sizes each. Time is that work over the rates of the device, one after the other,
over an efficiency that was measured once.

Letters: B batch, C candidates of the softmax, D width of the vectors, e width of a table, L events
of a history, W width of the ranker's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from twotower.planning.capacity_devices import CORE, Core, Gpu

FLOAT: Final = 4
# How often a number of an embedded row, of a layer's width, or of the softmax's scores crosses the
# memory bus in a training step, rounded from counts of one size.
ROW_PASSES, DENSE_PASSES, SOFTMAX_PASSES = 16, 22, 13
# HugeCTR's DLRM-DCNv2 in MLPerf Training 4.0 did 1.96 million examples a second on each of eight
# H100, all-to-all included, where the same count over the rates gives 4.8.
GPU_EFFICIENCY: Final = 0.4
# `benchmarks/speed/plan.py`: the loop over its two models against the count.
CPU_EFFICIENCY: Final = 0.5
# ONNX Runtime, 500 candidates of 1.41 million operations in 9.5 ms of one core.
SERVING_EFFICIENCY: Final = 0.6
# A step starts so many operations, each of which keeps a GPU waiting for about so long.
OPERATIONS, LAUNCH_SECONDS = 400, 5e-6
# Latest events of the ranker's history that stand one by one; their mean is one more.
NUM_RECENT: Final = 5


@dataclass(frozen=True, kw_only=True)
class Towers:
    """The two towers with an id a side and the mean of the history.

    Args:
        width: e.
        hidden: Widths of the hidden layers.
        dim: D.
        history: L.
    """

    width: int
    hidden: tuple[int, ...]
    dim: int
    history: int

    @property
    def query(self) -> tuple[int, ...]:
        """Widths from the input of the query tower to its vector."""
        return (2 * self.width, *self.hidden, self.dim)

    @property
    def item(self) -> tuple[int, ...]:
        """Widths from the input of the item tower to its vector."""
        return (self.width, *self.hidden, self.dim)

    @property
    def weights(self) -> int:
        """Numbers in matrices."""
        return _products(self.query) + _products(self.item)

    @property
    def dense(self) -> tuple[int, ...]:
        """Widths of all that layers read or give."""
        return (*self.query, *self.item)


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """DCN-v2: full-rank cross layers beside a perceptron, one head.

    Args:
        width: e.
        hidden: Widths of the perceptron.
        cross_layers: Number of cross layers.
        history: L.
    """

    width: int
    hidden: tuple[int, ...]
    cross_layers: int
    history: int

    @property
    def input_width(self) -> int:
        """W: two ids, the latest events and their mean, the score of the retrieval."""
        return (2 + NUM_RECENT + 1) * self.width + 1

    @property
    def weights(self) -> int:
        """Numbers in matrices."""
        wide = self.input_width
        deep = _products((wide, *self.hidden))
        return self.cross_layers * wide**2 + deep + wide + self.hidden[-1]

    @property
    def weights_once(self) -> int:
        """Those among them that a request multiplies once, not once a candidate.

        The first cross layer and the first of the perceptron, where they read the user's id and the
        history.
        """
        of_query = (1 + NUM_RECENT + 1) * self.width
        return of_query * (self.input_width + self.hidden[0])

    @property
    def dense(self) -> tuple[int, ...]:
        """Widths of all that layers read or give."""
        wide = self.input_width
        return (*[wide] * (1 + self.cross_layers), *self.hidden, wide + self.hidden[-1])


@dataclass(frozen=True, kw_only=True)
class Work:
    """The training work of one example.

    Args:
        low_precision: Operations of products that run in bfloat16 where the device has it.
        full_precision: Operations of products that stay in float32.
        moved: Bytes read and written.
        rows: Rows of tables read at random places and written back.
    """

    low_precision: float
    full_precision: float
    moved: float
    rows: int


def towers_work(towers: Towers, *, batch: int, negatives: int) -> Work:
    """Work of one positive in the retrieval stage.

    A product of B rows with n weights is 2 B n operations, and twice that again in the backward
    pass. The sampled softmax has three products with all C candidates, in float32
    (`twotower.losses.fused_softmax`).

    Args:
        towers: The model.
        batch: B, which are candidates too.
        negatives: Further candidates of a step, which the item tower embeds.
    """
    item_share = (batch + negatives) / batch
    weights = _products(towers.query) + item_share * _products(towers.item)
    candidates = batch + negatives
    return Work(
        low_precision=6 * weights,
        full_precision=6 * candidates * towers.dim,
        moved=_moved(towers.width, towers.history, towers.dense)
        + FLOAT * SOFTMAX_PASSES * candidates,
        rows=towers.history + 2,
    )


def ranker_work(ranker: Ranker) -> Work:
    """Work of one example of the ranking stage.

    Wang et al. 2021, "DCN V2", equation 1: a full-rank cross layer is a product with W^2 weights.

    Args:
        ranker: The model.
    """
    return Work(
        low_precision=6 * ranker.weights,
        full_precision=0,
        moved=_moved(ranker.width, ranker.history, ranker.dense),
        rows=ranker.history + 2,
    )


def gpu_seconds(work: Work, gpu: Gpu, *, batch: int) -> float:
    """Seconds of an example on a GPU.

    Args:
        work: Of the example.
        gpu: The GPU.
        batch: Examples of a step, over which the launches are spread.
    """
    products = work.low_precision / gpu.low_precision + work.full_precision / gpu.full_precision
    launches = OPERATIONS * LAUNCH_SECONDS / batch
    return (products + work.moved / gpu.bandwidth) / GPU_EFFICIENCY + launches


def core_seconds(work: Work, core: Core = CORE) -> float:
    """Seconds of an example on one CPU core, where rows of tables are found one by one.

    Args:
        work: Of the example.
        core: The core.
    """
    products = (work.low_precision + work.full_precision) / core.full_precision
    return (products + work.moved / core.bandwidth + 2 * work.rows / core.rows) / CPU_EFFICIENCY


def scoring_seconds(towers: Towers, ranker: Ranker, candidates: int) -> float:
    """Seconds of one core for the models of one request: a query, and the ranker on candidates.

    Args:
        towers: Their query side.
        ranker: The ranker.
        candidates: Items that are ranked.
    """
    of_candidates = candidates * (ranker.weights - ranker.weights_once)
    operations = 2 * (_products(towers.query) + ranker.weights_once + of_candidates)
    return operations / CORE.full_precision / SERVING_EFFICIENCY


def _products(widths: Sequence[int]) -> int:
    """Weights of linear layers between widths."""
    return sum(a * b for a, b in pairwise(widths))


def _moved(width: int, history: int, dense: Sequence[int]) -> float:
    """Bytes that an example moves, besides the softmax."""
    return FLOAT * (ROW_PASSES * (history + 2) * width + DENSE_PASSES * sum(dense))
