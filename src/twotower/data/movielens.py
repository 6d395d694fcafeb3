"""MovieLens in its original layouts: ml-1m (``::`` and Latin-1) and the later ones (CSV).

Harper & Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015. The archives are
published by GroupLens for research; see the README in each for what is allowed.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from twotower.data.download import fetch, md5_of
from twotower.data.naming import INTERACTIONS, ITEMS, USERS, Reading
from twotower.data.raw_table import RawTable
from twotower.data.schema import ITEM_ID, TIMESTAMP, TITLE, USER_ID, DataError, Label, Tables
from twotower.data.validate import build_tables

log = logging.getLogger(__name__)

Variant = Literal["ml-latest-small", "ml-1m", "ml-20m", "ml-25m", "ml-32m"]

HOST = "https://files.grouplens.org/datasets/movielens"
# As published in <archive>.md5 at HOST; ml-latest-small changes, so its file is asked for.
PUBLISHED_MD5 = {
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m": "d472be332d4daa821edc399621853b57",
}

RATING, GENRES, YEAR = "rating", "genres", "year"
NO_GENRES = "(no genres listed)"
_YEAR = r"\((?P<year>\d{4})(?:[–-](?:\d{4})?)?\)\s*$"  # of a series the first: (2006–2007)


@dataclass(frozen=True, kw_only=True)
class _File:
    kind: str
    name: str
    columns: tuple[str, ...]
    numbers: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    files: tuple[_File, ...]
    encoding: str
    separator: bytes
    header: bool


_OLD = _Layout(
    files=(
        _File(
            kind=INTERACTIONS,
            name="ratings.dat",
            columns=(USER_ID, ITEM_ID, RATING, TIMESTAMP),
            numbers=frozenset((USER_ID, ITEM_ID, RATING, TIMESTAMP)),
        ),
        _File(
            kind=USERS,
            name="users.dat",
            columns=(USER_ID, "gender", "age", "occupation", "zip"),
            numbers=frozenset((USER_ID, "age", "occupation")),
        ),
        _File(
            kind=ITEMS,
            name="movies.dat",
            columns=(ITEM_ID, TITLE, GENRES),
            numbers=frozenset((ITEM_ID,)),
        ),
    ),
    encoding="latin-1",
    separator=b"::",
    header=False,
)
