"""Rows of an items table as an encoder takes them: columns as they are, or pictures from files.

Shapes: B rows of a batch, H and W height and width of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.schema import DataError
from twotower.serving.encoder import EncoderInput

Array = npt.NDArray[Any]

NUM_EXAMPLES = 5
COLOURS = 3


class EncoderInputs(Protocol):
    """Makes the inputs of an encoder out of rows of a table."""

    def columns(self, inputs: Sequence[EncoderInput]) -> Mapping[str, str]:
        """Column that each input of an encoder is read from.

        Raises:
            ValueError: When the encoder takes something else.
        """

    def feeds(self, rows: pa.Table, inputs: Sequence[EncoderInput]) -> dict[str, Array]:
        """Inputs (B, ...) by name for rows (B) in which none of these columns is null.

        Raises:
            ValueError: When the rows do not hold what the encoder takes.
        """


@dataclass(frozen=True, kw_only=True)
class ColumnInputs:
    """Texts, numbers and lists of numbers, straight from columns.

    Args:
        names: Input of the encoder to column of the table; an input that is not named is read from
            the column of its own name, and so are all of them when this is None.
    """

    names: Mapping[str, str] | None = None

    def columns(self, inputs: Sequence[EncoderInput]) -> Mapping[str, str]:
        """See `EncoderInputs`."""
        names = self.names or {}
        unknown = set(names) - {node.name for node in inputs}
        if unknown:
            raise ValueError(
                f"encoder_input.names: the model has no input {', '.join(sorted(unknown))}; its "
                f"inputs: {', '.join(map(str, inputs))}"
            )
        return {node.name: names.get(node.name, node.name) for node in inputs}

    def feeds(self, rows: pa.Table, inputs: Sequence[EncoderInput]) -> dict[str, Array]:
        """See `EncoderInputs`."""
        columns = self.columns(inputs)
        return {node.name: _array(rows.column(columns[node.name]), node) for node in inputs}


def _array(column: pa.ChunkedArray, node: EncoderInput) -> Array:
    """A column (B) as an input (B), (B, 1) or, of lists, (B, width)."""
    values = column.combine_chunks()
    shape = (len(values), *(1,) * len(node.shape))
    if isinstance(values, pa.FixedSizeListArray):
        values = values.cast(pa.list_(values.type.value_type))
    if isinstance(values, pa.ListArray | pa.LargeListArray):
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if len(lengths) != 1:
            raise ValueError(
                f"{node} needs lists of one length, got lengths {min(lengths)} to {max(lengths)}"
            )
        shape, values = (len(values), lengths[0]), pc.list_flatten(values)
    text = node.dtype is np.object_
    try:
        flat = values.cast(pa.string() if text else pa.from_numpy_dtype(node.dtype))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{node} cannot be read from a {column.type}: {error}") from error
    return np.asarray(flat.to_numpy(zero_copy_only=False), node.dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class ImageInputs:
    """Pictures from files, in colour, scaled to cover the size and cut to its middle.

    Values are ``(v / 255 - mean) / std`` of red, green and blue, which come first or last as the
    encoder has it.

    Args:
        column: Paths of the pictures.
        root: Folder that paths are relative to.
        size: Height and width; None for those of the encoder.
        mean: Of each colour, from 0 to 1.
        std: Of each colour, above 0.

    Raises:
        ValueError: When a setting is out of range.
    """

    column: str
    root: str = "."
    size: Sequence[int] | None = None
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        problems = [
            f"`{name}` must be {COLOURS} numbers, got {list(values)}"
            for name, values in (("mean", self.mean), ("std", self.std))
            if len(values) != COLOURS
        ]
        if min(self.std, default=1) <= 0:
            problems.append(f"`std` must be above 0, got {list(self.std)}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            problems.append(f"`size` must be height and width, got {list(self.size)}")
        if problems:
            raise ValueError("\n".join(f"encoder_input: {problem}" for problem in problems))

    def columns(self, inputs: Sequence[EncoderInput]) -> Mapping[str, str]:
        """See `EncoderInputs`."""
        self._layout(inputs)
        return {inputs[0].name: self.column}

    def feeds(self, rows: pa.Table, inputs: Sequence[EncoderInput]) -> dict[str, Array]:
        """See `EncoderInputs`."""
        size, first = self._layout(inputs)
        paths = [Path(self.root) / str(path) for path in rows.column(self.column).to_pylist()]
        with ThreadPoolExecutor() as pool:
            read = list(pool.map(lambda path: _picture(path, size), paths))
        broken = [text for text in read if isinstance(text, str)]
        if broken:
            further = f"; {len(broken)} in this batch" if len(broken) > NUM_EXAMPLES else ""
            raise DataError([text + further for text in broken[:NUM_EXAMPLES]])
        pictures = np.stack([p for p in read if not isinstance(p, str)])  # (B, H, W, 3)
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        values = (pictures.astype(np.float32) / 255 - mean) / std
        ordered = values.transpose(0, 3, 1, 2) if first else values
        return {inputs[0].name: np.ascontiguousarray(ordered)}

    def _layout(self, inputs: Sequence[EncoderInput]) -> tuple[tuple[int, int], bool]:
        """Height and width, and whether the colours come before them."""
        node = inputs[0]
        shape = node.shape
        if len(inputs) != 1 or len(shape) != 3 or node.dtype is not np.float32:
            raise ValueError(
                "pictures need a model with one input of shape (B, 3, H, W) or (B, H, W, 3) and "
                f"type float32; its inputs: {', '.join(map(str, inputs))}"
            )
        if COLOURS not in (shape[0], shape[2]):
            raise ValueError(f"{node}: the first or the last of its sizes must be {COLOURS}")
        first = shape[0] == COLOURS
        own = shape[1:] if first else shape[:2]
        wanted = own if self.size is None else tuple(self.size)
        fits = all(size in (None, given) for size, given in zip(own, wanted, strict=True))
        if None in wanted or not fits:
            given = "null" if self.size is None else list(self.size)
            raise ValueError(f"encoder_input.size: got {given}; the model takes {node}")
        return (int(wanted[0] or 0), int(wanted[1] or 0)), first


def _picture(path: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8] | str:
    """A picture (H, W, 3), or why there is none."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            fitted = ImageOps.fit(upright, size[::-1], method=Image.Resampling.BICUBIC)
            return np.asarray(fitted, np.uint8)
    except FileNotFoundError:
        return f"{path}: no such picture"
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        return f"{path}: cannot be read as a picture: {error}"
