"""MovieLens in its original layouts: ml-1m (``::`` and Latin-1) and the later ones (CSV).

Harper & Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015. The archives are
published by GroupLens for research; the README in each says what is allowed.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from twotower.data.download import CHUNK, fetch, md5_of
from twotower.data.naming import INTERACTIONS, ITEMS, USERS, Reading
from twotower.data.raw_table import RawTable
from twotower.data.schema import ITEM_ID, TIMESTAMP, TITLE, USER_ID, DataError, Label, Tables
from twotower.data.validate import build_tables

log = logging.getLogger(__name__)

Variant = Literal["ml-latest-small", "ml-1m", "ml-20m", "ml-25m", "ml-32m"]

HOST = "https://files.grouplens.org/datasets/movielens"
# As the host publishes them in <archive>.md5; ml-latest-small changes, so its file is asked for.
PUBLISHED_MD5 = {
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m": "d472be332d4daa821edc399621853b57",
}

RATING, GENRES, YEAR = "rating", "genres", "year"
MIN_RATING, MAX_RATING = 0.5, 5.0
NO_GENRES = "(no genres listed)"
TEXT_COLUMNS = frozenset((TITLE, GENRES, "gender", "zip"))
LAYOUTS = (
    {INTERACTIONS: "ratings.dat", USERS: "users.dat", ITEMS: "movies.dat"},
    {INTERACTIONS: "ratings.csv", ITEMS: "movies.csv"},
)
COLUMNS = {
    "ratings.dat": (USER_ID, ITEM_ID, RATING, TIMESTAMP),
    "users.dat": (USER_ID, "gender", "age", "occupation", "zip"),
    "movies.dat": (ITEM_ID, TITLE, GENRES),
    "ratings.csv": ("userId", "movieId", RATING, TIMESTAMP),
    "movies.csv": ("movieId", TITLE, GENRES),
}
CSV_NAMES = {USER_ID: "userId", ITEM_ID: "movieId"}

# What `zipfile` makes of an archive that was cut, changed or encrypted.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)

_SEPARATOR = b"\x1f"  # stands in for "::", because a reader of CSV takes one character
_YEAR = r"\((?P<year>\d{4})(?:[–-](?:\d{4})?)?\)\s*$"  # of a series the first: (2006–2007)


class MovieLensSource:
    """Reads a MovieLens archive, downloading it when none is given.

    Args:
        archive: Archive or unpacked folder; the layout is told from its files. None downloads.
        variant: What is downloaded.
        download_dir: Where downloads are kept.
        positive_from: Smallest rating that counts as a positive, the others being impressions
            without success; None when every rating counts.
        host: Where archives are downloaded from.

    Raises:
        ValueError: When `variant` is unknown or `positive_from` is no possible rating.
    """

    def __init__(
        self,
        *,
        archive: str | None = None,
        variant: Variant = "ml-1m",
        download_dir: str = "downloads",
        positive_from: float | None = None,
        host: str = HOST,
    ) -> None:
        if variant not in get_args(Variant):
            allowed = ", ".join(get_args(Variant))
            raise ValueError(f"data.variant: got {variant!r}; allowed: {allowed}")
        self._archive = None if archive is None else Path(archive).expanduser()
        self._variant = variant
        self._download = Path(download_dir).expanduser() / f"{variant}.zip"
        self._host = host
        self._label = None
        if positive_from is not None:
            self._label = Label(
                column=RATING, minimum=MIN_RATING, maximum=MAX_RATING, positive_from=positive_from
            )

    @property
    def name(self) -> str:
        """Name of the archive or, when it is downloaded, of the variant."""
        return self._variant if self._archive is None else self._archive.resolve().stem

    def fingerprint(self) -> str:
        """Digest of the files that are read and of the options; zipped or not makes no difference.

        Raises:
            DataError: When the archive cannot be had or lacks a file.
        """
        options = None if self._label is None else self._label.positive_from
        digest = blake2b(json.dumps(["movielens", options]).encode())
        with _files(self._path()) as files:
            for kind, file in files.items():
                content = blake2b()
                with file.open("rb") as stream:
                    while block := stream.read(CHUNK):
                        content.update(block)
                digest.update(kind.encode() + content.digest())
        return digest.hexdigest()

    def read(self) -> Tables:
        """Read and check the tables; rows keep the order of the files.

        Raises:
            DataError: When the archive cannot be had, or lists everything that is wrong with it.
        """
        raw: dict[str, RawTable | DataError] = {}
        with _files(self._path()) as files:
            for kind, file in files.items():
                try:
                    raw[kind] = _read(file)
                except DataError as error:
                    raw[kind] = error
            is_csv = files[INTERACTIONS].name.endswith(".csv")
        reading = Reading(
            columns=CSV_NAMES if is_csv else {},
            label=self._label,
            context=(),
            on_bad_rows="fail",
        )
        tables = build_tables(raw, reading)
        return replace(tables, items=_with_year_and_genres(tables.items))

    def _path(self) -> Path:
        if self._archive is not None:
            return self._archive
        expected = PUBLISHED_MD5.get(self._variant)
        if not self._download.exists():
            log.info("No data.archive given: downloading %s from GroupLens", self._variant)
            fetch(f"{self._host}/{self._variant}.zip", self._download, md5=expected)
        elif expected and (found := md5_of(self._download)) != expected:
            raise DataError(
                [
                    f"{self._download}: its MD5 is {found}, published is {expected}; delete it to "
                    "download it again, or name it as data.archive to use it as it is"
                ]
            )
        return self._download


@contextmanager
def _files(archive: Path) -> Iterator[dict[str, Traversable]]:
    """The files of the one data set in an archive or folder, at most two folders deep."""
    if not archive.exists():
        raise DataError([f"{archive}: no such archive or folder (data.archive)"])
    try:
        if archive.is_dir():
            yield _choose(archive, archive)
        else:
            with zipfile.ZipFile(archive) as file:
                yield _choose(archive, zipfile.Path(file))
    except DAMAGED as error:
        raise DataError([f"{archive}: not a readable zip archive or folder: {error}"]) from error


def _choose(archive: Path, root: Traversable) -> dict[str, Traversable]:
    folders = [root]
    for folder in (root, *_subfolders(root)):
        folders += _subfolders(folder)
    found = [
        (folder, layout)
        for folder in dict.fromkeys(folders)
        for layout in LAYOUTS
        if (folder / layout[INTERACTIONS]).is_file()
    ]
    if len(found) != 1:
        received = ", ".join(str(folder / layout[INTERACTIONS]) for folder, layout in found)
        raise DataError(
            [
                f"{archive}: must hold one of ratings.dat (ml-1m) and ratings.csv (the others), "
                f"found {received or 'neither'}"
            ]
        )
    folder, layout = found[0]
    files = {kind: folder / name for kind, name in layout.items()}
    lacking = [str(file) for file in files.values() if not file.is_file()]
    if lacking:
        raise DataError([f"{archive}: {', '.join(lacking)} is missing"])
    return files


def _subfolders(folder: Traversable) -> list[Traversable]:
    return [entry for entry in folder.iterdir() if entry.is_dir()]


def _read(file: Traversable) -> RawTable:
    """One file as text columns."""
    names = COLUMNS[file.name]
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    try:
        if file.name.endswith(".dat"):
            content = io.BytesIO(file.read_bytes().replace(b"::", _SEPARATOR))
            options = pacsv.ReadOptions(column_names=names, encoding="latin-1")
            parse = pacsv.ParseOptions(delimiter=_SEPARATOR.decode(), quote_char=False)
            table = pacsv.read_csv(content, options, parse, convert)
        else:
            with file.open("rb") as stream:
                table = pacsv.read_csv(stream, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise DataError([f"{file}: cannot be read: {error}"]) from error
    if tuple(table.column_names) != names:
        received, allowed = ", ".join(table.column_names), ", ".join(names)
        raise DataError([f"{file}: its columns are {received}; allowed: {allowed}"])
    return RawTable(
        location=str(file),
        data=table,
        text=frozenset(names) - TEXT_COLUMNS,
        parts=((file.name, table.num_rows),),
    )


def _with_year_and_genres(items: pa.Table) -> pa.Table:
    """Genres as lists, and the year that stands at the end of the title."""
    year = pc.struct_field(pc.extract_regex(items.column(TITLE), _YEAR), YEAR).cast(pa.int64())
    genres = pc.fill_null(items.column(GENRES), NO_GENRES)
    lists = pc.split_pattern(genres, "|")
    none = pa.scalar([], lists.type)
    lists = pc.if_else(pc.equal(genres, NO_GENRES), none, lists)
    return items.set_column(items.schema.get_field_index(GENRES), GENRES, lists).append_column(
        YEAR, year
    )
