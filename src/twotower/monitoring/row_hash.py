"""A hash of every row of a table, so that equal rows are found without keeping them.

A column is hashed through its distinct values, which are far fewer than the rows, or by its bits
where it holds numbers; the columns of a row are mixed one after another. The mixing is the
finaliser of SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
NULL = np.uint64(0x5851F42D4C957F2D)


def row_hashes(rows: pa.Table) -> Hashes:
    """64-bit hashes (R,) that are equal for rows that are equal in every column.

    Args:
        rows: R rows; the hash depends on the names and order of the columns alone beside them.
    """
    hashes = np.zeros(rows.num_rows, np.uint64)
    for name in rows.column_names:
        hashes = mixed(hashes ^ column_hashes(rows.column(name)))
    return hashes


def column_hashes(column: pa.ChunkedArray) -> Hashes:
    """Hash of every value of a column (R,)."""
    values = column.combine_chunks()
    kind = values.type
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif pa.types.is_temporal(kind):
        values = values.view(pa.int64() if kind.bit_width == 64 else pa.int32())
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return _of_numbers(values)
    if pa.types.is_nested(kind):
        texts = pa.array([None if v is None else repr(v) for v in values.to_pylist()], pa.string())
        values = texts
    encoded = values.dictionary_encode()
    known = np.append(text_hashes(encoded.dictionary), NULL)
    codes = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return np.asarray(known[codes])


def text_hashes(texts: pa.Array) -> Hashes:
    """64-bit hash of every text (V,), the same in every process.

    Multilinear: the bytes times a fixed random number for every place, summed modulo 2^64 (Lemire
    and Kaser, "Strongly universal string hashing is fast", 2014).

    Args:
        texts: V texts, none of them null.
    """
    if not len(texts):
        return np.empty(0, np.uint64)
    stored = texts.cast(pa.large_binary())
    _, where, letters = stored.buffers()
    bounds = np.frombuffer(where, np.int64)[stored.offset : stored.offset + len(stored) + 1]
    lengths = np.diff(bounds)
    hashes = lengths.astype(np.uint64)
    if lengths.sum():
        joined = np.frombuffer(letters, np.uint8)[bounds[0] : bounds[-1]]
        starts = bounds[:-1] - bounds[0]
        places = np.arange(len(joined)) - np.repeat(starts, lengths)
        factors = mixed(np.arange(lengths.max(), dtype=np.uint64))
        terms = (joined.astype(np.uint64) + np.uint64(1)) * factors[places]
        filled = lengths > 0
        hashes[filled] += np.add.reduceat(terms, starts[filled])
    return mixed(hashes)


def mixed(hashes: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the hash."""
    z: Any = hashes + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def _of_numbers(values: pa.Array) -> Hashes:
    missing = values.is_null().to_numpy(zero_copy_only=False)
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    if numbers.dtype.kind == "f":
        numbers = numbers.astype(np.float64)
        bits = np.where(np.isnan(numbers), np.nan, numbers + 0.0).view(np.uint64)  # -0 is 0
    else:
        bits = numbers.astype(np.int64).view(np.uint64)
    return np.where(missing, NULL, mixed(bits))
