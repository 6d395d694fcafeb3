"""Items that are new or have changed, out of plain values: rows, encoded features, vectors.

What is given stands over what the bundle's item table holds; a column that is not given keeps the
value that it has there, and is null for an item that is not there.

Shape letters: n items, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.schema import ITEM_ID, DataError
from twotower.features.pipeline import FeaturePipeline
from twotower.serving.catalogue import BundleItems
from twotower.serving.ids import ItemId
from twotower.serving.models import OnnxModel
from twotower.serving.values import to_column

Array = npt.NDArray[Any]

BLOCK = 4096  # items that go through the tower at a time


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why an item cannot be taken.

    Args:
        item: Which of the given ones.
        column: Of the item table, or empty where it is the item as a whole.
        text: What was received and what is allowed.
    """

    item: int
    column: str
    text: str

    @property
    def place(self) -> str:
        """Field of the request."""
        return f"items[{self.item}]" + (f".{self.column}" if self.column else "")


@dataclass(frozen=True, kw_only=True)
class EncodedItems:
    """Items as models and readers see them.

    Args:
        table: (n) rows of the item table.
        columns: Encoded features, (n, ...) each.
        vectors: (n, D) item vectors.
    """

    table: pa.Table
    columns: Mapping[str, Array]
    vectors: npt.NDArray[np.float32]


class ItemEncoder:
    """Encodes items as the export did.

    Args:
        pipeline: The bundle's features.
        items: Its items.
        tower: Its item tower.
    """

    def __init__(self, pipeline: FeaturePipeline, items: BundleItems, tower: OnnxModel) -> None:
        self._pipeline = pipeline
        self._items = items
        self._tower = tower

    def encode(
        self, ids: Sequence[ItemId], given: Sequence[Mapping[str, Any]]
    ) -> EncodedItems | list[Problem]:
        """Encode items.

        Args:
            ids: (n,) their ids, of the type that the bundle has.
            given: Values by column; others than those of the item table are a problem.

        Returns:
            The items, or all that is wrong with any of them.
        """
        table, problems = self._table(ids, given)
        if not problems:
            try:
                columns = self._pipeline.encode("item", table)
            except DataError:
                problems = _row_problems(self._pipeline, table)
        if problems:
            return problems
        vectors = self._vectors(columns)
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            text = "the item tower gives no finite vector for it"
            return [Problem(item=int(item), column="", text=text) for item in broken]
        return EncodedItems(table=table, columns=columns, vectors=vectors)

    def _table(
        self, ids: Sequence[ItemId], given: Sequence[Mapping[str, Any]]
    ) -> tuple[pa.Table, list[Problem]]:
        schema = self._items.table.schema
        problems = [
            Problem(item=item, column=str(name), text=f"unknown column; allowed: {_listed(schema)}")
            for item, values in enumerate(given)
            for name in values
            if name not in schema.names
        ]
        rows = self._items.find(ids)
        known = pa.array(np.where(rows < 0, 0, rows), mask=rows < 0)
        columns = {}
        for column in schema:
            if column.name == ITEM_ID:
                columns[column.name] = pa.array(ids, column.type)
                continue
            stated = [item for item, values in enumerate(given) if column.name in values]
            new = _cells(column, stated, [given[item][column.name] for item in stated], problems)
            old = self._items.table.column(column.name).take(known)
            columns[column.name] = _overlaid(old, stated, new)
        return pa.table(columns), problems

    def _vectors(self, columns: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        num_items = len(next(iter(columns.values())))
        parts = [
            self._tower.run({name: c[start : start + BLOCK] for name, c in columns.items()})
            for start in range(0, num_items, BLOCK)
        ]
        return np.concatenate(parts).astype(np.float32)


def _cells(
    column: pa.Field, items: Sequence[int], values: Sequence[Any], problems: list[Problem]
) -> pa.Array:
    """Values of one column; what does not fit is noted and null."""
    try:
        return to_column(values, column.type)
    except ValueError:
        fitting = list(values)
    for place, value in enumerate(values):
        try:
            to_column([value], column.type)
        except ValueError as error:
            problems.append(Problem(item=items[place], column=column.name, text=str(error)))
            fitting[place] = None
    return to_column(fitting, column.type)


def _overlaid(old: pa.ChunkedArray, places: Sequence[int], new: pa.Array) -> pa.Array:
    """A column with other values in some places."""
    plain = old.combine_chunks()
    plain = plain.dictionary_decode() if pa.types.is_dictionary(plain.type) else plain
    order = np.arange(len(plain))
    order[list(places)] = len(plain) + np.arange(len(new))
    both = pa.concat_arrays([plain, new.cast(plain.type)]).take(pa.array(order))
    return both.dictionary_encode() if pa.types.is_dictionary(old.type) else both


def _row_problems(pipeline: FeaturePipeline, table: pa.Table) -> list[Problem]:
    """What is wrong with the features of a table, row by row."""
    problems = []
    for item in range(table.num_rows):
        try:
            pipeline.encode("item", table.slice(item, 1))
        except DataError as error:
            problems += [Problem(item=item, column="", text=text) for text in error.problems]
    return problems


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"`{name}`" for name in schema.names)
