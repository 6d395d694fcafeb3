"""Sketches of Apache DataSketches: quantiles (KLL) and frequent values, merged and stored as bytes.

KLL: Karnin, Lang, Liberty, "Optimal quantile approximation in streams", FOCS 2016; frequent values:
Anderson et al., "A high-performance algorithm for identifying frequent items in data streams",
IMC 2017. Both bound their error whatever the data: the rank of a quantile is off by at most
`RANK_ERROR` of the rows (with 99 % confidence), the count of a value by at most `COUNT_ERROR`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

try:
    import datasketches
except ImportError as error:
    raise ImportError(
        "monitoring needs the package `datasketches`: pip install 'datasketches>=5.2,<6'"
    ) from error

KLL_SIZE = 400
RANK_ERROR = float(datasketches.kll_doubles_sketch(KLL_SIZE).normalized_rank_error(False))
LG_COUNTERS = 10
# Of all weight: what the sketch may lose, and what is not handed to it (see `FrequentValues.add`).
LIGHT_SHARE = 1 / 4096
COUNT_ERROR = 3.5 / 2**LG_COUNTERS + LIGHT_SHARE


class Quantiles:
    """Quantiles of a stream of numbers.

    Args:
        stored: What `to_bytes` gave, to go on from; nothing for a new one.

    Example:
        >>> seen = Quantiles()
        >>> seen.add(np.array([3.0, 1.0, 2.0]))
        >>> seen.at([0.5])
        [2.0]
    """

    def __init__(self, stored: bytes = b"") -> None:
        kind = datasketches.kll_doubles_sketch
        self._sketch = kind.deserialize(stored) if stored else kind(KLL_SIZE)

    @property
    def count(self) -> int:
        """Numbers that were added."""
        return int(self._sketch.n)

    def add(self, numbers: npt.NDArray[np.float64]) -> None:
        """Take up numbers (R,); NaN does not count."""
        self._sketch.update(np.ascontiguousarray(numbers, np.float64))

    def merge(self, other: Quantiles) -> None:
        """Take up what another has seen."""
        self._sketch.merge(other._sketch)

    def at(self, ranks: Sequence[float]) -> list[float]:
        """Numbers below which these shares of all lie; NaN while there are none."""
        if self._sketch.is_empty():
            return [float("nan")] * len(ranks)
        return [float(number) for number in self._sketch.get_quantiles(list(ranks))]

    def to_bytes(self) -> bytes:
        """To be stored."""
        return bytes(self._sketch.serialize())


class FrequentValues:
    """The most frequent values of a stream of texts.

    Args:
        stored: What `to_bytes` gave, to go on from; nothing for a new one.
    """

    def __init__(self, stored: bytes = b"") -> None:
        kind = datasketches.frequent_strings_sketch
        self._sketch = kind.deserialize(stored) if stored else kind(LG_COUNTERS)

    def add(self, values: pa.Array, counts: npt.NDArray[np.int64], total: int) -> None:
        """Take up values with their counts.

        Values that are lighter than the error of the sketch are left out: they cannot be among the
        frequent ones of this part, and there may be millions of them.

        Args:
            values: (V,) distinct values.
            counts: (V,) how often each was seen.
            total: How often all values of this part were seen.
        """
        heavy = np.flatnonzero(counts > total * LIGHT_SHARE)
        words = values.take(pa.array(heavy)).cast(pa.string()).to_pylist()
        for word, count in zip(words, counts[heavy].tolist(), strict=True):
            self._sketch.update(word, count)

    def merge(self, other: FrequentValues) -> None:
        """Take up what another has seen."""
        self._sketch.merge(other._sketch)

    def top(self, number: int) -> Mapping[str, int]:
        """The most frequent values and their counts, most frequent first."""
        found = self._sketch.get_frequent_items(
            datasketches.frequent_items_error_type.NO_FALSE_NEGATIVES
        )
        ordered = sorted(found, key=lambda row: (-row[1], row[0]))
        return {str(row[0]): int(row[1]) for row in ordered[:number]}

    def to_bytes(self) -> bytes:
        """To be stored."""
        return bytes(self._sketch.serialize())
