"""Content vectors of items: an items table in, the same table with a column of vectors out.

The table is read, and written as Parquet; every other column comes out as it was, so that the
result is an items table again, and a second encoder can add a second column.

Shapes: B rows of a batch, N items, D width of the vectors.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twotower.data.columns import to_ids
from twotower.data.files import read_raw
from twotower.data.raw_table import NUM_EXAMPLES, ColumnFault, describe, sum_up
from twotower.data.schema import DataError
from twotower.data.text_kind import infer
from twotower.serving.encoder import Encoder
from twotower.serving.encoder_inputs import EncoderInputs

log = logging.getLogger(__name__)

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What was written.

    Args:
        path: The Parquet file.
        num_items: N.
        num_missing: Items without a vector: what the encoder looks at is null there.
        width: D.
    """

    path: Path
    num_items: int
    num_missing: int
    width: int


def read_items(location: str, *, item_id: str, vector: str) -> pa.Table:
    """An items table to which a column of vectors can be added.

    Args:
        location: File, pattern or folder.
        item_id: Column of the ids.
        vector: Name of the new column.

    Raises:
        DataError: When it cannot be read, is empty, lacks ids or has such a column.
    """
    raw = read_raw(location)
    names = raw.data.column_names
    problems = []
    if item_id not in names:
        problems.append(
            f"{location}: column `{item_id}` is missing; available: {', '.join(names)}; if it is "
            "one of these, say item_id=<name>"
        )
    if vector in names:
        problems.append(
            f"{location}: there is a column `{vector}` already; say vector=<name> for a new one"
        )
    if raw.data.num_rows == 0:
        problems.append(f"{location}: the table is empty; at least one row is needed")
    if problems:
        raise DataError(problems)
    columns = {name: raw.data.column(name) for name in names}
    columns = {n: infer(c) if n in raw.text else c for n, c in columns.items()}
    ids = to_ids(raw.data.column(item_id), text=item_id in raw.text)
    faults = [ColumnFault(name=item_id, source=item_id, fault=fault) for fault in ids.faults]
    if faults:
        raise DataError([describe(raw, sum_up(raw, fault)) for fault in faults])
    return pa.table(columns | {item_id: ids.values})


def embed_items(
    items: pa.Table,
    encoder: Encoder,
    inputs: EncoderInputs,
    *,
    item_id: str,
    batch_size: int,
    progress: bool = False,
) -> pa.LargeListArray:
    """Vectors of all items; null where something that the encoder looks at is null.

    Args:
        items: N rows.
        encoder: Gives the vectors.
        inputs: Makes its inputs out of rows.
        item_id: Column of the ids, for messages.
        batch_size: Items at a time.
        progress: Whether a progress bar is shown.

    Raises:
        ValueError: When the batch size is below 1, a column is missing or does not fit, all rows
            lack something, or a vector is not finite.
    """
    from tqdm import tqdm

    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    columns = dict(inputs.columns(encoder.inputs))
    absent = sorted(set(columns.values()) - set(items.column_names))
    if absent:
        takes = ", ".join(f"{node} from `{columns[node.name]}`" for node in encoder.inputs)
        raise ValueError(
            f"no column {', '.join(absent)}; available: {', '.join(items.column_names)}; the model "
            f"takes {takes}"
        )
    present = np.ones(items.num_rows, bool)
    for name in columns.values():
        present &= pc.is_valid(items.column(name)).to_numpy()
    rows = np.flatnonzero(present)
    if not len(rows):
        raise ValueError(f"every row lacks {' or '.join(columns.values())}: nothing to embed")
    size = encoder.batch_size or batch_size
    vectors: Vectors | None = None
    starts = range(0, len(rows), size)
    for start in tqdm(starts, desc="embed", unit="batch", disable=not progress):
        batch = items.take(pa.array(rows[start : start + size]))
        found = encoder(inputs.feeds(batch, encoder.inputs))  # (B, D)
        _check_finite(found, batch.column(item_id))
        if vectors is None:
            vectors = np.empty((len(rows), found.shape[1]), np.float32)
        vectors[start : start + len(found)] = found
    return _lists(vectors, present)


def write_vectors(
    items: pa.Table, vectors: pa.LargeListArray, *, vector: str, path: Path
) -> Embedded:
    """Write the table with its new column beside `path` and rename it into place.

    Args:
        items: N rows.
        vectors: Their vectors (N).
        vector: Name of the new column.
        path: The Parquet file; what was there before is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(items.append_column(vector, vectors), unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Embedded(
        path=path,
        num_items=len(vectors),
        num_missing=vectors.null_count,
        width=pc.max(pc.list_value_length(vectors)).as_py(),
    )


def _check_finite(vectors: Vectors, ids: pa.ChunkedArray) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        some = ", ".join(
            str(item) for item in ids.take(pa.array(broken[:NUM_EXAMPLES])).to_pylist()
        )
        raise ValueError(f"the model gives NaN or infinity for items such as {some}")


def _lists(vectors: Vectors | None, present: npt.NDArray[np.bool_]) -> pa.LargeListArray:
    """One list an item (N), null where it is not present; vectors (P, D) of those that are."""
    flat = np.empty((0, 0), np.float32) if vectors is None else vectors
    offsets = np.concatenate([[0], np.cumsum(present * flat.shape[1])]).astype(np.int64)
    mask = pa.array(~present)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat.ravel()), mask=mask)
