"""What the demo page shows besides answers: users, items, histories, filters and a map.

Every list is cut, and columns are searched by Arrow: Python sees the rows that are returned and no
others. Ids are texts here, since a browser rounds whole numbers above 2^53.

Shape letters: N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.schema import TITLE
from twotower.serving.catalogue import Catalogue
from twotower.serving.ids import ItemId, find_rows
from twotower.serving.item_plane import Plane, fit_plane
from twotower.serving.page_filters import Choices, Range, filter_columns
from twotower.serving.recommender import Recommender

Rows = npt.NDArray[np.int64]

MAX_LISTED = 50
MAX_POINTS = 2000
MAX_WORDS = 6
MAX_GROUPS = 12
BLOCK = 1 << 20
DRAWS = 8
FEW_EVENTS = 3


@dataclass(frozen=True, kw_only=True)
class Item:
    """An item by name.

    Args:
        item_id: External id, as text.
        title: The item's title, or its id where it has none.
    """

    item_id: str
    title: str


@dataclass(frozen=True, kw_only=True)
class History:
    """The latest events of a user.

    Args:
        items: At most `MAX_LISTED`, newest first.
        num_events: Of all of them.
    """

    items: Sequence[Item]
    num_events: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """An item on the map.

    Args:
        item: Which.
        x: Along the first principal component; most items lie between -1 and 1.
        y: Along the second one.
        group: Its value in the first column that has few of them; None where it has none.
    """

    item: Item
    x: float
    y: float
    group: str | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is served.

    Args:
        name: Of the bundle.
        version: Of the bundle.
        num_users: Users it knows.
        num_items: Items of its catalogue.
        num_candidates: Items that the retrieval hands to the ranker.
        has_ranker: Whether there is one.
    """

    name: str
    version: str
    num_users: int
    num_items: int
    num_candidates: int
    has_ranker: bool


class PageData:
    """Looks things up in what a recommender answers from.

    Args:
        recommender: The recommender.
    """

    def __init__(self, recommender: Recommender) -> None:
        items, vectors = recommender.bundle.items, recommender.bundle.item_vectors
        if items is None or vectors is None:
            raise ValueError(f"{recommender.bundle.folder}: holds no items")
        self._recommender = recommender
        self._bundle = recommender.bundle
        self._items = items
        self._vectors = vectors
        users = recommender.bundle.users
        self._user_ids = pa.array([], pa.string()) if users is None else users.ids

    @cached_property
    def filters(self) -> list[Choices | Range]:
        """What the columns of the item table offer to choose from."""
        features = self._bundle.pipeline.spec.features
        tags = [one for one in features if one.side == "item" and one.kind == "tags"]
        return filter_columns(self._items.table, {one.source_column: one.separator for one in tags})

    @cached_property
    def points(self) -> list[Point]:
        """Items drawn at random, the same ones every time, at most `MAX_POINTS`."""
        count = len(self._items)
        drawn = np.random.default_rng(0).permutation(count)[:MAX_POINTS]
        rows = np.sort(drawn)
        return self._placed(self._named(rows), self._groups(rows), self._vectors[rows])

    def summary(self) -> Summary:
        """What is served."""
        return Summary(
            name=self._bundle.manifest.name,
            version=self._bundle.manifest.version,
            num_users=len(self._user_ids),
            num_items=len(self._items),
            num_candidates=self._recommender.num_candidates,
            has_ranker=self._bundle.ranker is not None,
        )

    def users(self, prefix: str, *, limit: int) -> list[str]:
        """Ids that begin with a text, in the order of the bundle.

        Args:
            prefix: The text; empty for any.
            limit: How many, at most `MAX_LISTED`.
        """
        found: list[str] = []
        limit = min(limit, MAX_LISTED)
        for start in range(0, len(self._user_ids), BLOCK):
            block = _as_text(self._user_ids.slice(start, BLOCK))
            rows = np.flatnonzero(pc.starts_with(block, prefix))[: limit - len(found)]
            found += block.take(pa.array(rows)).to_pylist()
            if len(found) == limit:
                break
        return found

    def random_user(self) -> str | None:
        """Id of a user drawn at random, if it can be one with some events; None without users."""
        if not len(self._user_ids):
            return None
        offsets = self._bundle.offsets
        drawn = np.random.default_rng().integers(len(self._user_ids), size=DRAWS)
        events = np.zeros(DRAWS) if offsets is None else offsets[drawn + 1] - offsets[drawn]
        row = drawn[int(np.argmax(events >= FEW_EVENTS))]
        return str(self._user_ids[int(row)].as_py())

    def items(self, text: str, *, limit: int) -> list[Item]:
        """Items whose title holds every word of a text, or whose id begins with it.

        Args:
            text: The text; without a word the most popular items come.
            limit: How many, at most `MAX_LISTED`.

        Returns:
            First those that begin with the text, then the others; popular ones first.
        """
        words, limit = text.split()[:MAX_WORDS], min(limit, MAX_LISTED)
        if not words:
            return self._named(self._by_popularity[:limit])
        text = " ".join(words)
        begins = pc.starts_with(_as_text(self._items.ids), text)
        hits = begins
        table = self._items.table
        if TITLE in table.column_names:
            titles = _as_text(table.column(TITLE))
            begins = _or(begins, pc.starts_with(titles, text, ignore_case=True))
            holds = pc.match_substring(titles, words[0], ignore_case=True)
            for word in words[1:]:
                holds = pc.and_(holds, pc.match_substring(titles, word, ignore_case=True))
            hits = _or(begins, holds)
        rows = np.flatnonzero(hits)
        later = ~np.asarray(begins)[rows]
        order = np.lexsort([self._places_by_popularity[rows], later])[:limit]
        return self._named(rows[order])

    def history(self, user: ItemId) -> History | None:
        """The latest events of a user; None for one whom the bundle does not know."""
        (row,) = find_rows(self._user_ids, [user])
        offsets, item_rows = self._bundle.offsets, self._bundle.item_rows
        if row < 0:
            return None
        if offsets is None or item_rows is None:
            return History(items=[], num_events=0)
        start, end = int(offsets[row]), int(offsets[row + 1])
        latest = np.asarray(item_rows[max(start, end - MAX_LISTED) : end], np.int64)[::-1]
        return History(items=self._named(latest), num_events=end - start)

    def places(self, items: Sequence[ItemId], catalogue: Catalogue) -> list[Point]:
        """Items on the map, without those that are unknown.

        Args:
            items: External ids.
            catalogue: The items as they are now, some perhaps newer than the bundle.
        """
        rows = catalogue.find(items)
        old = rows[(rows >= 0) & (rows < len(self._items))]
        new = rows[rows >= len(self._items)]
        names = [
            Item(item_id=str(catalogue.ids[row].as_py()), title=catalogue.title(row))
            for row in new.tolist()
        ]
        groups = [*self._groups(old), *([None] * len(new))]
        vectors = catalogue.vectors[np.concatenate([old, new])]
        return self._placed([*self._named(old), *names], groups, vectors)

    @cached_property
    def _plane(self) -> Plane:
        return fit_plane(self._vectors)

    def _placed(
        self, items: Sequence[Item], groups: Sequence[str | None], vectors: npt.NDArray[Any]
    ) -> list[Point]:
        if not items:
            return []
        places = np.round(self._plane.places(vectors), 4)
        return [
            Point(item=item, x=float(x), y=float(y), group=group)
            for item, (x, y), group in zip(items, places, groups, strict=True)
        ]

    def _groups(self, rows: Rows) -> list[str | None]:
        """What every item is, by the first column of few texts."""
        for one in self.filters:
            column = self._items.table.column(one.column)
            is_text = pa.types.is_string(column.type)
            if is_text and isinstance(one, Choices) and one.num_different <= MAX_GROUPS:
                return list(column.take(pa.array(rows)).to_pylist())
        return [None] * len(rows)

    def _named(self, rows: Rows) -> list[Item]:
        """Items by row."""
        taken = pa.array(rows)
        ids = _as_text(self._items.ids.take(taken))
        titles = ids
        table = self._items.table
        if TITLE in table.column_names:
            titles = pc.coalesce(_as_text(table.column(TITLE).take(taken).combine_chunks()), ids)
        return [
            Item(item_id=item_id, title=title)
            for item_id, title in zip(ids.to_pylist(), titles.to_pylist(), strict=True)
        ]

    @cached_property
    def _by_popularity(self) -> Rows:
        popular = self._bundle.popular
        return np.arange(len(self._items)) if popular is None else np.asarray(popular)

    @cached_property
    def _places_by_popularity(self) -> Rows:
        """(N,) place of every item among the popular ones."""
        places = np.empty(len(self._items), np.int64)
        places[self._by_popularity] = np.arange(len(places))
        return places


def _as_text(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return values if is_text else pc.cast(values, pa.string())


def _or(one: Any, other: Any) -> Any:  # noqa: ANN401 - Arrow's arrays have no types
    return pc.fill_null(pc.or_kleene(one, other), False)
