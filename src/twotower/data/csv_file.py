"""One CSV file: all columns as text; rows of another length than the header by their numbers."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from twotower.data.raw_table import NUM_EXAMPLES, count_rows
from twotower.data.schema import DataError

log = logging.getLogger(__name__)

CSV_BLOCK = 1 << 24  # bytes


@contextmanager
def reading_csv(path: Path) -> Iterator[pacsv.CSVStreamingReader]:
    """All columns as text, nothing as null; quoted line breaks are allowed."""
    with io.TextIOWrapper(pa.input_stream(str(path)), encoding="utf-8-sig", newline="") as stream:
        header = next(csv.reader(stream), [])
    if not header:
        raise DataError([f"{path}: the file is empty; a header and at least one row are needed"])
    if "" in header:
        log.warning("%s: column %d has no name and is left out", path, header.index("") + 1)
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()),
        include_columns=[name for name in header if name] if "" in header else None,
        null_values=[""],
        strings_can_be_null=True,
    )
    parse = pacsv.ParseOptions(newlines_in_values=True)
    read = pacsv.ReadOptions(block_size=CSV_BLOCK)
    try:
        with pacsv.open_csv(path, read, parse, convert) as reader:
            yield reader
    except pa.ArrowInvalid as error:
        ragged = _ragged_rows(path, convert)
        if not ragged:
            raise
        first = ", ".join(str(row) for row in ragged[:NUM_EXAMPLES])
        problem = (
            f"{path}: {count_rows(len(ragged))} with more or fewer cells than the header, at data "
            f"row {first} (from 1, header not counted); allowed: {len(header)} cells a row"
        )
        raise DataError([problem]) from error


def _ragged_rows(path: Path, convert: pacsv.ConvertOptions) -> list[int]:
    """Data rows whose number of cells is not that of the header, from 1."""
    rows: list[int] = []

    def skip(row: pacsv.InvalidRow) -> str:
        rows.append(row.number - 1)  # the header is row 1
        return "skip"

    parse = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
    in_order = pacsv.ReadOptions(use_threads=False, block_size=CSV_BLOCK)  # then rows are numbered
    try:
        with pacsv.open_csv(path, in_order, parse, convert) as reader:
            for _ in reader:
                pass
    except pa.ArrowInvalid:
        return []
    return rows
