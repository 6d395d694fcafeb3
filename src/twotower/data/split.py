"""Which rows train, which validate, which test: global cut times, leave one out, given, random.

Everything that is fitted later sees the training part alone (`twotower.data.leakage`), so the cut
is the one place that decides what a model may know. A global cut in time is the default because it
is the only split in which no event of the future, of any user, helps to predict the past.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
import numpy.typing as npt

from twotower.data.schema import SPLIT_NAMES, TEST, TRAIN, VALIDATION, DataError

log = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class SplitInput:
    """What a splitter may look at; all arrays have one entry an interaction, in table order.

    Args:
        num_rows: Number of interactions, ``R``.
        positive: (R,) bool, whether the row is a positive.
        user_rows: (R,) int64, or None where the table has no users.
        timestamps: (R,) int64 microseconds, or None.
        given: (R,) int8 split codes of the ``split`` column, or None.
    """

    num_rows: int
    positive: npt.NDArray[np.bool_]
    user_rows: Int64 | None = None
    timestamps: Int64 | None = None
    given: Int8 | None = None


class Splitter(Protocol):
    """Assigns every interaction to train, validation or test."""

    def assign(self, rows: SplitInput) -> Int8:
        """Split codes (R,) of the rows.

        Raises:
            DataError: When the table lacks what the split needs or a part would be empty.
        """


@dataclass(frozen=True, kw_only=True)
class TemporalSplit:
    """Rows before the first cut train, rows from the second cut on test.

    Args:
        validation_share: Share of all rows between the cuts, where no times are given.
        test_share: Share of all rows after the second cut, where no times are given.
        validation_from: First time of the validation part, ISO 8601, UTC unless it says otherwise.
        test_from: First time of the test part.
    """

    validation_share: float = 0.1
    test_share: float = 0.1
    validation_from: str | None = None
    test_from: str | None = None

    def __post_init__(self) -> None:
        _check_shares(validation_share=self.validation_share, test_share=self.test_share)
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError(
                "split: give both `validation_from` and `test_from` or neither, got "
                f"{self.validation_from!r} and {self.test_from!r}"
            )
        cuts = self._given_cuts()
        if cuts and cuts[0] >= cuts[1]:
            raise ValueError(
                "split: `validation_from` must lie before `test_from`, got "
                f"{self.validation_from!r} and {self.test_from!r}"
            )

    def assign(self, rows: SplitInput) -> Int8:
        """See `Splitter.assign`; rows of one instant always fall on the same side of a cut."""
        if rows.timestamps is None:
            raise DataError(
                ["split=temporal needs a `timestamp` column; allowed without one: given, random"]
            )
        cuts = self._given_cuts()
        if not cuts:
            ordered = np.sort(rows.timestamps)
            shares = (self.validation_share + self.test_share, self.test_share)
            first_rows = [round(len(ordered) * (1.0 - share)) for share in shares]
            cuts = [int(ordered[min(row, len(ordered) - 1)]) for row in first_rows]
        codes = np.searchsorted(np.asarray(cuts), rows.timestamps, side="right").astype(np.int8)
        return _nothing_empty(codes, "temporal")

    def _given_cuts(self) -> list[int]:
        """Both cut times in microseconds, or nothing where they follow from the shares."""
        given = (self.validation_from, self.test_from)
        return [_microseconds(time) for time in given if time is not None]


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """The last positive of every user tests, the one before it validates, the rest trains.

    Order is by time, and by table order where times tie or there are none. Users with fewer than
    three positives only train. Impressions that did not succeed follow the part of the positive
    before which they stand. A comparison with published tables needs this split; it lets the future
    of other users into training, which a temporal split does not.
    """

    def assign(self, rows: SplitInput) -> Int8:
        """See `Splitter.assign`."""
        if rows.user_rows is None:
            raise DataError(
                ["split=leave_one_out needs a `user_id` column; allowed: temporal, given, random"]
            )
        times = (
            rows.timestamps if rows.timestamps is not None else np.zeros(rows.num_rows, np.int64)
        )
        order = np.lexsort((np.arange(rows.num_rows), times, rows.user_rows))
        users, positive = rows.user_rows[order], rows.positive[order]
        # positives of the same user that stand at or after the row, counted from the end
        later = np.cumsum(positive[::-1])[::-1]
        ends = np.searchsorted(users, users, side="right")
        after_user = np.append(later, 0)[ends]
        remaining = later - after_user
        starts = np.searchsorted(users, users, side="left")
        total = later[starts] - after_user
        sorted_codes = np.select(
            [total < 3, remaining <= 1, remaining == 2], [TRAIN, TEST, VALIDATION], default=TRAIN
        )
        codes = np.empty(rows.num_rows, np.int8)
        codes[order] = sorted_codes
        return _nothing_empty(codes, "leave_one_out")


@dataclass(frozen=True, kw_only=True)
class GivenSplit:
    """The split that the ``split`` column states.

    Args:
        validation_share: Share of the training rows held out at random when the column has no
            validation rows; the test part is never used to choose anything.
        seed: Seed of that draw.
    """

    validation_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_shares(validation_share=self.validation_share)

    def assign(self, rows: SplitInput) -> Int8:
        """See `Splitter.assign`."""
        if rows.given is None:
            raise DataError(
                ["split=given needs a `split` column (map it with data.columns.split=<name>); "
                 "allowed without one: temporal, leave_one_out, random"]
            )  # fmt: skip
        codes = rows.given.copy()
        if not (codes == VALIDATION).any():
            train = np.flatnonzero(codes == TRAIN)
            draw = np.random.default_rng(self.seed).random(len(train))
            codes[train[draw < self.validation_share]] = VALIDATION
            log.info(
                "The given split has no validation rows: %.0f %% of train held out",
                100 * self.validation_share,
            )
        return _nothing_empty(codes, "given")


@dataclass(frozen=True, kw_only=True)
class RandomSplit:
    """Rows fall into the parts at random; figures on it are too good, and it says so.

    Args:
        validation_share: Expected share of the validation part.
        test_share: Expected share of the test part.
        seed: Seed of the draw.
    """

    validation_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_shares(validation_share=self.validation_share, test_share=self.test_share)

    def assign(self, rows: SplitInput) -> Int8:
        """See `Splitter.assign`."""
        log.warning(
            "split=random lets the model see the future of every user; its figures do not carry "
            "over to production. Use split=temporal where there are timestamps."
        )
        draw = np.random.default_rng(self.seed).random(rows.num_rows)
        cuts = np.array([1.0 - self.validation_share - self.test_share, 1.0 - self.test_share])
        return _nothing_empty(np.searchsorted(cuts, draw, side="right").astype(np.int8), "random")


def _check_shares(*, validation_share: float, test_share: float | None = None) -> None:
    shares = {"validation_share": validation_share, "test_share": test_share}
    asked = {name: share for name, share in shares.items() if share is not None}
    if not (all(share > 0 for share in asked.values()) and sum(asked.values()) < 1):
        got = ", ".join(f"{name}={share}" for name, share in asked.items())
        raise ValueError(
            f"split: shares must be above 0 and leave something to train on, got {got}"
        )


def _microseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"split: {text!r} is no ISO 8601 time such as 2024-01-31T00:00") from error
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(microseconds=1)


def _nothing_empty(codes: Int8, name: str) -> Int8:
    counts = np.bincount(codes, minlength=3)
    problems = [
        f"split={name}: the {part} part is empty ({len(codes)} rows in all, "
        f"{counts[TRAIN]} train, {counts[VALIDATION]} validation, {counts[TEST]} test); "
        "every part needs at least one row"
        for part, count in zip(SPLIT_NAMES, counts, strict=True)
        if count == 0
    ]
    if problems:
        raise DataError(problems)
    return codes
