"""``features=auto``: a feature spec guessed from the columns, to be written out and edited.

Types are read off the training part. A column is left out, and it is said why, when it looks like
free text or when it belongs to the interactions and nobody declared that it is known at request
time (``data.context=[...]``): a column that is filled in after the event would leak its outcome.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Final, Literal, Protocol

from twotower.data.schema import (
    ITEM_ID,
    LABEL,
    POSITION,
    RESERVED_COLUMNS,
    TIMESTAMP,
    USER_ID,
    DataError,
)
from twotower.data.training_part import Column, Columns, TrainingPart
from twotower.data.workers import Threads
from twotower.features.column_facts import Facts, is_binary, kind_of, obstacle_of
from twotower.features.pipeline import FeaturePipeline, training_table
from twotower.features.spec import (
    TABLE_KINDS,
    Feature,
    FeatureSpec,
    History,
    Side,
    is_feature_name,
)
from twotower.features.transforms import fit_transform

log = logging.getLogger(__name__)

AUTO: Final = "auto"
KEYS = {"user": USER_ID, "item": ITEM_ID}
NOT_FORESEEN = (
    "Column `%s` of the interactions is no feature: nobody said that it is known at request time. "
    "If it is, add it to data.context."
)
POSSIBLE_LABEL = (
    "Column `%s` of the interactions is 0 or 1, and no label is declared: every row counts as a "
    "positive. If it says how an impression ended, say data.label.column=%s; if it is known at "
    "request time, add it to data.context."
)


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
        retrieval_only: Features that the ranker does not see, such as a user id that it would only
            memorise.
        dims: Width of the embedding by feature; the others leave it to the model. ``auto`` stands
            for six times the fourth root of the number of values (Wang et al. 2017, "Deep & Cross
            Network for Ad Click Predictions"), for one feature or for all that have a table.
    """

    history_length: int = 20
    history_features: tuple[str, ...] | list[str] | None = None
    min_count: int = 1
    time: bool = True
    exclude: tuple[str, ...] | list[str] = ()
    retrieval_only: tuple[str, ...] | list[str] = ()
    dims: Literal["auto"] | dict[str, int | Literal["auto"]] | None = None

    def spec(self, part: TrainingPart) -> FeatureSpec:
        """See `SpecProvider`."""
        features = [
            replace(f, stages=("retrieval",)) if f.name in self.retrieval_only else f
            for f in self._features(part)
        ]
        features = self._widened(features, part)
        known = {c.name for c in _columns(part)} | {f.name for f in features}
        known |= set(part.interactions.column_names)
        for name in sorted({*self.exclude, *self.retrieval_only} - known):
            log.warning("features.exclude, features.retrieval_only: there is no column `%s`", name)
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

    def _widened(self, features: Sequence[Feature], part: TrainingPart) -> list[Feature]:
        """The features with the widths that were asked for."""
        dims: Mapping[str, int | Literal["auto"]]
        if self.dims == AUTO:
            dims = {f.name: AUTO for f in features if f.kind in TABLE_KINDS}
        else:
            dims = self.dims or {}
        names = [f.name for f in features]
        problems = [
            f"features.dims: there is no feature `{name}`; features: {', '.join(names)}"
            for name in dims
            if name not in names
        ]
        if problems:
            raise DataError(problems)
        widths = {
            f.name: _auto_dim(f, part) if (dim := dims.get(f.name, f.dim)) == AUTO else dim
            for f in features
        }
        return [replace(f, dim=widths[f.name]) for f in features]

    def _features(self, part: TrainingPart) -> Iterator[Feature]:
        columns = [
            column
            for column in _columns(part)
            if column.name not in self.exclude and (self.time or not column.is_instant)
        ]
        names = Counter(column.feature_name for column in columns)
        told = [c for c in columns if c.name != KEYS.get(c.side) and not c.is_instant]
        for _ in Threads().map(lambda column: column.facts, told):
            pass  # they are kept by their columns
        for column in columns:
            if column.name == KEYS.get(column.side):
                yield Feature(
                    name=column.name, side=column.side, kind="id", min_count=self.min_count
                )
            elif column.is_instant:
                yield Feature(name=TIMESTAMP, side="context", kind="time")
            elif (obstacle := obstacle_of(column.facts)) is not None:
                log.warning(
                    "Column `%s` (%s side, %s) is no feature: %s",
                    *(column.name, column.side, column.values.type, obstacle),
                )
            else:
                yield _guess(column, names)
        unused = set(part.interactions.column_names) - set(RESERVED_COLUMNS) - set(part.context)
        for name in sorted(unused - set(self.exclude)):
            may_be_label = LABEL not in part.interactions.column_names
            if may_be_label and is_binary(part.interactions.column(name)):
                log.warning(POSSIBLE_LABEL, name, name)
            else:
                log.warning(NOT_FORESEEN, name)


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


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A column of the training part that may become a feature."""

    side: Side
    name: str
    values: Column

    @property
    def feature_name(self) -> str:
        return self.name.replace("/", "_")

    @property
    def is_instant(self) -> bool:
        return self.name == TIMESTAMP and self.side == "context"

    @cached_property
    def facts(self) -> Facts:
        return Facts.of(self.values)


def _columns(part: TrainingPart) -> Iterator[_Candidate]:
    sides: tuple[tuple[Side, Columns | None], ...] = (("user", part.users), ("item", part.items))
    for side, table in sides:
        if table is None:
            continue
        for name in table.column_names:
            yield _Candidate(side=side, name=name, values=table.column(name))
    instant = {TIMESTAMP} & set(part.interactions.column_names)
    for name in (*(name for name in part.context if name not in instant), *instant):
        yield _Candidate(side="context", name=name, values=part.interactions.column(name))


def _guess(column: _Candidate, names: Mapping[str, int]) -> Feature:
    """The feature of a column; the side stands before a name that is not free or not the only one.

    Args:
        column: One without an `obstacle_of`.
        names: How many columns would give a feature its name.
    """
    name = column.feature_name
    if names[name] > 1 or not is_feature_name(name):
        name = f"{column.side}_{name}"
    source = "" if name == column.name else column.name
    if column.name == POSITION and column.side == "context":
        # The slot decides what is clicked, but no retrieval knows it.
        return Feature(
            name=name, side="context", kind="categorical", column=source, stages=("ranking",)
        )
    return Feature(name=name, side=column.side, kind=kind_of(column.facts), column=source)


def _auto_dim(feature: Feature, part: TrainingPart) -> int:
    """Six times the fourth root of the number of values with a row of their own.

    Raises:
        DataError: When the feature has no table.
    """
    table = training_table(feature, part)
    if feature.kind not in TABLE_KINDS or table is None:
        raise DataError(
            [f"features.dims: auto does nothing for `{feature.name}` of kind {feature.kind}; "
             f"allowed for {', '.join(TABLE_KINDS)}"]
        )  # fmt: skip
    fitted = fit_transform(feature, table.column(feature.source_column))
    return max(1, round(6 * math.sqrt(math.sqrt(fitted.num_rows - 1))))
