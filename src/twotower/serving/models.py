"""The towers and the ranker of a bundle in ONNX Runtime.

Shape letters: Q queries, K candidates, R pairs of a query and one of its candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from twotower.data.schema import OWNER
from twotower.index.base import NO_ITEM

Array = npt.NDArray[Any]

PAIRS_OF_A_BLOCK = 65_536
NUMPY_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(bool)": np.bool_,
}


class OnnxModel:
    """One exported model.

    Args:
        path: The ``.onnx`` file.
        num_threads: Threads that one call uses; 0 for one a core.
    """

    def __init__(self, path: Path, *, num_threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = num_threads
        # A thread that spins for want of work takes the core from the next request.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
        self.inputs = {node.name: NUMPY_TYPES[node.type] for node in self._session.get_inputs()}
        self._outputs = [node.name for node in self._session.get_outputs()]

    def run(self, columns: Mapping[str, Array], output: int = 0) -> Array:
        """One output for the columns (R, ...) that the model takes; others are ignored."""
        feeds: dict[str, Array] = {
            name: np.asarray(columns[name], kind) for name, kind in self.inputs.items()
        }
        (values,) = self._session.run([self._outputs[output]], feeds)
        return np.asarray(values)


def as_models_take(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Encoded columns (Q, ...) in the types of models, so that several need not convert them."""
    return {
        name: values.astype(np.int64) if values.dtype == np.int32 else values
        for name, values in columns.items()
    }


def score_candidates(
    ranker: OnnxModel,
    queries: Mapping[str, Array],
    item_columns: Mapping[str, Array],
    rows: Array,
    extra: Mapping[str, Array],
) -> Array:
    """Probability of every candidate.

    Args:
        ranker: The ranking model; its second output is the probability.
        queries: Encoded query columns, (Q, ...) each.
        item_columns: Encoded item columns, (C, ...) each.
        rows: (Q, K) item rows, padded with -1.
        extra: Columns of pairs, (Q, K) each, such as the retrieval's score; those that the model
            does not take are ignored.

    Returns:
        (Q, K) float32, NaN where padded.
    """
    item_rows = rows.ravel()
    places = np.flatnonzero(item_rows != NO_ITEM)  # (R,) in the lists of all queries
    scores = np.full(rows.size, np.nan, np.float32)
    of_queries = {name: values for name, values in queries.items() if name in ranker.inputs}
    of_items = {n: values for n, values in item_columns.items() if n in ranker.inputs}
    of_pairs = {name: values.ravel() for name, values in extra.items() if name in ranker.inputs}
    for start in range(0, len(places), PAIRS_OF_A_BLOCK):
        block = places[start : start + PAIRS_OF_A_BLOCK]
        owners, items = block // rows.shape[1], item_rows[block]
        first, last = int(owners[0]), int(owners[-1]) + 1
        columns = dict(of_queries)
        if last - first < len(rows):
            columns = {name: values[first:last] for name, values in of_queries.items()}
        columns |= {name: values[items] for name, values in of_items.items()}
        columns |= {name: values[block] for name, values in of_pairs.items()}
        columns[OWNER] = owners - first
        scores[block] = ranker.run(columns, output=1)
    return scores.reshape(rows.shape)
