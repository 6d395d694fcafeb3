"""Items that are added, changed and removed while a bundle is served.

A `Freshness` belongs to a process. Who answers requests takes `Freshness.recommender`, once for a
request or for those that are answered together, and asks it as any other: it is a snapshot that
does not change. A change makes the next one; nobody waits for it and no reader holds a lock.

    journal = ItemJournal(Path("journals/shop.journal"), bundle="shop")
    freshness = Freshness(Recommender(open_bundle(Path("bundles/shop"))), journal)
    freshness.upsert([{"item_id": "s900", "title": "Green lamp", "price": 29.0}])
    freshness.remove(["s8"])
    freshness.recommender.recommend(user="u17")

With a journal several processes follow each other's changes, each by calling `poll` ten times a
second or more often, and one that starts again takes up what was changed before. When a bundle is
swapped a new `Freshness` reads the same journal: an upsert counts no longer where the bundle has
the item and was built after it; all else is applied to the new bundle.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.schema import ITEM_ID
from twotower.serving.catalogue import BundleItems
from twotower.serving.fresh_items import Beside, FreshItems
from twotower.serving.ids import ItemId, as_id
from twotower.serving.item_changes import LatestChanges
from twotower.serving.item_encoder import EncodedItems, ItemEncoder, Problem
from twotower.serving.item_journal import Change, ItemJournal, Read, now
from twotower.serving.recommender import Recommender
from twotower.serving.requests import RequestError

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]

DAY = 86_400.0
NUM_SHOWN = 20  # problems of a message


class Freshness:
    """The changes of one process to the items of one bundle.

    Args:
        recommender: Of the bundle as it was built.
        journal: Where changes are written, and from where those of other processes come; None to
            keep changes in this process.
        build_seconds: How long a build takes, from reading the tables to publishing: an upsert
            counts as contained in a bundle that was exported so long after it and has the item.

    Raises:
        ValueError: When the recommender or its bundle will not do, or the journal is damaged.
    """

    def __init__(
        self,
        recommender: Recommender,
        journal: ItemJournal | None = None,
        *,
        build_seconds: float = DAY,
    ) -> None:
        if not isinstance(recommender.items, BundleItems):
            raise ValueError("freshness begins with the recommender of a bundle as it was built")
        self._built, self._items = recommender, recommender.items
        pipeline = recommender.bundle.pipeline
        self._encoder = ItemEncoder(pipeline, self._items, recommender.item_tower)
        self._journal = journal
        created = datetime.fromisoformat(recommender.bundle.manifest.created)
        kind = self._items.ids.type
        self._latest = LatestChanges(
            created - timedelta(seconds=build_seconds), lambda given: as_id(kind, given)
        )
        self._lock = threading.Lock()
        self._begin()
        self.poll()

    def _begin(self) -> None:
        """As if nothing had been changed."""
        self._latest.clear()
        self._added: dict[ItemId, int] = {}
        self._removed: Rows = np.empty(0, np.int64)
        columns = {name: np.asarray(c[:0]) for name, c in self._items.columns.items()}
        self._beside = Beside(
            rows=np.empty(0, np.int64),
            live=np.empty(0, bool),
            table=self._items.table.slice(0, 0),
            columns=columns,
            vectors=np.asarray(self._items.vectors[:0]),
        )
        self._recommender = self._built

    @property
    def recommender(self) -> Recommender:
        """Answers out of the bundle and all changes so far."""
        return self._recommender

    def upsert(self, items: Sequence[Mapping[str, Any]]) -> int:
        """Add or change items; when this returns they are in `recommender`.

        Args:
            items: Rows of the item table: ``item_id`` and any of its columns. A column that is left
                out keeps its value, and is null for a new item.

        Returns:
            How many items.

        Raises:
            RequestError: When an item cannot be taken; then none is.
            OSError: When the journal cannot be written; then none is taken either.
        """
        with self._lock:
            self._check(items)
            if items:
                self._make(Change(at=now(), upsert=items))
        return len(items)

    def remove(self, ids: Sequence[ItemId]) -> int:
        """Remove items; when this returns, `recommender` does not show them any more.

        Args:
            ids: External ids. One that is not known now may be that of an item of a later bundle;
                that is removed as well.

        Returns:
            How many of them could have been shown until now.

        Raises:
            RequestError: When something is no id; then nothing is removed.
            OSError: When the journal cannot be written; then nothing is removed either.
        """
        kind = self._items.ids.type
        wrong = [n for n, given in enumerate(ids) if as_id(kind, given) is None]
        if wrong:
            raise RequestError(f"ids[{wrong[0]}]", f"must be an id, {kind}, got {ids[wrong[0]]!r}")
        with self._lock:
            before = self._recommender.items
            rows = {row for row in before.find(ids).tolist() if row >= 0}
            if ids:
                self._make(Change(at=now(), remove=ids))
        return sum(not before.is_removed(row) for row in rows)

    def poll(self) -> int:
        """Take up what other processes have changed since; costs microseconds where there is none.

        One that is called while another thread is at it waits for that: what was changed before the
        call is in `recommender` after it.

        Returns:
            How many changes were taken up.

        Raises:
            JournalError: When the journal is damaged; all stays as it was.
        """
        if self._journal is None:
            return 0
        with self._lock:
            return self._follow(self._journal.read())

    def compact(self) -> None:
        """Rewrite the journal without what later changes or this bundle have made idle.

        A process that still serves an older bundle loses what this one contains.
        """
        if self._journal is None:
            return
        with self._lock:
            self._follow(self._journal.read())
            in_bundle = set(self._items.ids.to_pylist())
            self._journal.compact(self._latest.left(in_bundle))
            self._follow(self._journal.read())

    def _check(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Refuse items that cannot be taken, all at once."""
        ids, problems = self._ids(items)
        if not problems and items:
            rows = self._items.find(ids).tolist()
            given = [
                {**self._latest.values(item, in_bundle=row >= 0), **_without_id(values)}
                for item, row, values in zip(ids, rows, items, strict=True)
            ]
            found = self._encoder.encode(ids, given)
            problems = [] if isinstance(found, EncodedItems) else found
        if len(problems) == 1:
            raise RequestError(problems[0].place, problems[0].text)
        if problems:
            listed = "; ".join(f"{p.place}: {p.text}" for p in problems[:NUM_SHOWN])
            raise RequestError("items", f"{len(problems)} problems: {listed}")

    def _ids(self, items: Sequence[Mapping[str, Any]]) -> tuple[list[ItemId], list[Problem]]:
        kind, ids, problems = self._items.ids.type, dict[ItemId, None](), []
        for number, row in enumerate(items):
            given = row.get(ITEM_ID)
            item = as_id(kind, given)
            if item is None:
                text = f"must be an id, {kind}, got {given!r}"
                problems.append(Problem(item=number, column=ITEM_ID, text=text))
            elif item in ids:
                text = f"{given!r} is there already; one row an item"
                problems.append(Problem(item=number, column=ITEM_ID, text=text))
            else:
                ids[item] = None
        return list(ids), problems

    def _make(self, change: Change) -> None:
        """Write and take up a change."""
        if self._journal is None:
            self._follow(Read(changes=[change]))
        else:
            self._follow(self._journal.append(change))

    def _follow(self, read: Read) -> int:
        if read.afresh:
            self._begin()
        touched = self._latest.fold(read.changes)
        if touched:
            self._apply(touched)
        return len(read.changes)

    def _apply(self, touched: Sequence[ItemId]) -> None:
        """Make the next snapshot, in which some items are as they are now."""
        rows = self._items.find(touched)
        ids: list[ItemId] = []
        given: list[dict[str, Any]] = []
        as_built: list[int] = []
        removed: list[int] = []
        for item, row in zip(touched, rows.tolist(), strict=True):
            values = self._latest.values(item, in_bundle=row >= 0)
            is_removed = self._latest.is_removed(item)
            if row >= 0 and (is_removed or not values):
                as_built.append(row)
                removed += [row] if is_removed else []
            elif row >= 0 or values or not is_removed or item in self._added:
                ids.append(item)
                given.append(values)
        beside = self._beside.without(np.array(as_built, np.int64))
        if ids:
            beside = self._with(beside, ids, given)
        others = np.setdiff1d(self._removed, rows)
        self._removed = np.union1d(others, np.array(removed, np.int64))
        self._beside = beside
        self._recommender = self._built.with_items(FreshItems(self._items, beside, self._removed))

    def _with(
        self, beside: Beside, ids: Sequence[ItemId], given: Sequence[Mapping[str, Any]]
    ) -> Beside:
        """Put items, as they are now, beside the bundle."""
        ids, encoded = self._encoded(ids, given)
        first_free = len(self._items)
        rows = self._items.find(ids)
        for place in np.flatnonzero(rows < 0).tolist():
            rows[place] = self._added.setdefault(ids[place], first_free + len(self._added))
        live = np.array([not self._latest.is_removed(item) for item in ids], bool)
        new = Beside(
            rows=rows,
            live=live,
            table=encoded.table,
            columns=encoded.columns,
            vectors=encoded.vectors,
        )
        return beside.without(rows).joined(new)

    def _encoded(
        self, ids: Sequence[ItemId], given: Sequence[Mapping[str, Any]]
    ) -> tuple[Sequence[ItemId], EncodedItems]:
        """Encode items of the journal; what this bundle cannot take is left out with a warning."""
        columns = set(self._items.table.column_names)
        unknown = sorted({name for values in given for name in values} - columns)
        if unknown:
            log.warning("the items of this bundle have no column %s", ", ".join(unknown))
            given = [{n: v for n, v in values.items() if n in columns} for values in given]
        found = self._encoder.encode(ids, given)
        if isinstance(found, EncodedItems):
            return ids, found
        bad = {problem.item for problem in found}
        for problem in found:
            log.warning("item %r: %s %s", ids[problem.item], problem.column, problem.text)
        kept = [place for place in range(len(ids)) if place not in bad]
        return self._encoded([ids[place] for place in kept], [given[place] for place in kept])


def _without_id(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != ITEM_ID}
