"""The fast ranker that screens candidates, and how often what is shown stays the same.

It is fitted on queries of the validation part and judged on queries of the test part, each with the
candidates that the retrieval hands on.

Shapes: Q queries, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from tqdm import tqdm

from twotower.data.prepared import Prepared
from twotower.data.queries import evaluation_queries
from twotower.data.schema import TEST, VALIDATION
from twotower.export import manifest as names
from twotower.export.golden import grid, pairs, query_requests, query_vectors
from twotower.export.int8 import quantised
from twotower.export.onnx import PROBABILITY
from twotower.export.screening import same_lists
from twotower.features.spec import ModelInputs
from twotower.index.exact import exact_search
from twotower.models.columns import stage_columns
from twotower.models.two_tower import TwoTower

Array = npt.NDArray[Any]

SHOWN = 10
NUM_FITTED, NUM_JUDGED = 128, 1000
QUERIES_OF_A_BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class Screen:
    """How the fast ranker did.

    Args:
        same_top: Share of queries whose ten best are the same, in the same order.
        same_top_alone: Share whose ten best would be the same if it had the last word.
    """

    same_top: float
    same_top_alone: float


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Some queries: what the ranker is given, and the rows (Q, K) of their candidates."""

    inputs: dict[str, Array]
    rows: Array


def export_screen(
    towers: TwoTower,
    tower_inputs: ModelInputs,
    ranker_inputs: ModelInputs,
    data: Prepared,
    folder: Path,
    *,
    num_candidates: int,
    remove_seen: bool,
    bar: tqdm,
) -> Screen:
    """Write the fast ranker, made of the exact one in the folder.

    Args:
        towers: The towers, on the CPU and in evaluation mode.
        tower_inputs: What they are given.
        ranker_inputs: What the ranker is given.
        data: The data set with the events of the catalogue alone.
        folder: Where the bundle is.
        num_candidates: How many items the retrieval hands on, K.
        remove_seen: Whether seen items are no candidates.
        bar: Progress, moved on by 1 step.

    Raises:
        ValueError: When the ranker is too small to gain from it.
    """
    bar.set_description("export: int8")

    def batches(part: int, count: int) -> Iterator[_Batch]:
        queries = evaluation_queries(data, part, remove_seen=remove_seen, max_users=count)
        vectors = torch.from_numpy(np.load(folder / names.ITEM_VECTORS, mmap_mode="c"))
        columns = [stage_columns(data, i, residency="disk") for i in (tower_inputs, ranker_inputs)]
        for start in range(0, len(queries), QUERIES_OF_A_BLOCK):
            chosen = np.arange(start, min(start + QUERIES_OF_A_BLOCK, len(queries)))
            requests = query_requests(queries, chosen, remove_seen=remove_seen)
            query = query_vectors(towers, requests.batch(columns[0]))
            found = exact_search(query, vectors, num_candidates, requests.excluded)
            asked = pairs(columns[1], requests, found.rows, found.scores).by_owner()
            yield _Batch(inputs={n: c.numpy() for n, c in asked.items()}, rows=found.rows)

    fitted = (batch.inputs for batch in batches(VALIDATION, NUM_FITTED))
    screen = quantised(onnx.load(folder / names.RANKER), fitted)
    (folder / names.SCREEN).write_bytes(screen.SerializeToString(deterministic=True))
    same, alone = _judged(folder, batches(TEST, NUM_JUDGED))
    bar.update()
    return Screen(same_top=same, same_top_alone=alone)


def _judged(folder: Path, batches: Iterator[_Batch]) -> tuple[float, float]:
    """Shares of queries that are shown the same, with the exact ranker's last word and without."""
    sessions = [
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        for name in (names.RANKER, names.SCREEN)
    ]
    same: list[Array] = []
    for batch in batches:
        exact, estimates = (grid(_run(session, batch), batch.rows) for session in sessions)
        same.append(np.stack(same_lists(exact, estimates, min(SHOWN, exact.shape[1]))))
    shares = np.concatenate(same, axis=1).mean(axis=1)
    return float(shares[0]), float(shares[1])


def _run(session: onnxruntime.InferenceSession, batch: _Batch) -> Array:
    """Probabilities (n,) of the pairs."""
    feeds = {node.name: batch.inputs[node.name] for node in session.get_inputs()}
    return np.asarray(session.run([PROBABILITY], feeds)[0])
