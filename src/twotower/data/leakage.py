"""The leak check: everything that was fitted must have seen the training part and nothing else.

Whoever fits something (a vocabulary, a scale, item frequencies, popularity) writes down on what:
the `FittedOn` of the rows it was really handed. Before a run trains, the records are compared with
the training part; a mismatch ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from twotower.data.schema import DataError


@dataclass(frozen=True, kw_only=True)
class FittedOn:
    """On which interactions something was fitted.

    Args:
        num_rows: How many rows it saw.
        last_timestamp: Latest time among them in microseconds, or None without times.
        digest: Digest of their sorted row numbers in the user's table.
    """

    num_rows: int
    last_timestamp: int | None
    digest: str

    @staticmethod
    def rows(
        row_numbers: npt.NDArray[np.int64], timestamps: npt.NDArray[np.int64] | None
    ) -> FittedOn:
        """The record of some rows.

        Args:
            row_numbers: (R,) positions in the user's table.
            timestamps: (R,) microseconds, or None.
        """
        seen = RowRecord()
        seen.add(np.sort(row_numbers.astype(np.int64)), timestamps)
        return seen.fitted_on()


class RowRecord:
    """Takes down rows as they are seen, block by block."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._latest: int | None = None
        self._digest = blake2b(digest_size=16)

    def add(
        self, row_numbers: npt.NDArray[np.int64], timestamps: npt.NDArray[np.int64] | None
    ) -> None:
        """Take down some rows.

        Args:
            row_numbers: (B,) rising positions in the user's table, behind all those before.
            timestamps: (B,) microseconds in any order, or None.
        """
        self._num_rows += len(row_numbers)
        self._digest.update(np.ascontiguousarray(row_numbers, np.int64).data)
        if timestamps is not None and len(timestamps):
            latest = int(timestamps.max())
            self._latest = latest if self._latest is None else max(self._latest, latest)

    def fitted_on(self) -> FittedOn:
        """The record of all rows so far."""
        return FittedOn(
            num_rows=self._num_rows, last_timestamp=self._latest, digest=self._digest.hexdigest()
        )


class LeakError(DataError):
    """Something fitted has seen rows outside the training part."""


def check_leaks(fitted: Mapping[str, FittedOn], training: FittedOn) -> None:
    """Compare what was fitted with the training part.

    Args:
        fitted: Record of each fitted thing by name.
        training: Record of the training part.

    Raises:
        LeakError: Names everything that saw other rows than the training part.
    """
    problems = []
    for name, seen in fitted.items():
        if seen == training:
            continue
        detail = f"{seen.num_rows} rows instead of the {training.num_rows} of the training part"
        if seen.num_rows == training.num_rows:
            detail = "as many rows as the training part has, but not the same ones"
        late = seen.last_timestamp is not None and training.last_timestamp is not None
        if late and seen.last_timestamp > training.last_timestamp:  # type: ignore[operator]
            detail += (
                f"; its latest is from {seen.last_timestamp}, "
                f"after the last training row at {training.last_timestamp}"
            )
        problems.append(f"leak: {name} was fitted on {detail}")
    if problems:
        raise LeakError(problems)
