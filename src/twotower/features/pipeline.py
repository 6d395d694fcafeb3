"""All fitted features of one spec; one object encodes training data, batch jobs and requests.

Stored as ``features.json`` (spec, numbers, record of the rows it was fitted on) and one Arrow file
a vocabulary; see `FeaturePipeline.save`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import pyarrow as pa

from twotower.data.leakage import FittedOn
from twotower.data.prepared import read_arrow, write_arrow
from twotower.data.schema import HISTORY_OFFSETS, ITEM_ID, USER_ID, DataError
from twotower.data.training_part import Columns, TrainingPart
from twotower.data.workers import Threads
from twotower.features.one_row import Encode, one_value
from twotower.features.spec import (
    HISTORY_MASK,
    HISTORY_PREFIX,
    HISTORY_TIME,
    TABLE_KINDS,
    Feature,
    FeatureInput,
    FeatureSpec,
    ModelInputs,
    Stage,
    spec_from_dict,
)
from twotower.features.transforms import (
    Categorical,
    Numeric,
    Tags,
    Time,
    Transform,
    Vector,
    fit_transform,
)
from twotower.features.vocabulary import Vocabulary

FEATURES_FILE = "features.json"

Array = npt.NDArray[Any]
Side = Literal["user", "item", "context"]


@dataclass(frozen=True)
class FeaturePipeline:
    """A feature spec with its fitted state.

    Args:
        spec: What the user declared or `infer` found.
        transforms: Fitted transform of every feature by name.
        fitted_on: Record of the interactions it was fitted on.
    """

    spec: FeatureSpec
    transforms: Mapping[str, Transform]
    fitted_on: FittedOn

    @staticmethod
    def fit(spec: FeatureSpec, part: TrainingPart) -> FeaturePipeline:
        """Fit every feature on the training part.

        User and item ids are counted in the interactions; attributes of users and items over the
        users and items that occur in them.

        Raises:
            DataError: Lists every feature whose column is missing or of an unfit type.
        """
        problems: list[str] = []
        transforms: dict[str, Transform] = {}
        tables = {feature.name: training_table(feature, part) for feature in spec.features}

        def fit(feature: Feature) -> Transform | str:
            table = tables[feature.name]
            if table is None or feature.source_column not in table.column_names:
                columns = "none" if table is None else ", ".join(table.column_names)
                return (
                    f"feature `{feature.name}`: no column `{feature.source_column}` on the "
                    f"{feature.side} side; columns: {columns}"
                )
            try:
                return fit_transform(feature, table.column(feature.source_column))
            except ValueError as error:
                return f"feature `{feature.name}` of kind {feature.kind}: {error}"

        for feature, fitted in zip(spec.features, Threads().map(fit, spec.features), strict=True):
            if isinstance(fitted, str):
                problems.append(fitted)
            else:
                transforms[feature.name] = fitted
        known = {f.name for f in spec.features if f.side == "item"}
        problems += [
            f"history: `{name}` is no item feature; allowed: {', '.join(sorted(known))}"
            for name in spec.history.features
            if name not in known and spec.history.length
        ]
        problems += [
            f"history: a feature called `{name}` cannot describe an event, "
            f"`{HISTORY_PREFIX}{name}` is taken; give it another name and say `column: <name>`"
            for name in spec.history.features
            if HISTORY_PREFIX + name in (HISTORY_MASK, HISTORY_TIME, HISTORY_OFFSETS)
        ]
        if problems:
            raise DataError(problems)
        return FeaturePipeline(spec, transforms, part.fitted_on)

    def source_columns(self, side: Side) -> tuple[str, ...]:
        """Columns of a table that `encode` reads, where they are there."""
        return tuple({f.source_column: None for f in self.spec.features if f.side == side})

    def encode(self, side: Side, table: pa.Table) -> dict[str, Array]:
        """Encode one table.

        Args:
            side: Whose features.
            table: R rows; a column that is missing counts as null.

        Returns:
            Encoded columns by feature name, (R, ...) each.

        Raises:
            DataError: Lists every feature whose values cannot be encoded.
        """
        problems: list[str] = []
        encoded: dict[str, Array] = {}
        for feature in self.spec.features:
            if feature.side != side:
                continue
            values = pa.nulls(table.num_rows)
            if feature.source_column in table.column_names:
                values = table.column(feature.source_column)
            try:
                encoded[feature.name] = self.transforms[feature.name].apply(values)
            except ValueError as error:
                problems.append(f"feature `{feature.name}` of kind {feature.kind}: {error}")
        if problems:
            raise DataError(problems)
        return encoded

    def encode_row(self, side: Side, values: Mapping[str, Any]) -> dict[str, Array]:
        """Encode one row, as `encode` does a table of it and without the time that a table takes.

        Args:
            side: Whose features.
            values: Values by column; a column that is missing counts as null.

        Returns:
            Encoded columns by feature name, (1, ...) each.

        Raises:
            DataError: Lists every feature whose value cannot be encoded.
        """
        problems: list[str] = []
        encoded: dict[str, Array] = {}
        for feature, one in self._encoders(side):
            try:
                encoded[feature.name] = one(values.get(feature.source_column))
            except ValueError as error:
                problems.append(f"feature `{feature.name}` of kind {feature.kind}: {error}")
        if problems:
            raise DataError(problems)
        return encoded

    def _encoders(self, side: Side) -> list[tuple[Feature, Encode]]:
        """What encodes a value of every feature of a side; made when it is first asked for."""
        if side not in self._made:
            features = [feature for feature in self.spec.features if feature.side == side]
            self._made[side] = [(f, one_value(self.transforms[f.name])) for f in features]
        return self._made[side]

    @cached_property
    def _made(self) -> dict[Side, list[tuple[Feature, Encode]]]:
        return {}

    def inputs(self, stage: Stage) -> ModelInputs:
        """What the model of a stage is given."""
        chosen = [f for f in self.spec.features if stage in f.stages]
        history = self.spec.history
        names = {f.name for f in chosen}
        described_by = tuple(n for n in history.features if n in names and history.length)
        return ModelInputs(
            features=tuple(self._input(f) for f in chosen),
            history_length=history.length if described_by else 0,
            history_features=described_by,
            history_times=bool(described_by) and self.fitted_on.last_timestamp is not None,
        )

    def digest(self) -> str:
        """Digest of the spec and all fitted state; two pipelines with the same one encode alike."""
        vocabularies = {n: v.digest() for n, v in self._vocabularies().items()}
        document = [self.spec.to_dict(), self._state(), vocabularies]
        text = json.dumps(document, sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the spec and the fitted state into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        document = {
            "spec": self.spec.to_dict(),
            "state": self._state(),
            "fitted_on": asdict(self.fitted_on),
        }
        (folder / FEATURES_FILE).write_text(json.dumps(document, indent=1))
        for name, vocabulary in self._vocabularies().items():
            write_arrow(folder / f"{name}.arrow", pa.table({"value": vocabulary.values}))

    @staticmethod
    def load(folder: Path) -> FeaturePipeline:
        """Read what `save` wrote."""
        document = json.loads((folder / FEATURES_FILE).read_text())
        spec = spec_from_dict(document["spec"])
        transforms = {
            feature.name: _restore(feature, document["state"][feature.name], folder)
            for feature in spec.features
        }
        return FeaturePipeline(spec, transforms, FittedOn(**document["fitted_on"]))

    def _state(self) -> dict[str, dict[str, Any]]:
        return {name: _state(transform) for name, transform in self.transforms.items()}

    def _vocabularies(self) -> dict[str, Vocabulary]:
        return {
            name: transform.vocabulary
            for name, transform in self.transforms.items()
            if isinstance(transform, (Categorical, Tags))
        }

    def _input(self, feature: Feature) -> FeatureInput:
        transform = self.transforms[feature.name]
        return FeatureInput(
            name=feature.name,
            side=feature.side,
            kind=feature.kind,
            dim=feature.dim,
            num_rows=transform.num_rows if feature.kind in TABLE_KINDS else 0,
            width=transform.width,
            has_missing=getattr(transform, "has_missing", True),
        )


def training_table(feature: Feature, part: TrainingPart) -> Columns | None:
    """The table whose rows a feature is fitted on."""
    is_key = feature.source_column == {"user": USER_ID, "item": ITEM_ID}.get(feature.side)
    if feature.side == "context" or is_key:
        return part.interactions
    return part.users if feature.side == "user" else part.items


def _state(transform: Transform) -> dict[str, Any]:
    if isinstance(transform, Numeric):
        # Pipelines that were written before this was told apart have the digest that they had.
        told = {} if transform.has_missing else {"has_missing": False}
        return {"mean": transform.mean, "scale": transform.scale, **told}
    return {"width": transform.width}


def _restore(feature: Feature, state: Mapping[str, Any], folder: Path) -> Transform:
    if feature.kind == "numeric":
        return Numeric(log=feature.log, **state)
    if feature.kind == "vector":
        return Vector(width=state["width"])
    if feature.kind == "time":
        return Time()
    values = read_arrow(folder / f"{feature.name}.arrow").column("value").combine_chunks()
    vocabulary = Vocabulary(values)
    if feature.kind == "tags":
        return Tags(vocabulary, state["width"], feature.separator)
    return Categorical(vocabulary)
