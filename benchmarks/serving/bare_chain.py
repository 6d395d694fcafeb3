"""The yardstick of a request: the calls that nobody can do without, and nothing around them.

Query tower in ONNX Runtime, search in FAISS, one gather of the candidates' columns in NumPy, ranker
in ONNX Runtime, the ten best. The request comes encoded, items already seen are not left out, no
id, title or reason is looked up, and nothing is checked. Columns of items stand in two matrices,
ids as int64 and numbers as float32, so that an item is one piece of memory and nothing is cast.

`plain` is the ranker as `torch.onnx.export` makes it of the trained model, with the columns of the
query repeated for every candidate; else it is the bundle's own.

Shapes: K candidates, I ids and F numbers of an item.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime

from twotower.export.bundle import Bundle

Columns = Mapping[str, np.ndarray]


def session(path: Path) -> onnxruntime.InferenceSession:
    """A model in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Chain:
    """The calls.

    Args:
        bundle: Whose models and index they are.
        plain: A ranker that takes pairs of everything; None for the bundle's own.
        num_candidates: K.
    """

    def __init__(self, bundle: Bundle, plain: Path | None, num_candidates: int) -> None:
        self.tower = session(bundle.query_tower)
        self.ranker = session(bundle.ranker if plain is None else plain)
        self.is_plain, self.num_candidates = plain is not None, num_candidates
        self.index = faiss.read_index(str(bundle.folder / "index" / "index.faiss"))
        columns = bundle.items.columns
        taken = [node.name for node in self.ranker.get_inputs() if node.name in columns]
        self.ids = [name for name in taken if columns[name].ndim == 1]
        self.numbers = [name for name in taken if columns[name].ndim == 2]
        self.id_rows = np.stack([columns[n] for n in self.ids], 1).astype(np.int64)  # (N, I)
        self.number_rows = np.concatenate([columns[n] for n in self.numbers], 1)  # (N, 2 F)
        self.tower_inputs = [node.name for node in self.tower.get_inputs()]
        self.query_inputs = [
            node.name
            for node in self.ranker.get_inputs()
            if node.name not in (*taken, "retrieval_score", "owner")
        ]

    def __call__(self, query: Columns) -> np.ndarray:
        """The rows of the ten best, best first.

        Args:
            query: Encoded columns (1, ...), of the types that the models take.
        """
        (vector,) = self.tower.run(None, {name: query[name] for name in self.tower_inputs})
        scores, rows = self.index.search(vector, self.num_candidates)
        feeds: dict[str, Any] = {name: query[name] for name in self.query_inputs}
        if self.is_plain:
            feeds = {name: value.repeat(rows.shape[1], axis=0) for name, value in feeds.items()}
        else:
            feeds["owner"] = np.zeros(rows.shape[1], np.int64)
        ids, numbers = self.id_rows[rows[0]].T.copy(), self.number_rows[rows[0]]  # (I, K), (K, 2 F)
        feeds |= zip(self.ids, ids, strict=True)
        feeds |= {name: numbers[:, 2 * at : 2 * at + 2] for at, name in enumerate(self.numbers)}
        feeds["retrieval_score"] = scores[0]
        (probabilities,) = self.ranker.run(["probability"], feeds)
        best = np.argpartition(-probabilities, 10)[:10]
        return rows[0, best[np.argsort(-probabilities[best])]]
