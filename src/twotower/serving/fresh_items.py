"""The items of a bundle with what has changed since it was built, as one catalogue.

An immutable snapshot: a change makes a new one, and who works with the old one goes on undisturbed.
Nothing of the bundle is copied. Changed and added items stand beside it, ordered by row; a look-up
reads the bundle and then puts in what stands beside it.

Shape letters: C rows of the bundle, A items beside it, N rows of both, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.schema import ITEM_ID, TITLE
from twotower.index.allowed import AllowedRows
from twotower.index.delta import DeltaIndex
from twotower.index.filtered import FilteredIndex
from twotower.serving.catalogue import BundleItems, row_of
from twotower.serving.ids import ItemId
from twotower.serving.item_filters import Key, filters_of, key_of
from twotower.serving.requests import Filter

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

KEPT_FILTERS = 64


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Changed and added items as they are now, ascending by row.

    Args:
        rows: (A,) their rows.
        live: (A,) False where the item was removed again; of added ones features stay known, for
            they may stand in histories.
        table: (A) their rows of the item table.
        columns: Encoded features, (A, ...) each.
        vectors: (A, D) item vectors.
    """

    rows: Rows
    live: npt.NDArray[np.bool_]
    table: pa.Table
    columns: Mapping[str, Array]
    vectors: npt.NDArray[np.float32]

    def without(self, rows: Rows) -> Beside:
        """All but the items of some rows."""
        return self._take(np.flatnonzero(~np.isin(self.rows, rows)))

    def joined(self, other: Beside) -> Beside:
        """With other items, none of which is here."""
        both = Beside(
            rows=np.concatenate([self.rows, other.rows]),
            live=np.concatenate([self.live, other.live]),
            table=pa.concat_tables([self.table, other.table]),
            columns={n: np.concatenate([c, other.columns[n]]) for n, c in self.columns.items()},
            vectors=np.concatenate([self.vectors, other.vectors]),
        )
        return both._take(np.argsort(both.rows))

    def _take(self, places: Array) -> Beside:
        return Beside(
            rows=self.rows[places],
            live=self.live[places],
            table=self.table.take(pa.array(places)).combine_chunks(),
            columns={name: column[places] for name, column in self.columns.items()},
            vectors=self.vectors[places],
        )


class Patched:
    """An array whose rows may have been replaced, and that may have grown; looked up by rows.

    Args:
        base: (C, ...) values as they were.
        rows: (A,) rows that are looked up elsewhere, ascending; all from C on are among them.
        values: (A, ...) what is found there.
    """

    def __init__(self, base: Array, rows: Rows, values: Array) -> None:
        self._base, self._rows, self._values = base, rows, values

    def __len__(self) -> int:
        return max(len(self._base), int(self._rows[-1]) + 1 if len(self._rows) else 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self), *self._base.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self._base.dtype

    def __getitem__(self, rows: int | slice | Array) -> Array:
        """Values of rows of any shape."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        wanted = np.asarray(rows)
        if wanted.ndim == 0:
            return np.asarray(self[wanted[None]][0])
        values = self._base[np.minimum(wanted, len(self._base) - 1)]
        if len(self._rows):
            places = np.minimum(np.searchsorted(self._rows, wanted), len(self._rows) - 1)
            replaced = self._rows[places] == wanted
            values[replaced] = self._values[places[replaced]]
        return np.asarray(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: ANN401
        """All values, in a new array."""
        return np.asarray(self[:], dtype)


class FreshItems:
    """A catalogue: the bundle's items, changed and added ones, without the removed ones.

    Args:
        base: The bundle's items.
        beside: What was changed and added.
        removed: Rows of the bundle that were removed, without those in `beside`, ascending.
    """

    def __init__(self, base: BundleItems, beside: Beside, removed: Rows) -> None:
        self.base, self.beside, self.removed = base, beside, removed
        self._num_changed = int(np.searchsorted(beside.rows, len(base)))
        self.vectors = self._patched(base.vectors, beside.vectors)
        self.columns = {n: self._patched(c, beside.columns[n]) for n, c in base.columns.items()}
        self._allowed = lru_cache(KEPT_FILTERS)(self._compile)

    def _patched(self, base: Array, values: Array) -> Array:
        # Whoever is handed one looks rows up in it and does nothing else.
        return cast("Array", Patched(base, self.beside.rows, values))

    def __len__(self) -> int:
        return len(self.base) + len(self.beside.rows) - self._num_changed

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """(N,) external ids."""
        base, added = self.base.ids, self._added.column(ITEM_ID).combine_chunks()
        return pa.chunked_array([base, added.cast(base.type)])

    @property
    def table(self) -> pa.Table:
        """(N) the bundle's item table and a row for every added item; `values` sees changes too."""
        return pa.concat_tables([self.base.table, self._added])

    @property
    def _added(self) -> pa.Table:
        return self.beside.table.slice(self._num_changed)

    @cached_property
    def _added_rows(self) -> dict[ItemId, int]:
        ids = self._added.column(ITEM_ID).to_pylist()
        return dict(zip(map(str, ids), self.beside.rows[self._num_changed :].tolist(), strict=True))

    def find(self, wanted: Sequence[ItemId]) -> Rows:
        """See `Catalogue`."""
        rows = self.base.find(wanted)
        for place in np.flatnonzero(rows < 0).tolist():
            rows[place] = self._added_rows.get(str(wanted[place]), -1)
        return rows

    def values(self, row: int) -> dict[str, Any]:
        """See `Catalogue`."""
        place = self._place(row)
        return self.base.values(row) if place is None else row_of(self.beside.table, place)

    def title(self, row: int) -> str:
        """See `Catalogue`."""
        place = self._place(row)
        if place is None:
            return self.base.title(row)
        table = self.beside.table
        title = table.column(TITLE)[place].as_py() if TITLE in table.column_names else None
        return str(table.column(ITEM_ID)[place].as_py() if title is None else title)

    def _place(self, row: int) -> int | None:
        """Where an item stands beside the bundle."""
        place = int(np.searchsorted(self.beside.rows, row))
        is_there = place < len(self.beside.rows) and self.beside.rows[place] == row
        return place if is_there else None

    def is_removed(self, row: int) -> bool:
        """See `Catalogue`."""
        place = self._place(row)
        return bool(np.isin(row, self.removed)) if place is None else not self.beside.live[place]

    def index(self, main: FilteredIndex) -> DeltaIndex:
        """The bundle's index with what stands beside it.

        Args:
            main: The bundle's index.
        """
        rows, live = self.beside.rows, self.beside.live
        return DeltaIndex(
            main,
            rows=rows[live],
            vectors=self.beside.vectors[live],
            hidden=self._hidden,
            num_items=len(self),
        )

    @property
    def _hidden(self) -> Rows:
        """Rows of the bundle that are no longer what they were."""
        return np.union1d(self.removed, self.beside.rows[: self._num_changed])

    def allowed(self, filters: Sequence[Filter]) -> AllowedRows | None:
        """See `Catalogue`."""
        if not filters and not len(self.removed) and self.beside.live.all():
            return None
        return self._allowed(key_of(filters))

    def _compile(self, key: Key) -> AllowedRows:
        filters = filters_of(key)
        of_base = self.base.filters.allowed(filters)
        mask = np.ones(len(self), bool)
        if of_base is not None:
            mask[: len(self.base)] = of_base.mask
        mask[self.removed] = False
        passes = self.base.filters.mask(filters, self.beside.table)
        mask[self.beside.rows] = passes & self.beside.live
        return AllowedRows(mask)
