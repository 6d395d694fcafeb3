"""Blocks of rows to profiles.

What depends on the user or the item alone is binned once for every user and item; a row then only
looks its bins up.

Shape letters: R rows, N entities, G groups, B bins, T tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.prepared import Entities
from twotower.data.schema import ITEM_ID, USER_ID
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature
from twotower.features.transforms import Categorical, Tags
from twotower.features.vocabulary import count_values
from twotower.monitoring.bins import (
    LABEL_COLUMN,
    MISSING,
    NUM_SINGLE,
    OUTCOMES,
    Bins,
    Codes,
)
from twotower.monitoring.profile import NUM_GROUPS, ColumnProfile, Profile
from twotower.monitoring.row_hash import column_hashes
from twotower.monitoring.states import (
    ABSENT,
    KNOWN,
    NULL,
    UNSEEN,
    States,
    states,
    unseen_values,
)

Array = npt.NDArray[Any]

KEYS = {"user": USER_ID, "item": ITEM_ID}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of a log.

    Args:
        groups: (R,) group of every row, from `groups_of` its user.
        user_rows: (R,) users, -1 for one that is not known; None where the log has none.
        item_rows: (R,) items, likewise.
        encoded: Encoded features, (R, ...) each, that are not looked up by user or item.
        raw: The rows as they came, where they are there: of context, and of ids that are not known.
        labels: (R,) NaN for a label that has not come yet; None where there are none.
        scores: (R,) of a model; None where there are none.
        span: Earliest and latest time, epoch seconds; None where there are no times.
    """

    groups: npt.NDArray[np.uint8]
    user_rows: Array | None = None
    item_rows: Array | None = None
    encoded: Mapping[str, Array] = field(default_factory=dict)
    raw: pa.Table | None = None
    labels: Array | None = None
    scores: Array | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class _Values:
    """A column of some rows or entities.

    Args:
        codes: (N,) or (N, T) bins, -1 where there is none.
        states: (N,).
        numbers: (N,) float32, NaN where missing; None for other kinds.
        rows: (N,) or (N, T) vocabulary rows where the most frequent values are of interest.
    """

    codes: Codes
    states: States
    numbers: Array | None
    rows: Array | None

    def take(self, rows: Array) -> _Values:
        """Those of some rows; -1 is somebody unknown."""
        known = rows >= 0
        if known.all():
            chosen = self.states[rows]
        else:
            rows = np.where(known, rows, 0)
            chosen = np.where(known, self.states[rows], np.int8(ABSENT))
        return _Values(
            codes=self.codes[rows],
            states=chosen,
            numbers=None if self.numbers is None else self.numbers[rows],
            rows=None if self.rows is None else self.rows[rows],
        )


class Accumulator:
    """Makes profiles of blocks; it can be used from several threads.

    Args:
        bins: How the columns are cut, by name.
        pipeline: The features with their fitted state.
        users: All known users, or None.
        items: All known items, or None.
        num_items: Items of the catalogue, which come first among the items.
    """

    def __init__(
        self,
        *,
        bins: Mapping[str, Bins],
        pipeline: FeaturePipeline,
        users: Entities | None,
        items: Entities | None,
        num_items: int,
    ) -> None:
        self.bins = bins
        self.pipeline = pipeline
        self.num_items = num_items
        self._features = {feature.name: feature for feature in pipeline.spec.features}
        self._entities: dict[str, dict[str, _Values]] = {}
        for side, entities in (("user", users), ("item", items)):
            if entities is not None:
                self._entities[side] = {
                    one.name: self._values(one, entities.columns[one.feature], entities.table)
                    for one in bins.values()
                    if one.side == side
                }

    def profile(self, block: Block) -> Profile:
        """The profile of a block."""
        profile = Profile.empty(self.bins, self.num_items)
        rows = np.bincount(block.groups, minlength=NUM_GROUPS)
        profile.rows[:] = rows
        for side, entity_rows in (("user", block.user_rows), ("item", block.item_rows)):
            if entity_rows is None:
                continue
            for name, values in self._entities.get(side, {}).items():
                column, taken = profile.columns[name], values.take(entity_rows)
                self._count_unknown(name, taken.states, column, block.raw)
                _count(self.bins[name], column, taken, block.groups, self._vocabulary(name))
        for name, one in self.bins.items():
            if one.feature in block.encoded:
                values = self._values(one, block.encoded[one.feature], block.raw)
                column = profile.columns[name]
                self._count_unseen(one, values.states, column, block.raw)
                _count(one, column, values, block.groups, self._vocabulary(name))
        for name, outcome in zip(OUTCOMES, (block.labels, block.scores), strict=True):
            if outcome is not None and name in self.bins:
                values = _outcome(self.bins[name], outcome)
                _count(self.bins[name], profile.columns[name], values, block.groups, None)
        if block.item_rows is not None:
            shown = block.item_rows[(block.item_rows >= 0) & (block.item_rows < self.num_items)]
            profile.exposures[:] = np.bincount(shown, minlength=self.num_items)
        return Profile(**{**vars(profile), "span": block.span})

    def _values(self, one: Bins, encoded: Array, table: pa.Table | None) -> _Values:
        feature = self._features[one.feature]
        raw = None
        if table is not None and feature.source_column in table.column_names:
            raw = table.column(feature.source_column)
        found = states(feature, encoded, raw)
        if raw is not None and feature.kind == "tags":
            unseen_values(self.pipeline, feature, raw, found)
        wants_rows = one.has_vocabulary and one.values > NUM_SINGLE
        numbers = None
        if not one.has_vocabulary and one.kind != "time":
            numbers = one.numbers(encoded).astype(np.float32)
        return _Values(
            codes=one.codes(encoded),
            states=found,
            numbers=numbers,
            rows=encoded if wants_rows else None,
        )

    def _count_unknown(
        self, name: str, found: States, column: ColumnProfile, raw: pa.Table | None
    ) -> None:
        """Ids that the bundle does not know are unseen values of the feature that is the id."""
        feature = self._features[self.bins[name].feature]
        if feature.source_column != KEYS[feature.side]:
            return
        found[found == ABSENT] = UNSEEN
        self._count_unseen(self.bins[name], found, column, raw)

    def _count_unseen(
        self, one: Bins, found: States, column: ColumnProfile, raw: pa.Table | None
    ) -> None:
        """The values themselves that training did not see."""
        feature: Feature = self._features[one.feature]
        if raw is None or not one.has_vocabulary or feature.source_column not in raw.column_names:
            return
        values = unseen_values(self.pipeline, feature, raw.column(feature.source_column), found)
        if len(values):
            counted = count_values(values)
            counts = counted.column("count").to_numpy()
            column.top_unseen.add(counted.column("value").combine_chunks(), counts, len(values))

    def _vocabulary(self, name: str) -> pa.Array | None:
        transform = self.pipeline.transforms[self.bins[name].feature]
        return transform.vocabulary.values if isinstance(transform, (Categorical, Tags)) else None


def groups_of(ids: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """Group of every user (N,), by a hash of the id."""
    return (column_hashes(ids) >> np.uint64(56)).astype(np.uint8)


def groups_in_turn(num_rows: int) -> npt.NDArray[np.uint8]:
    """Groups (R,) of rows that have no user: in turn."""
    return (np.arange(num_rows) % NUM_GROUPS).astype(np.uint8)


def _outcome(one: Bins, values: Array) -> _Values:
    codes = one.codes(values)
    missing = NULL if one.name == LABEL_COLUMN else ABSENT  # not every row is scored
    found = np.where(codes == MISSING, missing, KNOWN).astype(np.int8)
    return _Values(codes=codes, states=found, numbers=values, rows=None)


def _count(
    one: Bins,
    column: ColumnProfile,
    values: _Values,
    groups: npt.NDArray[np.uint8],
    vocabulary: pa.Array | None,
) -> None:
    num_bins = one.num_bins
    by_state = np.bincount(groups.astype(np.int32) * 4 + values.states, minlength=4 * NUM_GROUPS)
    by_state = by_state.reshape(NUM_GROUPS, 4)
    column.rows += by_state.sum(axis=1) - by_state[:, ABSENT]
    column.null += by_state[:, NULL]
    column.unseen += by_state[:, UNSEEN]
    absent = bool(by_state[:, ABSENT].any())
    starts = groups.astype(np.int32) * (num_bins + 1) + 1  # the first of a group is for none
    codes = values.codes
    if absent:
        gone = (values.states == ABSENT).reshape((-1,) + (1,) * (codes.ndim - 1))
        codes = np.where(gone, np.int16(MISSING), codes)
    for part in codes[:, None].T if codes.ndim == 1 else codes.T:
        counts = np.bincount(starts + part.ravel(), minlength=NUM_GROUPS * (num_bins + 1))
        column.counts += counts.reshape(NUM_GROUPS, num_bins + 1)[:, 1:]
    if values.numbers is not None:
        numbers = values.numbers[values.states == KNOWN] if absent else values.numbers
        column.quantiles.add(numbers)
    if values.rows is not None and vocabulary is not None:
        rows = values.rows[values.states != ABSENT] if absent else values.rows
        found, counts = _count_rows(rows[rows > 0], len(vocabulary) + 1)
        total = int(counts.sum())
        column.top.add(vocabulary.take(pa.array(found - 1)), counts, total)


def _count_rows(rows: Array, num_rows: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """Distinct rows and how often each occurs."""
    if num_rows > 4 * len(rows):
        found, counts = np.unique(rows, return_counts=True)
        return found, counts
    counts = np.bincount(rows, minlength=num_rows)
    found = np.flatnonzero(counts)
    return found, counts[found]
