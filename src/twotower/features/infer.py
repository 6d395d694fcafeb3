"""``features=auto``: a feature spec guessed from the columns, to be written out and edited.

Types are read off the training part. A column is left out, and it is said why, when it looks like
free text or when it belongs to the interactions and nobody declared that it is known at request
time (``data.context=[...]``): a column that is filled in after the event would leak its outcome.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.prepare import TrainingPart
from twotower.data.schema import ITEM_ID, POSITION, RESERVED_COLUMNS, TIMESTAMP, USER_ID
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec, History, Kind

log = logging.getLogger(__name__)

MAX_INTEGER_CATEGORIES = 100
MAX_TEXT_SHARE = 0.5
MIN_TEXT_VALUES = 50
MIN_TAGGED_SHARE = 0.1
SEPARATOR = "|"


class SpecProvider(Protocol):
    """Where the feature spec comes from."""

    def spec(self, part: TrainingPart) -> FeatureSpec:
        """The spec for a training part."""

    def fingerprint(self) -> str:
        """Digest of its options."""


@dataclass(frozen=True, kw_only=True)
class AutoSpec:
    """Infers the spec from the columns.

    Args:
        history_length: How many of the user's latest positives a model sees; 0 for none.
        history_features: Item features that describe an event; by default the id and every vector,
            so that a new item in the history says something too.
        min_count: Ids seen less often in the training part share one row.
        time: Whether the time of the request is a feature, where there are timestamps.
        exclude: Columns that are no features.
    """

    history_length: int = 20
    history_features: tuple[str, ...] | list[str] | None = None
    min_count: int = 1
    time: bool = True
    exclude: tuple[str, ...] | list[str] = ()

    def spec(self, part: TrainingPart) -> FeatureSpec:
        """See `SpecProvider`."""
        features = [f for f in self._features(part) if f.name not in self.exclude]
        has_history = part.users is not None and part.items is not None
        described_by = self.history_features or [
            f.name for f in features if f.side == "item" and f.kind in ("id", "vector")
        ]
        history = History(
            length=self.history_length if has_history else 0, features=tuple(described_by)
        )
        return FeatureSpec(features=tuple(features), history=history)

    def fingerprint(self) -> str:
        """See `SpecProvider`."""
        return json.dumps(["auto", asdict(self)])

    def _features(self, part: TrainingPart) -> Iterator[Feature]:
        sides: tuple[tuple[Literal["user", "item"], str, pa.Table | None], ...] = (
            ("user", USER_ID, part.users),
            ("item", ITEM_ID, part.items),
        )
        for side, key, table in sides:
            if table is None:
                continue
            yield Feature(name=key, side=side, kind="id", min_count=self.min_count)
            for name in table.column_names:
                if name != key and name not in self.exclude:
                    yield from _guess(name, side, table.column(name))
        for name in part.context:
            if name not in self.exclude:
                yield from _guess(name, "context", part.interactions.column(name))
        if self.time and TIMESTAMP in part.interactions.column_names:
            yield Feature(name=TIMESTAMP, side="context", kind="time")
        unused = set(part.interactions.column_names) - set(RESERVED_COLUMNS) - set(part.context)
        for name in sorted(unused - set(self.exclude)):
            log.warning(
                "Column `%s` of the interactions is no feature: nobody said that it is known at "
                "request "
                "time. If it is, add it to data.context.",
                name,
            )


@dataclass(frozen=True, kw_only=True)
class GivenSpec:
    """A spec written by a person."""

    given: FeatureSpec

    def spec(self, part: TrainingPart) -> FeatureSpec:
        """See `SpecProvider`."""
        return self.given

    def fingerprint(self) -> str:
        """See `SpecProvider`."""
        return json.dumps(["given", self.given.to_dict()])


@dataclass(frozen=True, kw_only=True)
class PipelineFactory:
    """Fits the pipeline of whatever spec the provider gives; what `prepare` calls."""

    provider: SpecProvider

    def fingerprint(self) -> str:
        """Digest of the options."""
        return self.provider.fingerprint()

    def fit(self, part: TrainingPart) -> FeaturePipeline:
        """Spec and pipeline of a training part."""
        return FeaturePipeline.fit(self.provider.spec(part), part)


def _guess(
    name: str, side: Literal["user", "item", "context"], column: pa.ChunkedArray
) -> Iterator[Feature]:
    kind = _kind(column)
    if kind is None:
        log.warning(
            "Column `%s` (%s side, %s) is no feature: nearly every value is different. Declare it "
            "in a "
            "feature spec to use it.",
            name,
            side,
            column.type,
        )
        return
    if name == POSITION and side == "context":
        yield Feature(name=name, side=side, kind="categorical", stages=("ranking",))
        return
    yield Feature(name=name, side=side, kind=kind)


def _kind(column: pa.ChunkedArray) -> Kind | None:
    kind_of = pa.types
    type_ = column.type.value_type if kind_of.is_dictionary(column.type) else column.type
    if kind_of.is_list(type_) or kind_of.is_large_list(type_) or kind_of.is_fixed_size_list(type_):
        return "vector" if kind_of.is_floating(type_.value_type) else "tags"
    if kind_of.is_floating(type_) or kind_of.is_decimal(type_) or kind_of.is_temporal(type_):
        return "numeric"
    distinct = pc.count_distinct(column).as_py()
    if kind_of.is_integer(type_):
        return "categorical" if distinct <= MAX_INTEGER_CATEGORIES else "numeric"
    if kind_of.is_string(type_) or kind_of.is_large_string(type_):
        known = len(column) - column.null_count
        tagged = pc.sum(pc.match_substring(column, SEPARATOR)).as_py() or 0
        if known and tagged / known >= MIN_TAGGED_SHARE:
            return "tags"
        if distinct > MIN_TEXT_VALUES and distinct > MAX_TEXT_SHARE * known:
            return None
    return "categorical"
