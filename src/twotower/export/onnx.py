"""Towers and ranker as ONNX, for a runtime without torch, and the proof that they say the same.

Inputs are called as the features are, ``history.<item feature>`` and ``history.mask`` included, and
``history.time`` where a model reads it; the first dimension of all of them is free. Ids and times
are int64, numbers float32, masks bool.

The ranker of a bundle with items is given the columns of user, context and history of Q queries,
those of the item and of the retrieval of B pairs, and ``owner`` (B,) int64, the query that a pair
belongs to; it looks at a query once, however many candidates that has. The ranker of a flat click
table, which has no items, is given B rows of everything.

Shapes: B rows of a batch, Q queries, D width of the vectors.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from twotower.data.schema import OWNER
from twotower.export.query_once import query_once
from twotower.features.spec import (
    HISTORY_MASK,
    HISTORY_PREFIX,
    HISTORY_TIME,
    RETRIEVAL_RANK,
    RETRIEVAL_SCORE,
    TABLE_KINDS,
    TASK_PREFIX,
    FeatureInput,
    ModelInputs,
)
from twotower.losses.calibration import Calibration
from twotower.models.dcn import DCNv2
from twotower.models.history import read_of
from twotower.models.two_tower import TwoTower

OPSET = 20
VECTOR, LOGIT, PROBABILITY = "vector", "logit", "probability"
MAX_BYTES = 2**31  # of one protobuf message
# Not 1, nor each other, nor a width: the exporter takes what is equal for the same.
EXAMPLE_ROWS, EXAMPLE_QUERIES = 13, 11
CHATTY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")

Array = npt.NDArray[Any]
Example = dict[str, Tensor]


class QueryTower(nn.Module):
    """The query side of the towers as a module of its own."""

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Example) -> Tensor:
        """Vectors ``(B, D)``."""
        return self.model.embed_queries(batch)


class ItemTower(nn.Module):
    """The item side of the towers as a module of its own."""

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Example) -> Tensor:
        """Vectors ``(B, D)``."""
        return self.model.embed_items(batch)


class Ranker(nn.Module):
    """The ranker with calibrated probabilities.

    Args:
        model: The ranker.
        calibration: From its logits to probabilities.
    """

    def __init__(self, model: DCNv2, calibration: Calibration) -> None:
        super().__init__()
        self.model = model
        self.calibration = calibration

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, in order."""
        return [LOGIT, PROBABILITY, *(TASK_PREFIX + task for task in self.model.tasks)]

    def forward(self, batch: Example) -> tuple[Tensor, ...]:
        """Logits ``(B,)`` as trained, probabilities ``(B,)``, and those of further tasks."""
        logits = self.model.logits(batch)  # (B, T)
        further = logits[:, 1:].sigmoid().unbind(dim=-1)
        return logits[:, 0], self.calibration.probability(logits[:, 0]), *further


def export_query_tower(model: TwoTower, inputs: ModelInputs, path: Path) -> None:
    """Write the query tower; its output is ``vector``.

    Args:
        model: The towers, put into evaluation mode.
        inputs: What they are given.
        path: The file.

    Raises:
        ValueError: When the model is too large for one file.
    """
    example = _columns(inputs.of("user", "context")) | _history(inputs, model, EXAMPLE_ROWS)
    _export(QueryTower(model), example, [VECTOR], path)


def export_item_tower(model: TwoTower, inputs: ModelInputs, path: Path) -> None:
    """Write the item tower; its output is ``vector``.

    Args:
        model: The towers, put into evaluation mode.
        inputs: What they are given.
        path: The file.

    Raises:
        ValueError: When the model is too large for one file.
    """
    _export(ItemTower(model), _columns(inputs.of("item")), [VECTOR], path)


def export_ranker(
    model: DCNv2, inputs: ModelInputs, path: Path, *, calibration: Calibration
) -> None:
    """Write the ranker; its outputs are ``logit``, ``probability`` and ``task.<further task>``.

    Args:
        model: The ranker, put into evaluation mode.
        inputs: What it is given.
        path: The file.
        calibration: From its logits to probabilities.

    Raises:
        ValueError: When the model is too large for one file.
    """
    pairs = _columns(inputs.of("item"))
    if model.score_scale is not None:
        pairs[RETRIEVAL_SCORE] = torch.zeros(EXAMPLE_ROWS)
    if model.rank_scale is not None:
        pairs[RETRIEVAL_RANK] = torch.ones(EXAMPLE_ROWS)
    num_queries = EXAMPLE_QUERIES if pairs else EXAMPLE_ROWS
    queries = _columns(inputs.of("user", "context"), leading=(num_queries,))
    queries |= _history(inputs, model, num_queries)
    if pairs and queries:
        pairs[OWNER] = torch.arange(EXAMPLE_ROWS) % EXAMPLE_QUERIES
    ranker = Ranker(model, calibration)
    _export(ranker, queries | pairs, ranker.outputs, path, pairs=pairs)


def parity(path: Path, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """How far an exported model is from the one it was made of.

    Args:
        path: The exported model.
        inputs: Columns (B, ...) by name; those that the model does not take are left out.
        expected: What the trained model gave by name of the output.

    Returns:
        The largest difference, absolute for values up to 1 and relative above; infinity where one
        of the two is not a number.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {node.name: inputs[node.name] for node in session.get_inputs()}
    names = list(expected)
    found = session.run(names, given)
    return max(_difference(f, expected[name]) for name, f in zip(names, found, strict=True))


def _difference(found: Array, expected: Array) -> float:
    scaled = np.abs(found.astype(np.float64) - expected) / np.maximum(np.abs(expected), 1.0)
    return float(np.where(np.isnan(scaled), np.inf, scaled).max(initial=0.0))


def _columns(
    features: Sequence[FeatureInput], prefix: str = "", leading: tuple[int, ...] = (EXAMPLE_ROWS,)
) -> Example:
    return {
        prefix + feature.name: torch.zeros(
            (*leading, feature.width) if feature.width else leading,
            dtype=torch.int64 if feature.kind in TABLE_KINDS else torch.float32,
        )
        for feature in features
    }


def _history(inputs: ModelInputs, model: TwoTower | DCNv2, num_rows: int) -> Example:
    if not inputs.history_length or not inputs.history():
        return {}
    leading = (num_rows, inputs.history_length)
    columns = _columns(inputs.history(), HISTORY_PREFIX, leading)
    beside = {
        HISTORY_MASK: torch.ones(leading, dtype=torch.bool),
        HISTORY_TIME: torch.zeros(leading, dtype=torch.int64),
    }
    return columns | {name: beside[name] for name in read_of(model.history)}


def _export(
    module: nn.Module,
    example: Example,
    outputs: Sequence[str],
    path: Path,
    pairs: Collection[str] = (),
) -> None:
    """Write a module; where columns of `pairs` are among others, those have rows of their own."""
    rows = torch.export.Dim("batch", min=1)
    owned = torch.export.Dim("pairs", min=1) if OWNER in pairs else rows
    with _quiet():
        exported = torch.onnx.export(
            module.eval(),
            (),
            kwargs={"batch": example},
            dynamo=True,
            dynamic_shapes={
                "batch": {name: {0: owned if name in pairs else rows} for name in example}
            },
            input_names=list(example),
            output_names=list(outputs),
            opset_version=OPSET,
            verbose=False,
        )
    program = cast(torch.onnx.ONNXProgram, exported)
    weights = [value.const_value for value in program.model.graph.initializers.values()]
    num_bytes = sum(weight.nbytes for weight in weights if weight is not None)
    if num_bytes >= MAX_BYTES:
        raise ValueError(
            f"{path.name}: {num_bytes:,} bytes of weights, an ONNX file holds less than "
            f"{MAX_BYTES:,}; lower `embedding_dim` or raise `min_count` of the id features"
        )
    model = query_once(_stripped(program.model_proto))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what the exporter notes for its developers, such as paths and line numbers."""
    graph = model.graph
    graph.ClearField("value_info")
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings and remarks of the exporter; errors still pass.

    Garbage collection waits: the exporter parses Python, and on 3.11 a finalizer that runs inside
    the parser can end it with "AST constructor recursion depth mismatch".
    """
    collecting = gc.isenabled()
    gc.disable()
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if collecting:
                gc.enable()
