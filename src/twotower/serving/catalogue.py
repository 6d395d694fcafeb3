"""The items as serving sees them: those of a bundle, or those with what has changed since.

Whatever looks an item up asks a `Catalogue`, so that it sees changes that came after the build.

Shape letters: N rows, C rows of the bundle, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.prepared import Entities
from twotower.data.schema import TITLE
from twotower.export.bundle import Bundle
from twotower.index.allowed import AllowedRows
from twotower.serving.ids import ItemId, find_rows
from twotower.serving.item_filters import ItemFilters, tag_separators
from twotower.serving.requests import Filter

Array = npt.NDArray[Any]


class Catalogue(Protocol):
    """Items by row; an item keeps its row."""

    @property
    def ids(self) -> pa.Array | pa.ChunkedArray:
        """(N,) external ids."""

    @property
    def table(self) -> pa.Table:
        """(N) rows of the item table as they were built, or added; `values` has changes too."""

    @property
    def columns(self) -> Mapping[str, Array]:
        """Encoded features (N, ...), to be looked up by rows."""

    @property
    def vectors(self) -> Array:
        """(N, D) item vectors, to be looked up by rows."""

    def __len__(self) -> int: ...

    def find(self, wanted: Sequence[ItemId]) -> npt.NDArray[np.int64]:
        """Rows (n,) of external ids, -1 where unknown; text finds a number and vice versa."""

    def values(self, row: int) -> dict[str, Any]:
        """The item's row of the item table."""

    def title(self, row: int) -> str:
        """The item's title, or its id where it has none."""

    def is_removed(self, row: int) -> bool:
        """Whether an item was removed and is known for histories alone."""

    def allowed(self, filters: Sequence[Filter]) -> AllowedRows | None:
        """The rows that may be shown and pass all filters; None where these are all rows.

        Raises:
            RequestError: When a filter asks for what the item table does not have.
        """


class BundleItems:
    """The items of a bundle.

    Args:
        bundle: Of which these are the items.
        entities: They themselves.
    """

    def __init__(self, bundle: Bundle, entities: Entities) -> None:
        self.space = bundle.manifest.space
        self.ids = entities.ids
        self.table = entities.table
        self.columns = entities.columns
        self.vectors: Array = (
            np.empty((0, 0)) if bundle.item_vectors is None else bundle.item_vectors
        )
        self.filters = ItemFilters(entities.table, tag_separators(bundle.pipeline))
        has_titles = TITLE in entities.table.column_names
        self._titles = entities.table.column(TITLE).combine_chunks() if has_titles else None

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, wanted: Sequence[ItemId]) -> npt.NDArray[np.int64]:
        """See `Catalogue`."""
        return find_rows(self.ids, wanted)

    def values(self, row: int) -> dict[str, Any]:
        """See `Catalogue`."""
        return row_of(self.table, row)

    def title(self, row: int) -> str:
        """See `Catalogue`."""
        title = None if self._titles is None else self._titles[row].as_py()
        return str(self.ids[row].as_py() if title is None else title)

    def is_removed(self, row: int) -> bool:
        """See `Catalogue`."""
        return False

    def allowed(self, filters: Sequence[Filter]) -> AllowedRows | None:
        """See `Catalogue`."""
        return self.filters.allowed(filters)


def row_of(table: pa.Table, row: int) -> dict[str, Any]:
    """One row of a table as plain values."""
    return {name: table.column(name)[row].as_py() for name in table.column_names}
