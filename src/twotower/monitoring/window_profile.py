"""The profile of a window of logs, read piece by piece: memory does not grow with its length.

Shape letters: R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.files import read_raw
from twotower.data.naming import ITEMS, USERS, Reading
from twotower.data.prepared import Entities
from twotower.data.schema import ITEM_ID, LABEL, USER_ID, DataError
from twotower.data.validate import build_tables
from twotower.data.workers import Budget
from twotower.export.bundle import Bundle
from twotower.features.pipeline import FeaturePipeline
from twotower.features.row_index import RowIndex
from twotower.monitoring.accumulate import Accumulator, Block, groups_in_turn, groups_of
from twotower.monitoring.profile import Profile
from twotower.monitoring.reference import Reference
from twotower.monitoring.windows import WindowForm, scan_window

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Described:
    """Tables that describe users and items newer than those of the bundle.

    Args:
        users: File, pattern or folder; None for the users of the bundle.
        items: The same for the items.
    """

    users: str | None = None
    items: str | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a bundle knows: features, users and items.

    Args:
        pipeline: The features with their fitted state.
        users: All users, or None.
        items: All items, the catalogue first, or None.
    """

    pipeline: FeaturePipeline
    users: Entities | None
    items: Entities | None

    @staticmethod
    def of(bundle: Bundle) -> Known:
        """Of a bundle."""
        return Known(pipeline=bundle.pipeline, users=bundle.users, items=bundle.items)


class WindowProfiler:
    """Makes profiles of windows with the bins of a bundle.

    Args:
        known: What the bundle knows.
        reference: Its reference.
        form: What windows must look like.
        described: Newer tables of users and items.
        progress: Whether long reading shows a bar.

    Raises:
        DataError: When a table of users or items cannot be used.
    """

    def __init__(
        self,
        known: Known,
        reference: Reference,
        form: WindowForm,
        *,
        described: Described | None = None,
        progress: bool = False,
    ) -> None:
        self.progress = progress
        described = described or Described()
        self.form = form
        self._pipeline = known.pipeline
        users = _entities(known.pipeline, form, USERS, described.users) or known.users
        items = _entities(known.pipeline, form, ITEMS, described.items) or known.items
        self._users = None if users is None else RowIndex(users.ids)
        self._items = None if items is None else RowIndex(items.ids)
        # Exposures are of the bundle's catalogue, whatever table describes the items.
        self._catalogue = None
        if known.items is not None and items is not known.items:
            self._catalogue = RowIndex(known.items.ids)
        self._accumulator = Accumulator(
            bins=reference.training.bins,
            pipeline=known.pipeline,
            users=users,
            items=items,
            num_items=0 if self._catalogue is not None else len(reference.training.exposures),
        )
        self._num_items = len(reference.training.exposures)

    def profile(
        self, location: str, *, now: float | None = None, rows_per_block: int | None = None
    ) -> Profile:
        """Read, check and profile a window.

        Args:
            location: File, pattern or folder.
            now: The present, epoch seconds; by the clock when None.
            rows_per_block: Rows that are read together.

        Raises:
            DataError: Lists everything that is wrong with it.
        """
        lock = Lock()
        whole = [Profile.empty(self._accumulator.bins, self._num_items)]
        problems: list[str] = []

        def visit(_: int, rows: pa.Table) -> None:
            try:
                part = self.profile_rows(rows)
            except DataError as error:
                with lock:
                    problems.extend(error.problems)
                return
            with lock:
                whole[0] = whole[0].merge(part)

        size = rows_per_block or Budget.rows_per_block
        span = scan_window(
            location, self.form, visit, now=now, rows_per_block=size, progress=self.progress
        )
        if problems:
            raise DataError([f"{location}: {problem}" for problem in dict.fromkeys(problems)])
        times = (span.start, span.end) if span.end else None
        facts = {"rejected": span.num_rejected}
        return replace(whole[0], span=times, facts=facts)

    def profile_rows(self, rows: pa.Table) -> Profile:
        """The profile of rows (R) in canonical form.

        Raises:
            DataError: When a context feature cannot be encoded.
        """
        if not rows.num_rows:
            return Profile.empty(self._accumulator.bins, self._num_items)
        users, items = (
            _find(index, rows, name)
            for index, name in ((self._users, USER_ID), (self._items, ITEM_ID))
        )
        block = Block(
            groups=self._groups(rows),
            user_rows=users,
            item_rows=items,
            encoded=self._pipeline.encode("context", rows),
            raw=rows,
            labels=_labels(rows),
        )
        profile = self._accumulator.profile(block)
        if self._catalogue is not None:
            shown = _find(self._catalogue, rows, ITEM_ID)
            shown = np.empty(0, np.int64) if shown is None else shown[shown >= 0]
            exposures = np.bincount(shown, minlength=self._num_items)[: self._num_items]
            profile = replace(profile, exposures=exposures)
        return profile

    def profile_scores(self, rows: pa.Table, scores: Array) -> Profile:
        """The profile of scores alone, to be merged with that of a window.

        Args:
            rows: (S,) some rows of the window, in canonical form.
            scores: (S,) of a model, NaN where it has none.
        """
        profile = self._accumulator.profile(Block(groups=self._groups(rows), scores=scores))
        none = np.zeros(self._num_items, np.int64)
        # Rows and items are counted already.
        return replace(profile, rows=np.zeros_like(profile.rows), exposures=none)

    def _groups(self, rows: pa.Table) -> npt.NDArray[np.uint8]:
        has_users = self._users is not None and USER_ID in rows.column_names
        return groups_of(rows.column(USER_ID)) if has_users else groups_in_turn(len(rows))


def _find(index: RowIndex | None, rows: pa.Table, name: str) -> npt.NDArray[np.int64] | None:
    """Entities (R,) of rows, -1 where unknown."""
    if index is None or name not in rows.column_names:
        return None
    encoded = rows.column(name).combine_chunks().dictionary_encode()
    found = index.find(encoded.dictionary)
    return np.asarray(found[encoded.indices.to_numpy(zero_copy_only=False)])


def _labels(rows: pa.Table) -> Array | None:
    if LABEL not in rows.column_names:
        return None
    filled = pc.fill_null(rows.column(LABEL), float("nan"))
    return np.asarray(filled.to_numpy(), np.float32)


def _entities(
    pipeline: FeaturePipeline, form: WindowForm, kind: str, location: str | None
) -> Entities | None:
    """Users or items out of a table of their own, encoded."""
    if location is None:
        return None
    side: Literal["user", "item"] = "user" if kind == USERS else "item"
    key = USER_ID if kind == USERS else ITEM_ID
    reading = Reading(
        columns={name: own for name, own in form.columns.items() if name == key and own != key},
        label=None,
        context=(),
        on_bad_rows=form.on_bad_rows,
    )
    tables = build_tables({kind: read_raw(location)}, reading)
    table = tables.users if kind == USERS else tables.items
    if table is None:
        raise DataError([f"{location}: no {kind}"])
    table = table.select([key, *(name for name in table.column_names if name != key)])
    needed = [name for name in pipeline.source_columns(side) if name not in table.column_names]
    if needed:
        raise DataError(
            [f"{location}: column `{'`, `'.join(needed)}` is missing, which the bundle was trained "
             f"with; available: {', '.join(table.column_names)}"]
        )  # fmt: skip
    ids = table.column(0).combine_chunks()
    return Entities(ids=ids, table=table, columns=pipeline.encode(side, table))
