"""Files to a raw table: Parquet, CSV or Arrow; one file, a pattern, or a folder.

`read_raw` reads a table at once; `twotower.data.pieces` lists the pieces of one that is too long.

A folder is read with all its files in the order of their names; folders called ``key=value`` inside
it give a column (hive partitions). CSV is read as text and typed later, column by column, so that
one bad cell is found by its row and ids above 2^53 stay exact.
"""

from __future__ import annotations

import csv
import difflib
import errno
import glob
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from twotower.data.columns import decode
from twotower.data.csv_file import reading_csv
from twotower.data.raw_table import NUM_EXAMPLES, RawTable
from twotower.data.schema import DataError

log = logging.getLogger(__name__)

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
ENDINGS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of one table, in the order of their rows.

    Args:
        base: Folder that names of files are given relative to.
        paths: The files.
    """

    base: Path
    paths: tuple[Path, ...]


def read_raw(location: str) -> RawTable:
    """Read a file, a pattern or a folder.

    Raises:
        DataError: When there is no such file, or one is of an unknown format or damaged.
    """
    files = find_files(location)
    tables: list[pa.Table] = []
    text: set[str] = set()
    problems: list[str] = []
    for path in files.paths:
        try:
            table = _read_file(path)
        except DataError as error:
            problems += error.problems
            continue
        keys = partition_keys(path.relative_to(files.base), table.column_names)
        table = with_keys(table, keys)
        text |= set(table.column_names if file_format(path) == "csv" else keys)
        tables.append(table)
    if problems:
        raise DataError(problems)
    names = [path.relative_to(files.base).as_posix() for path in files.paths]
    parts = tuple((name, len(table)) for name, table in zip(names, tables, strict=True))
    data = concatenate(location, tables, parts)
    return RawTable(location=location, data=data, text=frozenset(text), parts=parts)


def find_files(location: str) -> Files:
    """The files of a table in the order of their names; hidden ones in folders do not count."""
    path = Path(location).expanduser()
    if path.is_file():
        found = Files(base=path.parent, paths=(path,))
    elif path.is_dir():
        found = Files(base=path, paths=_inside(path))
    else:
        matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise DataError([f"{location}: no such file or folder; {_neighbours(path)}"])
        fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
        paths = [p for match in matches for p in (_inside(match) if match.is_dir() else (match,))]
        found = Files(base=Path(*fixed), paths=tuple(dict.fromkeys(paths)))
    unknown = [str(p) for p in found.paths if not file_format(p)]
    formats = {file_format(p) for p in found.paths}
    allowed = f"allowed: {', '.join(ENDINGS)}"
    if not found.paths:
        raise DataError([f"{location}: a folder without a table; {allowed}"])
    if unknown:
        raise DataError([f"{', '.join(unknown[:NUM_EXAMPLES])}: not a supported format; {allowed}"])
    if len(formats) > 1:
        raise DataError([f"{location}: files of several formats; allowed: one format a table"])
    return found


def _inside(folder: Path) -> tuple[Path, ...]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and file_format(p))
    return tuple(p for p in found if not _hidden(p.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def file_format(path: Path) -> str:
    """Format by the ending of the name, or nothing."""
    name = path.name.lower()
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), "")


def _neighbours(path: Path) -> str:
    """What the user may have meant."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    names = sorted(p.name for p in path.parent.iterdir() if not _hidden(Path(p.name)))
    close = difflib.get_close_matches(path.name, names, n=NUM_EXAMPLES)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"{path.parent} has {', '.join(names[:NUM_EXAMPLES]) or 'no files'}"


def partition_keys(path: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Columns told by folders called ``key=value``; a column of the file itself comes first."""
    pairs = (part.split("=", 1) for part in path.parts[:-1] if "=" in part)
    values = {unquote(key): unquote(value) for key, value in pairs if unquote(key) not in names}
    return {key: None if value == HIVE_NULL else value for key, value in values.items()}


def with_keys(table: pa.Table, keys: Mapping[str, str | None]) -> pa.Table:
    """The table with the columns that its folders tell."""
    for key, value in keys.items():
        table = table.append_column(key, pa.repeat(pa.scalar(value, pa.string()), len(table)))
    return table


def concatenate(
    location: str, tables: Sequence[pa.Table], parts: Sequence[tuple[str, int]]
) -> pa.Table:
    """The rows of all files; a column that one of them lacks is null there.

    Raises:
        DataError: When the files disagree about the type of a column.
    """
    problems = [
        f"{location}: {name} has several columns called {', '.join(twice)}; allowed: a name once"
        for (name, _), table in zip(parts, tables, strict=True)
        if (twice := repeated(table.column_names))
    ]
    if problems:
        raise DataError(problems)
    names = set().union(*(table.column_names for table in tables))
    for (name, _), table in zip(parts, tables, strict=True):
        if lacking := sorted(names - set(table.column_names)):
            log.warning("%s: %s has no %s: null there", location, name, ", ".join(lacking))
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise DataError(
            [f"{location}: its files disagree about a column: {_first_line(error)}"]
        ) from error


def repeated(names: Sequence[str]) -> list[str]:
    """Names that stand there more than once.

    >>> repeated(["user_id", "item_id", "user_id"])
    ['user_id']
    """
    return [name for name, count in Counter(names).items() if count > 1]


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """What goes wrong while a file is read is said in one sentence.

    Args:
        path: The file.
        kind: Its format.

    Raises:
        DataError: When the file is damaged.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at place {error.start}"
        raise DataError(
            [f"{path}: cannot be read as {kind}: {found} is no UTF-8; save it as text in UTF-8"]
        ) from error
    except (pa.ArrowException, OSError, csv.Error) as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise  # What was read is written elsewhere at the same time.
        raise DataError([f"{path}: cannot be read as {kind}: {_first_line(error)}"]) from error


def plain(table: pa.Table) -> pa.Table:
    """The table without dictionary encoding and without remarks of whoever wrote it.

    Raises:
        ArrowInvalid: When offsets lead out of the table or text is no UTF-8.
    """
    table.validate(full=True)
    return pa.table([decode(column) for column in table.columns], names=table.column_names)


def _read_file(path: Path) -> pa.Table:
    kind = file_format(path)
    with reading(path, kind):
        return plain(READERS[kind](path))


def _read_parquet(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read()


def _read_arrow(path: Path) -> pa.Table:
    with arrow_batches(path) as held:
        return pa.Table.from_batches(list(held.batches), held.schema)


@contextmanager
def arrow_batches(path: Path) -> Iterator[ArrowBatches]:
    """The batches of the file form (also called Feather 2) or of the stream form."""
    with pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            reader = ipc.open_file(source)
            numbers = range(reader.num_record_batches)
            yield ArrowBatches(schema=reader.schema, batches=map(reader.get_batch, numbers))
        else:
            reader = ipc.open_stream(source)
            yield ArrowBatches(schema=reader.schema, batches=reader)


@dataclass(frozen=True, kw_only=True)
class ArrowBatches:
    """What an Arrow file holds.

    Args:
        schema: Its columns.
        batches: Its rows, some at a time.
    """

    schema: pa.Schema
    batches: Iterable[pa.RecordBatch]


def _read_csv(path: Path) -> pa.Table:
    with reading_csv(path) as reader:
        return reader.read_all()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


READERS: dict[str, Callable[[Path], pa.Table]] = {
    "parquet": _read_parquet,
    "csv": _read_csv,
    "arrow": _read_arrow,
}
