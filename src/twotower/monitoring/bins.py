"""Fixed bins for everything that is profiled, so that profiles of parts add up exactly.

The bins are laid once, over the training data, and kept with the bundle. They cut the encoded
values (`twotower.features.spec`), which training, windows of logs and the server all have:

- ``id``, ``categorical``, ``tags``: rows of the vocabulary, which stand by falling frequency. The
  most frequent values have a bin each; the others share bins of about equal weight, so that a
  change of popularity moves weight between bins even where there are millions of values.
- ``numeric``: quantiles of the standardised value; a value that takes more than a bin's share of
  the rows gets a bin of its own.
- ``vector``: the same, of the vector's parts along a few fixed random directions.
- ``time``: the hour of day (UTC). The day of week is left out: a window may well be one day.

Shape letters: R rows, B bins, V rows of a vocabulary, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.features.spec import TABLE_KINDS, Feature

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]

NUM_FINE = 64  # bins of a number
NUM_SINGLE = 48  # values of a vocabulary with a bin of their own
NUM_SHARED = 16  # bins of the others
NUM_DIRECTIONS = 4
DIRECTION_SEED = 20_260
HOURS = 24

LABEL_COLUMN, SCORE_COLUMN = "label", "score"
OUTCOMES = (LABEL_COLUMN, SCORE_COLUMN)
MISSING = -1


@dataclass(frozen=True, kw_only=True)
class Bins:
    """How one column is cut.

    Args:
        name: ``<side>.<feature>``, with ``[n]`` for the part of a vector along a direction, or
            ``label`` or ``score``.
        feature: Name of the feature; empty for label and score.
        side: user, item, context, or ``outcome`` for label and score.
        kind: Kind of the feature; ``numeric`` for label and score.
        edges: (B - 1,) ascending; a value is in bin ``#{edges <= value}``.
        direction: Which of the fixed directions, for a vector.
        values: How many values of the vocabulary are known; 0 for other kinds.
        told_apart: Whether null and unseen can be told apart in the training data.
    """

    name: str
    feature: str
    side: str
    kind: str
    edges: tuple[float, ...]
    direction: int | None = None
    values: int = 0
    told_apart: bool = True

    @property
    def num_bins(self) -> int:
        """B."""
        return len(self.edges) + 1

    @property
    def has_vocabulary(self) -> bool:
        """Whether values may be unseen."""
        return self.kind in TABLE_KINDS

    def codes(self, values: Array) -> Codes:
        """Bin of every value, -1 where it is missing.

        Args:
            values: (R, ...) encoded, as `twotower.features.spec` says; (R,) float32 with NaN for
                missing for label and score.

        Returns:
            (R,), for tags (R, T).
        """
        if self.has_vocabulary:
            return self._found(values, values > 0)
        numbers = self.numbers(values)
        return self._found(numbers, ~np.isnan(numbers))

    def numbers(self, values: Array) -> Floats:
        """Encoded values that are no vocabulary rows as numbers (R,), NaN where missing."""
        if self.kind == "vector":
            along = values.astype(np.float64) @ direction(values.shape[1], self.direction or 0)
            return np.where(np.any(values, axis=1), along, np.nan)
        if self.kind == "time":
            hours = np.arctan2(values[:, 0], values[:, 2]) / (2 * np.pi) * HOURS % HOURS
            # An angle of float32 falls short of the full hour by up to 1e-5 hours.
            return np.where(np.any(values[:, [0, 2]], axis=1), (hours + 1e-4) % HOURS, np.nan)
        if self.feature:
            return np.where(values[:, 1] != 0, np.nan, values[:, 0].astype(np.float64))
        return np.asarray(values, np.float64)

    def _found(self, values: Array, known: npt.NDArray[np.bool_]) -> Codes:
        if self.has_vocabulary:  # a table is faster than a search
            top = int(self.edges[-1]) if self.edges else 1
            table = np.searchsorted(np.asarray(self.edges), np.arange(top + 1), side="right")
            codes = table[np.minimum(values, top)]
        else:
            codes = np.searchsorted(np.asarray(self.edges), values, side="right")
        return np.where(known, codes, MISSING).astype(np.int16)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> Bins:
        """Read what `to_dict` gave."""
        return Bins(**{**document, "edges": tuple(document["edges"])})


def direction(width: int, number: int) -> Floats:
    """One of the fixed directions (D,), of unit length; the same in every process."""
    drawn = np.random.default_rng([DIRECTION_SEED, width, number]).standard_normal(width)
    return np.asarray(drawn / np.linalg.norm(drawn))


def vocabulary_edges(counts: npt.NDArray[np.int64]) -> tuple[float, ...]:
    """Where bins of vocabulary rows begin, the first one apart.

    Args:
        counts: (V,) rows of the training data by vocabulary row; that of row 0, which is no value,
            does not count.
    """
    known = counts[1:]
    num_single = min(len(known), NUM_SINGLE)
    edges = [float(row) for row in range(2, num_single + 1)]
    rest = known[num_single:]
    if not len(rest):
        return tuple(edges)
    weights = np.cumsum(rest + 1e-9)  # values that do not occur are shared out too
    shares = np.linspace(0, weights[-1], NUM_SHARED + 1)[:-1]
    starts = np.unique(np.searchsorted(weights, shares, side="right")) + num_single + 1
    return (*edges, *(float(row) for row in starts))


def number_edges(numbers: Floats, num_bins: int = NUM_FINE) -> tuple[float, ...]:
    """Edges of bins of about equal weight.

    A number that takes at least a bin's share of the rows begins a bin, and so does the next
    larger one: it is alone in its bin.

    Args:
        numbers: (R,) training values; NaN does not count.
        num_bins: About how many bins.
    """
    known = np.sort(numbers[~np.isnan(numbers)])
    if not len(known):
        return ()
    values, counts = np.unique(known, return_counts=True)
    if len(values) <= num_bins:
        return tuple(values[1:].tolist())
    heavy = np.flatnonzero(counts * num_bins >= len(known))
    alone = np.concatenate([values[heavy], values[np.minimum(heavy + 1, len(values) - 1)]])
    places = np.linspace(0, len(known), num_bins + 1)[1:-1].astype(np.int64)
    edges = np.unique(np.concatenate([known[places], alone]))
    return tuple(edges[edges > values[0]].tolist())


def coarse(counts: Floats, num_bins: int) -> Codes:
    """Which of fewer bins every bin goes to (B,): neighbours of about equal weight together.

    Args:
        counts: (B,) weights by bin.
        num_bins: How many at most.
    """
    weights = np.maximum(np.asarray(counts, np.float64), 0)
    total = weights.sum()
    if len(weights) <= num_bins or total == 0:
        return np.arange(len(weights), dtype=np.int16)
    middles = (np.cumsum(weights) - weights / 2) / total
    places = np.minimum((middles * num_bins).astype(np.int32), num_bins - 1)
    return np.unique(places, return_inverse=True)[1].astype(np.int16)


def column_name(feature: Feature, part: int | None = None) -> str:
    """Name of the column of a feature, such as ``user.country``."""
    return f"{feature.side}.{feature.name}" + ("" if part is None else f"[{part}]")


def parts_of(feature: Feature) -> Sequence[int | None]:
    """The parts of a feature that are profiled."""
    return range(NUM_DIRECTIONS) if feature.kind == "vector" else (None,)
