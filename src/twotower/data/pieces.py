"""A long table as pieces of files that can be read alone, by several workers at a time.

Parquet is read by row groups and Arrow by batches. CSV cannot be entered in the middle, because a
line break may stand between quotes: it is read once from front to back and set down as Arrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from twotower.data.files import (
    arrow_batches,
    concatenate,
    file_format,
    find_files,
    partition_keys,
    plain,
    reading,
    reading_csv,
    with_keys,
)
from twotower.data.raw_table import Piece, RawPieces, RawTable
from twotower.data.schema import DataError
from twotower.data.workers import Scratch


@dataclass(frozen=True, kw_only=True)
class FilePiece:
    """Some row groups of a Parquet file or some batches of an Arrow file.

    Args:
        location: What the user wrote, for messages.
        path: The file that is read.
        kind: ``parquet`` or ``arrow``.
        groups: First row group or batch, and the one after the last.
        name: Name of the file in messages.
        first: Rows of the file that stand before these.
        keys: Columns that the folders of the file tell.
        schema: Columns of the whole table.
        text: Those whose type is read off the values.
    """

    location: str
    path: Path
    kind: str
    groups: tuple[int, int]
    name: str
    first: int
    keys: Mapping[str, str | None]
    schema: pa.Schema
    text: frozenset[str]

    def read(self) -> RawTable:
        """See `Piece`."""
        with reading(self.path, self.kind):
            table = with_keys(plain(self._read()), self.keys)
        whole = pa.concat_tables([self.schema.empty_table(), table], promote_options="permissive")
        return RawTable(
            location=self.location,
            data=whole,
            text=self.text,
            parts=((self.name, whole.num_rows),),
            first=self.first,
        )

    def _read(self) -> pa.Table:
        if self.kind == "parquet":
            with pq.ParquetFile(self.path) as file:
                return file.read_row_groups(range(*self.groups), use_threads=False)
        with arrow_batches(self.path) as held:
            chosen = list(islice(held.batches, *self.groups))
            return pa.Table.from_batches(chosen, held.schema)


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """A file with the number of rows of every group."""

    path: Path
    kind: str
    schema: pa.Schema
    lengths: Sequence[int]
    keys: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        return sum(self.lengths)

    def header(self) -> pa.Table:
        return with_keys(plain(self.schema.empty_table()), self.keys)

    def stretches(self, rows_per_block: int) -> Iterator[tuple[tuple[int, int], int]]:
        """Groups that are read together, and how many rows stand before them."""
        begin, before, rows = 0, 0, 0
        for place, length in enumerate(self.lengths):
            if rows and rows + length > rows_per_block:
                yield (begin, place), before
                begin, before, rows = place, before + rows, 0
            rows += length
        if rows:
            yield (begin, len(self.lengths)), before


def list_pieces(location: str, scratch: Scratch) -> RawPieces:
    """The pieces of a file, a pattern or a folder.

    Args:
        location: What the user wrote.
        scratch: Where CSV is set down as Arrow, and how long a piece may be.

    Raises:
        DataError: When there is no such file, or one is of an unknown format or damaged.
    """
    files = find_files(location)
    listed: list[_Listed] = []
    text: set[str] = set()
    problems: list[str] = []
    for number, path in enumerate(files.paths):
        try:
            one = _list(path, scratch, number)
        except DataError as error:
            problems += error.problems
            continue
        keys = partition_keys(path.relative_to(files.base), one.schema.names)
        listed.append(
            _Listed(path=one.path, kind=one.kind, schema=one.schema, lengths=one.lengths, keys=keys)
        )
        text |= set((*one.schema.names, *keys) if file_format(path) == "csv" else keys)
    if problems:
        raise DataError(problems)
    names = [path.relative_to(files.base).as_posix() for path in files.paths]
    parts = tuple((name, one.num_rows) for name, one in zip(names, listed, strict=True))
    header = concatenate(location, [one.header() for one in listed], parts)
    empty = RawTable(location=location, data=header, text=frozenset(text), parts=parts)
    pieces: list[Piece] = [
        FilePiece(
            location=location,
            path=one.path,
            kind=one.kind,
            groups=groups,
            name=name,
            first=first,
            keys=one.keys,
            schema=header.schema,
            text=frozenset(text),
        )
        for name, one in zip(names, listed, strict=True)
        for groups, first in one.stretches(scratch.budget.rows_per_block)
    ]
    return RawPieces(
        location=location, data=header, text=empty.text, parts=parts, pieces=pieces or [empty]
    )


def _list(path: Path, scratch: Scratch, number: int) -> _Listed:
    kind = file_format(path)
    with reading(path, kind):
        if kind == "parquet":
            with pq.ParquetFile(path) as file:
                groups = range(file.metadata.num_row_groups)
                lengths = [file.metadata.row_group(group).num_rows for group in groups]
                return _Listed(path=path, kind=kind, schema=file.schema_arrow, lengths=lengths)
        if kind == "arrow":
            with arrow_batches(path) as held:
                lengths = [len(batch) for batch in held.batches]
                return _Listed(path=path, kind=kind, schema=held.schema, lengths=lengths)
        return _set_down(
            path, scratch.folder / f"text-{number:06}.arrow", scratch.budget.rows_per_block
        )


def _set_down(path: Path, target: Path, rows_per_block: int) -> _Listed:
    """A CSV file as an Arrow file of text."""
    lengths = []
    with reading_csv(path) as reader, pa.OSFile(str(target), "wb") as sink:
        with ipc.new_file(sink, reader.schema) as writer:
            for block in _gathered(reader, rows_per_block):
                writer.write_batch(block)
                lengths.append(len(block))
        return _Listed(path=target, kind="arrow", schema=reader.schema, lengths=lengths)


def _gathered(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of at least so many rows, but for the last."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= rows:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)
