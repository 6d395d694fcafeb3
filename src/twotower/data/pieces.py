"""A long table as pieces of files that can be read alone, by several workers at a time.

Parquet is read by row groups and Arrow by batches; short ones are read together, also those of
several files, and a long one is cut. CSV cannot be entered in the middle, because a line break may
stand between quotes: it is read once from front to back and set down as Arrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from twotower.data.csv_file import reading_csv
from twotower.data.files import (
    arrow_batches,
    concatenate,
    file_format,
    find_files,
    partition_keys,
    plain,
    reading,
    with_keys,
)
from twotower.data.raw_table import Piece, RawPieces, RawTable
from twotower.data.schema import DataError
from twotower.data.workers import Scratch


@dataclass(frozen=True, kw_only=True)
class FileRows:
    """Rows of one file: some row groups of Parquet or batches of Arrow, or a cut of one of them.

    Args:
        path: The file that is read.
        kind: ``parquet`` or ``arrow``.
        groups: First row group or batch, and the one after the last.
        cut: Rows of these groups that do not count, and how many do.
        name: Name of the file in messages.
        first: Rows of the file that stand before these.
        keys: Columns that the folders of the file tell.
    """

    path: Path
    kind: str
    groups: tuple[int, int]
    cut: tuple[int, int]
    name: str
    first: int
    keys: Mapping[str, str | None] = field(default_factory=dict)

    def read(self) -> pa.Table:
        """The rows.

        Raises:
            DataError: When the file is damaged.
        """
        with reading(self.path, self.kind):
            if self.kind == "parquet":
                with pq.ParquetFile(self.path) as file:
                    groups, size = range(*self.groups), self.cut[1]
                    batches = file.iter_batches(size, row_groups=groups, use_threads=False)
                    table = _cut(batches, file.schema_arrow, self.cut)
            else:
                with arrow_batches(self.path) as held:
                    batches = islice(held.batches, *self.groups)
                    table = _cut(batches, held.schema, self.cut)
            return with_keys(plain(table), self.keys)


@dataclass(frozen=True, kw_only=True)
class FilePiece:
    """Rows of one file or of several that follow one another.

    Args:
        location: What the user wrote, for messages.
        rows: The rows of each file.
        schema: Columns of the whole table.
        text: Those whose type is read off the values.
    """

    location: str
    rows: tuple[FileRows, ...]
    schema: pa.Schema
    text: frozenset[str]

    def read(self) -> RawTable:
        """See `Piece`."""
        tables = [rows.read() for rows in self.rows]
        parts = [(rows.name, len(table)) for rows, table in zip(self.rows, tables, strict=True)]
        empty = self.schema.empty_table()
        return RawTable(
            location=self.location,
            data=pa.concat_tables([empty, *tables], promote_options="permissive"),
            text=self.text,
            parts=tuple(parts),
            first=self.rows[0].first,
        )


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

    def stretches(self, name: str, rows_per_block: int) -> Iterator[FileRows]:
        """The rows, so many at most at a time; groups are only cut where they are longer."""
        starts = [*accumulate(self.lengths, initial=0)]
        begin = 0
        for end in range(1, len(starts)):
            is_last = end + 1 == len(starts)
            if not is_last and starts[end + 1] - starts[begin] <= rows_per_block:
                continue
            for before in range(starts[begin], starts[end], rows_per_block):
                yield FileRows(
                    path=self.path,
                    kind=self.kind,
                    groups=(begin, end),
                    cut=(before - starts[begin], min(rows_per_block, starts[end] - before)),
                    name=name,
                    first=before,
                    keys=self.keys,
                )
            begin = end


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
        listed.append(replace(one, keys=keys))
        text |= set((*one.schema.names, *keys) if file_format(path) == "csv" else keys)
    if problems:
        raise DataError(problems)
    names = [path.relative_to(files.base).as_posix() for path in files.paths]
    parts = tuple((name, one.num_rows) for name, one in zip(names, listed, strict=True))
    header = concatenate(location, [one.header() for one in listed], parts)
    size = scratch.budget.rows_per_block
    stretches = (
        rows for name, one in zip(names, listed, strict=True) for rows in one.stretches(name, size)
    )
    pieces: list[Piece] = [
        FilePiece(location=location, rows=rows, schema=header.schema, text=frozenset(text))
        for rows in _together(stretches, size)
    ]
    empty = RawTable(location=location, data=header, text=frozenset(text), parts=parts)
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
        text = scratch.folder / f"text-{number:06}.arrow"
        return _set_down(path, text, scratch.budget.rows_per_block)


def _set_down(path: Path, target: Path, rows_per_block: int) -> _Listed:
    """A CSV file as an Arrow file of text."""
    lengths = []
    with reading_csv(path) as reader, pa.OSFile(str(target), "wb") as sink:
        with ipc.new_file(sink, reader.schema) as writer:
            for batch in reader:
                for start in range(0, len(batch), rows_per_block):
                    writer.write_batch(batch.slice(start, rows_per_block))
                    lengths.append(min(rows_per_block, len(batch) - start))
        return _Listed(path=target, kind="arrow", schema=reader.schema, lengths=lengths)


def _together(stretches: Iterable[FileRows], size: int) -> Iterator[tuple[FileRows, ...]]:
    """Stretches of files that follow one another and are together no longer than one block."""
    waiting: list[FileRows] = []
    for rows in stretches:
        is_full = sum(one.cut[1] for one in waiting) + rows.cut[1] > size
        if waiting and (is_full or rows.first):
            yield tuple(waiting)
            waiting = []
        waiting.append(rows)
    if waiting:
        yield tuple(waiting)


def _cut(batches: Iterable[pa.RecordBatch], schema: pa.Schema, cut: tuple[int, int]) -> pa.Table:
    """So many rows after so many others; what lies before is let go of at once."""
    skip, missing = cut
    chosen = []
    for batch in batches:
        rows = batch.slice(skip, missing)
        skip = max(0, skip - len(batch))
        missing -= len(rows)
        chosen += [rows] if len(rows) else []
        if not missing:
            break
    return pa.Table.from_batches(chosen, schema)
