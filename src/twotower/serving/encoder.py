"""An encoder of texts or pictures in ONNX Runtime: rows of inputs to vectors.

Shapes: B rows of a batch, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

Array = npt.NDArray[Any]

DTYPES: dict[str, type] = {
    "tensor(string)": np.object_,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
REFUSALS = (
    *(errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf),
    *(errors.NotImplemented, errors.RuntimeException),
)


@dataclass(frozen=True, kw_only=True)
class EncoderInput:
    """What an encoder takes.

    Args:
        name: Of the input.
        dtype: Of its values; objects for text.
        shape: Sizes after the first, which is that of the batch; None where any is taken.
    """

    name: str
    dtype: type
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in ("B", *self.shape))
        kind = "text" if self.dtype is np.object_ else self.dtype.__name__
        return f"`{self.name}` ({sizes}) {kind}"


class Encoder:
    """An encoder that somebody exported to ONNX.

    Args:
        path: The ``.onnx`` file.
        output: Which output holds the vectors; None for the only one of shape (B, D).

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no model, takes what tables do not hold, or it is not clear which
            output holds the vectors.
    """

    def __init__(self, path: Path, *, output: str | None = None) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=onnxruntime.get_available_providers()
            )
        except (*REFUSALS, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read as an ONNX model: {error}") from error
        self.path = path
        self.inputs = tuple(self._input(node) for node in self._session.get_inputs())
        if not self.inputs:
            raise ValueError(f"{path}: the model takes no input; an encoder needs at least one")
        self._output = self._chosen(output)

    def __call__(self, feeds: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """Vectors (B, D) of inputs (B, ...) by name.

        Raises:
            ValueError: When the model refuses the inputs, or gives something else than vectors.
        """
        rows = len(next(iter(feeds.values())))
        try:
            (vectors,) = self._session.run([self._output], dict(feeds))
        except REFUSALS as error:
            given = ", ".join(f"`{name}` {array.shape}" for name, array in feeds.items())
            raise ValueError(f"{self.path}: the model refuses {given}: {error}") from error
        if vectors.ndim != 2 or len(vectors) != rows:
            raise ValueError(
                f"{self.path}: output `{self._output}` must hold one vector a row, ({rows}, D), "
                f"got {vectors.shape}"
            )
        return np.asarray(vectors, np.float32)

    def _input(self, node: Any) -> EncoderInput:  # noqa: ANN401 - ONNX Runtime has no types
        if node.type not in DTYPES:
            raise ValueError(
                f"{self.path}: input `{node.name}` is {node.type}; allowed: {', '.join(DTYPES)}"
            )
        sizes = [size if isinstance(size, int) else None for size in node.shape]
        if sizes and sizes[0] not in (None, 1):
            raise ValueError(
                f"{self.path}: input `{node.name}` takes {sizes[0]} rows at a time; export the "
                "model with a first dimension that is free, or 1"
            )
        return EncoderInput(name=node.name, dtype=DTYPES[node.type], shape=tuple(sizes[1:]))

    @property
    def batch_size(self) -> int | None:
        """1 where the model takes one row at a time, else None."""
        one = any(node.shape and node.shape[0] == 1 for node in self._session.get_inputs())
        return 1 if one else None

    def _chosen(self, output: str | None) -> str:
        nodes = {str(node.name): node for node in self._session.get_outputs()}
        vectors = [n for n, node in nodes.items() if node.shape and len(node.shape) == 2]
        name = vectors[0] if output is None and len(vectors) == 1 else output
        if name is not None and name in nodes:
            return name
        shown = ", ".join(f"{name} {node.shape}" for name, node in nodes.items())
        raise ValueError(
            f"{self.path}: which output holds the vectors? Got tensor="
            f"{'null' if output is None else output}; outputs: {shown}"
        )
