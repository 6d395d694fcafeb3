"""The files of each stage: vectors, index and towers; the ranker; golden answers of both.

Shapes: Q queries, K candidates, D width of the vectors, C items of the catalogue, n pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from twotower.data.batches import Batch, Columns
from twotower.data.column_file import save_array
from twotower.data.prepared import Prepared, checksum
from twotower.data.queries import evaluation_queries
from twotower.data.schema import TEST
from twotower.export import manifest as names
from twotower.export.bundle import Golden
from twotower.export.golden import (
    Requests,
    grid,
    pairs,
    query_requests,
    query_vectors,
    ranker_answers,
    spaced,
)
from twotower.export.item_vectors import item_vectors
from twotower.export.manifest import tower_hash
from twotower.export.onnx import (
    LOGIT,
    PROBABILITY,
    VECTOR,
    export_item_tower,
    export_query_tower,
    export_ranker,
    parity,
)
from twotower.features.spec import ModelInputs
from twotower.index.base import IndexBuilder, SearchResult, index_recall
from twotower.index.exact import exact_search
from twotower.losses.calibration import Calibration
from twotower.models.columns import stage_columns
from twotower.models.dcn import DCNv2
from twotower.models.two_tower import TwoTower

Array = npt.NDArray[Any]

NUM_INDEX_QUERIES = 1000
NUM_PARITY_ITEMS = 4096


@dataclass(frozen=True, kw_only=True)
class RetrievalStage:
    """What is known of an exported retrieval stage.

    Args:
        requests: The golden requests.
        query_vectors: (Q, D) their vectors.
        found: (Q, K) their candidates by exact search, without seen items where those are removed.
        index: Kind and settings of the index in words.
        index_recall: Mean share of the exact best K that the index finds, over held-out queries.
        tower_hash: Digest of both towers.
        parity: Largest difference between the exported and the trained towers.
    """

    requests: Requests
    query_vectors: Array
    found: SearchResult
    index: str
    index_recall: float
    tower_hash: str
    parity: float


@dataclass(frozen=True, kw_only=True)
class RankingStage:
    """What is known of an exported ranker.

    Args:
        logits: (Q, K) logits of the golden candidates.
        probabilities: (Q, K) their probabilities.
        parity: Largest difference between the exported and the trained ranker.
    """

    logits: Array
    probabilities: Array
    parity: float


def export_retrieval(
    model: TwoTower,
    inputs: ModelInputs,
    data: Prepared,
    folder: Path,
    *,
    index_builder: IndexBuilder,
    num_candidates: int,
    remove_seen: bool,
    bar: tqdm,
) -> RetrievalStage:
    """Write item vectors, index and both towers; not yet to which towers the index belongs.

    Args:
        model: The towers, on the CPU and in evaluation mode.
        inputs: What they are given.
        data: The data set with the events of the catalogue alone.
        folder: Where the files go.
        index_builder: Makes the index.
        num_candidates: How many items the retrieval hands on, K.
        remove_seen: Whether seen items are no candidates.
        bar: Progress, moved on by 3 steps.
    """
    columns = stage_columns(data, inputs, residency="disk")
    bar.set_description("export: item vectors")
    items = item_vectors(model, columns, data.num_catalogue, progress=not bar.disable)  # (C, D)
    save_array(folder / names.ITEM_VECTORS, items)
    bar.update()
    bar.set_description("export: towers")
    towers = _export_towers(model, inputs, folder)
    bar.update()

    bar.set_description("export: index")
    queries = evaluation_queries(data, TEST, remove_seen=remove_seen, max_users=NUM_INDEX_QUERIES)
    every = query_requests(queries, np.arange(len(queries)), remove_seen=False)
    held_out = query_vectors(model, every.batch(columns))  # (Q', D)
    index = index_builder.build(items, queries=held_out.numpy())
    index.save(folder / names.INDEX)
    exact = exact_search(held_out, torch.from_numpy(items), num_candidates)
    recall = index_recall(index.search(held_out.numpy(), num_candidates).rows, exact.rows)
    bar.update()

    requests = query_requests(queries, spaced(len(queries)), remove_seen=remove_seen)
    batch = requests.batch(columns)
    vectors = query_vectors(model, batch)  # (Q, D)
    return RetrievalStage(
        requests=requests,
        query_vectors=vectors.numpy(),
        found=exact_search(vectors, torch.from_numpy(items), num_candidates, requests.excluded),
        index=index.description,
        index_recall=float(np.mean(recall)),
        tower_hash=towers,
        parity=max(
            parity(folder / names.QUERY_TOWER, _numpy(batch), {VECTOR: vectors.numpy()}),
            _item_parity(folder / names.ITEM_TOWER, columns, items),
        ),
    )


def export_ranking(
    model: DCNv2,
    inputs: ModelInputs,
    data: Prepared,
    folder: Path,
    *,
    calibration: Calibration,
    requests: Requests,
    found: SearchResult | None,
    bar: tqdm,
) -> RankingStage:
    """Write the ranker.

    Args:
        model: The ranker, on the CPU and in evaluation mode.
        inputs: What it is given.
        data: The data set with the events of the catalogue alone.
        folder: Where the file goes.
        calibration: From its logits to probabilities.
        requests: The golden requests.
        found: Their candidates, or None without a retrieval stage.
        bar: Progress, moved on by 1 step.
    """
    bar.set_description("export: ranker")
    path = folder / names.RANKER
    export_ranker(model, inputs, path, calibration=calibration)
    candidates = requests.candidates() if found is None else found.rows
    scores = None if found is None else found.scores
    asked = pairs(stage_columns(data, inputs, residency="disk"), requests, candidates, scores)
    answers = ranker_answers(model, calibration, asked.one_by_one())
    bar.update()
    return RankingStage(
        logits=grid(answers[LOGIT], candidates),
        probabilities=grid(answers[PROBABILITY], candidates),
        parity=parity(path, _numpy(asked.by_owner()), answers),
    )


def golden_answers(
    data: Prepared,
    requests: Requests,
    retrieval: RetrievalStage | None,
    ranking: RankingStage | None,
) -> Golden:
    """The golden requests with what the stages say of them.

    Args:
        data: The data set with the events of the catalogue alone.
        requests: The golden requests.
        retrieval: The retrieval stage, or None.
        ranking: The ranking stage, or None.
    """
    context = data.interactions.context
    return Golden(
        context={name: np.asarray(c[requests.interactions]) for name, c in context.items()},
        user_rows=requests.user_rows,
        history_ends=requests.history_ends,
        query_vectors=None if retrieval is None else retrieval.query_vectors,
        candidates=requests.candidates() if retrieval is None else retrieval.found.rows,
        candidate_scores=None if retrieval is None else retrieval.found.scores,
        logits=None if ranking is None else ranking.logits,
        probabilities=None if ranking is None else ranking.probabilities,
    )


def _export_towers(model: TwoTower, inputs: ModelInputs, folder: Path) -> str:
    """Write both towers; their digest."""
    export_query_tower(model, inputs, folder / names.QUERY_TOWER)
    export_item_tower(model, inputs, folder / names.ITEM_TOWER)
    return tower_hash(checksum(folder / names.QUERY_TOWER), checksum(folder / names.ITEM_TOWER))


def _item_parity(path: Path, columns: Columns, items: Array) -> float:
    """Parity of the item tower on items (C, D) spread evenly over the catalogue."""
    rows = np.linspace(0, len(items) - 1, min(len(items), NUM_PARITY_ITEMS)).astype(np.int64)
    batch = columns.items(torch.from_numpy(rows))
    return parity(path, _numpy(batch), {VECTOR: items[rows]})


def _numpy(batch: Batch) -> dict[str, Array]:
    return {name: column.numpy() for name, column in batch.items()}
