"""Towers and ranker as ONNX, for a runtime without torch, and the proof that they say the same.

Inputs are called as the features are, ``history.<item feature>`` and ``history.mask`` included; the
first dimension of all of them is free. Ids are int64, numbers float32, masks bool.

Shapes: B rows of a batch, D width of the vectors.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from twotower.features.spec import (
    HISTORY_MASK,
    HISTORY_PREFIX,
    RETRIEVAL_SCORE,
    TABLE_KINDS,
    FeatureInput,
    ModelInputs,
)
from twotower.losses.ranking import undo_sampling
from twotower.models.dcn import DCNv2
from twotower.models.two_tower import TwoTower

OPSET = 20
VECTOR, LOGIT, PROBABILITY = "vector", "logit", "probability"
MAX_BYTES = 2**31  # of one protobuf message
EXAMPLE_ROWS = 2  # the exporter takes a batch of 1 for a constant
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
    """The ranker with the sampling of negatives undone.

    Args:
        model: The ranker.
        negative_rate: Share of the negatives that it was trained on.
    """

    def __init__(self, model: DCNv2, negative_rate: float) -> None:
        super().__init__()
        self.model = model
        self.negative_rate = negative_rate

    def forward(self, batch: Example) -> tuple[Tensor, Tensor]:
        """Logits ``(B,)`` as trained and probabilities ``(B,)``."""
        logits: Tensor = self.model(batch)
        return logits, undo_sampling(logits, self.negative_rate).sigmoid()


def export_query_tower(model: TwoTower, inputs: ModelInputs, path: Path) -> None:
    """Write the query tower; its output is ``vector``.

    Args:
        model: The towers.
        inputs: What they are given.
        path: The file.

    Raises:
        ValueError: When the model is too large for one file.
    """
    example = _columns(inputs.of("user", "context")) | _history(inputs)
    _export(QueryTower(model), example, [VECTOR], path)


def export_item_tower(model: TwoTower, inputs: ModelInputs, path: Path) -> None:
    """Write the item tower; its output is ``vector``.

    Args:
        model: The towers.
        inputs: What they are given.
        path: The file.

    Raises:
        ValueError: When the model is too large for one file.
    """
    _export(ItemTower(model), _columns(inputs.of("item")), [VECTOR], path)


def export_ranker(model: DCNv2, inputs: ModelInputs, path: Path, *, negative_rate: float) -> None:
    """Write the ranker; its outputs are ``logit`` and ``probability``.

    Args:
        model: The ranker.
        inputs: What it is given.
        path: The file.
        negative_rate: Share of the negatives that it was trained on, in (0, 1].

    Raises:
        ValueError: When the model is too large for one file or the rate lies outside (0, 1].
    """
    example = _columns(inputs.features) | _history(inputs)
    if model.score_scale is not None:
        example[RETRIEVAL_SCORE] = torch.zeros(EXAMPLE_ROWS)
    _export(Ranker(model, negative_rate), example, [LOGIT, PROBABILITY], path)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A model in ONNX Runtime on the CPU."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


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
    session = open_session(path)
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


def _history(inputs: ModelInputs) -> Example:
    if not inputs.history_length or not inputs.history():
        return {}
    leading = (EXAMPLE_ROWS, inputs.history_length)
    columns = _columns(inputs.history(), HISTORY_PREFIX, leading)
    return columns | {HISTORY_MASK: torch.ones(leading, dtype=torch.bool)}


def _export(module: nn.Module, example: Example, outputs: Sequence[str], path: Path) -> None:
    weights = {id(p): p.numel() * p.element_size() for p in module.parameters()}
    if sum(weights.values()) >= MAX_BYTES:
        raise ValueError(
            f"{path.name}: the model has {sum(weights.values()):,} bytes of weights, an ONNX file "
            f"holds less than {MAX_BYTES:,}; lower the widths of the embeddings or raise min_count"
        )
    rows = torch.export.Dim("batch", min=1)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (),
                kwargs={"batch": example},
                dynamo=True,
                dynamic_shapes={"batch": {name: {0: rows} for name in example}},
                input_names=list(example),
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        for part, training in modes.items():
            part.training = training
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    path.write_bytes(_stripped(program.model_proto).SerializeToString(deterministic=True))


def _stripped(model: Any) -> Any:
    """Without what the exporter notes for its developers, such as paths and line numbers."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    onnx.checker.check_model(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings and remarks of the exporter; errors still pass."""
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
