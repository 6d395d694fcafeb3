"""Features of a new window with which the models of an earlier run can go on.

What a row of a table or a number means to a trained model must not change: values keep their rows
and new ones get rows of their own, numbers keep their mean and scale, vectors their width. Only
what is recorded about the rows that were looked at is that of the new window.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.schema import DataError
from twotower.data.training_part import TrainingPart
from twotower.features.infer import GivenSpec, SpecProvider
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec
from twotower.features.transforms import Categorical, Numeric, Tags, Transform, Vector

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Makes the pipeline of a window out of that of an earlier run; an `EncoderFactory`.

    Args:
        provider: What the config says of the features. A spec that was given must be that of the
            earlier run; one that is inferred gives way to it, with a warning for every new column.
        before: The earlier run's pipeline.
        evict: Whether ids without a training row in the window give up their rows.
    """

    provider: SpecProvider
    before: FeaturePipeline
    evict: bool = False

    def fingerprint(self) -> str:
        """Digest of the options."""
        return json.dumps([self.provider.fingerprint(), self.before.digest(), self.evict])

    def fit(self, part: TrainingPart) -> FeaturePipeline:
        """The pipeline of a training part.

        Raises:
            DataError: Lists every feature that is not what it was.
        """
        spec = self.before.spec
        _compare(spec, self.provider.spec(part), given=isinstance(self.provider, GivenSpec))
        fitted = FeaturePipeline.fit(spec, part)
        transforms: dict[str, Transform] = {}
        problems = []
        for feature in spec.features:
            old, new = self.before.transforms[feature.name], fitted.transforms[feature.name]
            try:
                transforms[feature.name] = _continued(
                    old, new, evict=self.evict and feature.kind == "id"
                )
            except ValueError as error:
                problems.append(f"warm_start: feature `{feature.name}`: {error}")
            if getattr(new, "has_missing", False) and not getattr(old, "has_missing", True):
                log.warning(
                    "warm_start: values of `%s` are missing, of which the run that is gone on from "
                    "lacked none; they count as its mean; train without warm_start to tell them "
                    "apart",
                    feature.name,
                )
        if problems:
            raise DataError(problems)
        return FeaturePipeline(spec, transforms, part.fitted_on)


def _continued(old: Transform, new: Transform, *, evict: bool) -> Transform:
    if isinstance(old, Categorical) and isinstance(new, Categorical):
        return Categorical(old.vocabulary.grown(new.vocabulary, evict=evict))
    if isinstance(old, Tags) and isinstance(new, Tags):
        width = max(old.width, new.width)
        return replace(old, vocabulary=old.vocabulary.grown(new.vocabulary), width=width)
    if isinstance(old, Vector) and old.width != new.width:
        raise ValueError(
            f"vectors of {new.width} numbers, the run that is gone on from has {old.width}"
        )
    return old


def _compare(before: FeatureSpec, wanted: FeatureSpec, *, given: bool) -> None:
    old = {feature.name: feature for feature in before.features}
    new = {feature.name: feature for feature in wanted.features}
    added = [name for name in new if name not in old]
    problems = [f"feature `{name}`: the run lacks it" for name in added if given]
    if given:
        problems += [f"feature `{name}`: only the run has it" for name in old if name not in new]
        problems += [
            text for name in new if name in old for text in _differences(old[name], new[name])
        ]
    else:
        for name in added:
            log.warning(
                "warm_start: `%s` is new and no feature of the run that is gone on from; train "
                "without warm_start to use it",
                name,
            )
    if wanted.history.length != before.history.length or (given and wanted != before):
        old_history, new_history = before.history, wanted.history
        if old_history != new_history:
            problems.append(
                f"history: length {new_history.length} of {', '.join(new_history.features)}, the "
                f"run has length {old_history.length} of {', '.join(old_history.features)}"
            )
    if problems:
        raise DataError([f"warm_start: {problem}" for problem in problems])


def _differences(old: Feature, new: Feature) -> list[str]:
    return [
        f"feature `{new.name}`: `{field.name}` is {getattr(new, field.name)!r}, the run has "
        f"{getattr(old, field.name)!r}"
        for field in fields(Feature)
        if getattr(new, field.name) != getattr(old, field.name)
    ]


def translated(
    columns: dict[str, Array], made_by: FeaturePipeline, wanted: FeaturePipeline
) -> dict[str, Array]:
    """Encoded columns as another pipeline of the same spec would have encoded them.

    Args:
        columns: Encoded columns by feature, (R, ...) each.
        made_by: The pipeline that encoded them.
        wanted: The other one; what it does not know becomes row 0.
    """
    found = {}
    for name, values in columns.items():
        if name not in wanted.transforms:
            continue
        old, new = made_by.transforms[name], wanted.transforms[name]
        if isinstance(old, Categorical | Tags) and isinstance(new, Categorical | Tags):
            rows = np.concatenate([[0], new.vocabulary.rows(old.vocabulary.values)])
            found[name] = rows.astype(np.int32)[values]
        elif isinstance(old, Numeric) and isinstance(new, Numeric):
            number, missing = values[:, 0] * old.scale + old.mean, values[:, 1]
            standard = np.where(missing > 0, 0.0, (number - new.mean) / new.scale)
            found[name] = np.stack([standard, missing], axis=1).astype(np.float32)
        else:
            found[name] = np.asarray(values)
    return found
