"""What every feature contributes to a score: the score without it, taken from the score with it.

Occlusion (Zeiler & Fergus 2014, arXiv:1311.2901): a feature is set to what it is where its value is
missing, the history to no events, score and rank of the retrieval to the medians of all candidates,
which have no missing value. Contributions of features that work together do not add up to the
score.

Shape letters: V variants, the first of them with all features; D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.schema import OWNER
from twotower.features.spec import HISTORY_PREFIX, FeatureInput
from twotower.serving.models import OnnxModel

Array = npt.NDArray[Any]
Columns = Mapping[str, Array]

HISTORY = "history"
LOGIT = 0  # output of the ranker


@dataclass(frozen=True, kw_only=True)
class Variants:
    """One row of columns, and the same with a part of them occluded in turn.

    Args:
        columns: Columns (V, ...) by name.
        occluded: (V - 1,) what is occluded in the second variant, the third, and so on.
    """

    columns: Columns
    occluded: Sequence[str]


def variants(
    columns: Columns, features: Sequence[FeatureInput], replaced: Mapping[str, float]
) -> Variants:
    """One row with every part occluded in turn.

    Args:
        columns: (1, ...) each, with ``history.*`` where there is a history.
        features: Those that are occluded.
        replaced: Further columns, and what stands in them where they are occluded.
    """
    missing = {feature.name: {feature.name: _missing(feature)} for feature in features}
    history = {name: np.zeros((), c.dtype) for name, c in columns.items() if _of_history(name)}
    missing |= {HISTORY: history} if history else {}
    missing |= {name: {name: np.asarray(value)} for name, value in replaced.items()}
    parts = [part for part in missing if all(name in columns for name in missing[part])]
    repeated = {name: np.repeat(c, len(parts) + 1, axis=0) for name, c in columns.items()}
    for variant, part in enumerate(parts, start=1):
        for name, value in missing[part].items():
            repeated[name][variant] = value
    return Variants(columns=repeated, occluded=parts)


def logit_contributions(ranker: OnnxModel, given: Variants) -> tuple[float, dict[str, float]]:
    """The ranker's logit of one pair, and what every part of it contributes.

    Args:
        ranker: The ranker.
        given: Columns of query, item and retrieval.
    """
    owners = {OWNER: np.arange(len(given.occluded) + 1)}
    return _differences(ranker.run({**given.columns, **owners}, output=LOGIT), given)


def score_contributions(
    tower: OnnxModel, given: Variants, other: npt.NDArray[np.float32]
) -> tuple[float, dict[str, float]]:
    """The score of one pair of vectors, and what every feature of one side contributes.

    Args:
        tower: The tower of this side.
        given: Its columns.
        other: (D,) vector of the other side.
    """
    return _differences(tower.run(given.columns) @ other, given)  # (V, D) (D,) -> (V,)


def _differences(scores: Array, given: Variants) -> tuple[float, dict[str, float]]:
    whole, *without = scores.astype(float).tolist()
    return whole, {part: whole - score for part, score in zip(given.occluded, without, strict=True)}


def _missing(feature: FeatureInput) -> Array:
    """A missing value as the pipeline encodes it."""
    return np.array([0.0, 1.0]) if feature.kind == "numeric" else np.asarray(0)


def _of_history(name: str) -> bool:
    return name.startswith(HISTORY_PREFIX)
