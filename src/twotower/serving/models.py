"""The towers and the ranker of a bundle in ONNX Runtime.

Shape letters: Q queries, K candidates, R = Q K pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

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
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
        self.inputs = {node.name: NUMPY_TYPES[node.type] for node in self._session.get_inputs()}

    def run(self, columns: Mapping[str, Array], output: int = 0) -> Array:
        """One output for the columns (R, ...) that the model takes; others are ignored."""
        feeds: dict[str, Array] = {
            name: np.asarray(columns[name], kind) for name, kind in self.inputs.items()
        }
        values: Array = self._session.run(None, feeds)[output]
        return values


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
    scores = np.full(rows.shape, np.nan, np.float32)
    owners, places = np.nonzero(rows != NO_ITEM)  # (R,)
    for start in range(0, len(owners), PAIRS_OF_A_BLOCK):
        block = slice(start, start + PAIRS_OF_A_BLOCK)
        query, place = owners[block], places[block]
        items = rows[query, place]
        columns = {name: values[query] for name, values in queries.items() if name in ranker.inputs}
        columns |= {n: values[items] for n, values in item_columns.items() if n in ranker.inputs}
        columns |= {name: values[query, place] for name, values in extra.items()}
        scores[query, place] = ranker.run(columns, output=1)
    return scores
