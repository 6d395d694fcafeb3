"""Which rows train, which validate, which test: global cut times, leave one out, given, random.

Everything that is fitted later sees the training part alone (`twotower.data.leakage`), so the cut
is the one place that decides what a model may know. A global cut in time is the default because it
is the only split in which no event of the future, of any user, helps to predict the past.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from twotower.data.order import LatestPositives, nth_smallest
from twotower.data.schema import SPLIT_NAMES, TEST, TRAIN, VALIDATION, DataError

log = logging.getLogger(__name__)

Int64 = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]
Array = npt.NDArray[Any]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SplitInput(Protocol):
    """What a splitter may look at in a block; all arrays have one entry a row, in table order."""

    @property
    def num_rows(self) -> int:
        """Rows of the block, ``R``."""

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """(R,) whether the row is a positive."""

    @property
    def user_rows(self) -> npt.NDArray[np.integer[Any]] | None:
        """(R,) rows of the users, or None where the table has none."""

    @property
    def timestamps(self) -> Int64 | None:
        """(R,) microseconds, or None."""

    @property
    def given(self) -> Int8 | None:
        """(R,) split codes of the ``split`` column, or None."""


class Splitter(Protocol):
    """Assigns every interaction to train, validation or test."""

    def assign(self, blocks: Sequence[SplitInput]) -> Iterator[Int8]:
        """Split codes of the rows, block by block, however they are cut into blocks.

        Args:
            blocks: All rows in table order. A block is read anew whenever it is asked for, so that
                no more than one needs to be in memory.

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

    def assign(self, blocks: Sequence[SplitInput]) -> Iterator[Int8]:
        """See `Splitter.assign`; rows of one instant always fall on the same side of a cut."""

        def times() -> Iterator[Int64]:
            for block in blocks:
                if block.timestamps is None:
                    raise DataError(
                        ["split=temporal needs a `timestamp` column; "
                         "allowed without one: given, random"]
                    )  # fmt: skip
                yield block.timestamps

        cuts = self._given_cuts()
        if not cuts:
            count = sum(len(block) for block in times())
            shares = (self.validation_share + self.test_share, self.test_share)
            first_rows = [round(count * (1.0 - share)) for share in shares]
            cuts = nth_smallest(times, [min(row, count - 1) for row in first_rows])
        codes = ((block >= cuts[0]).view(np.int8) + (block >= cuts[1]) for block in times())
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

    def assign(self, blocks: Sequence[SplitInput]) -> Iterator[Int8]:
        """See `Splitter.assign`; the last three positives of every user are remembered."""
        starts = [*accumulate((block.num_rows for block in blocks), initial=0)]

        def keys() -> Iterator[tuple[SplitInput, Array, Int64, Int64]]:
            for start, block in zip(starts, blocks, strict=False):
                if block.user_rows is None:
                    raise DataError(
                        ["split=leave_one_out needs a `user_id` column; "
                         "allowed: temporal, given, random"]
                    )  # fmt: skip
                rows = start + np.arange(block.num_rows)
                times = block.timestamps if block.timestamps is not None else np.zeros_like(rows)
                yield block, block.user_rows, times, rows

        def codes() -> Iterator[Int8]:
            latest = LatestPositives()
            for block, users, times, rows in keys():
                which = np.flatnonzero(block.positive)
                latest.add(users[which], times[which], rows[which])
            for _, users, times, rows in keys():
                yield latest.codes(users, times, rows)

        return _nothing_empty(codes(), "leave_one_out")


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

    def assign(self, blocks: Sequence[SplitInput]) -> Iterator[Int8]:
        """See `Splitter.assign`."""

        def given() -> Iterator[Int8]:
            for block in blocks:
                if block.given is None:
                    raise DataError(
                        ["split=given needs a `split` column (map it with "
                         "data.columns.split=<name>); "
                         "allowed without one: temporal, leave_one_out, random"]
                    )  # fmt: skip
                yield block.given

        def held_out() -> Iterator[Int8]:
            log.info(
                "The given split has no validation rows: %.0f %% of train held out",
                100 * self.validation_share,
            )
            generator = np.random.default_rng(self.seed)
            for stated in given():
                codes = stated.copy()
                train = np.flatnonzero(codes == TRAIN)
                codes[train[generator.random(len(train)) < self.validation_share]] = VALIDATION
                yield codes

        has_validation = any((codes == VALIDATION).any() for codes in given())
        return _nothing_empty(given() if has_validation else held_out(), "given")


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

    def assign(self, blocks: Sequence[SplitInput]) -> Iterator[Int8]:
        """See `Splitter.assign`."""
        log.warning(
            "split=random lets the model see the future of every user; its figures do not carry "
            "over to production. Use split=temporal where there are timestamps."
        )
        generator = np.random.default_rng(self.seed)
        cuts = np.array([1.0 - self.validation_share - self.test_share, 1.0 - self.test_share])
        draws = (generator.random(block.num_rows) for block in blocks)
        codes = (np.searchsorted(cuts, draw, side="right").astype(np.int8) for draw in draws)
        return _nothing_empty(codes, "random")


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


def _nothing_empty(blocks: Iterable[Int8], name: str) -> Iterator[Int8]:
    """The codes as they come, and an error at the end when a part has no row."""
    counts = np.zeros(len(SPLIT_NAMES), np.int64)
    for codes in blocks:
        counts += np.bincount(codes, minlength=len(counts))
        yield codes
    problems = [
        f"split={name}: the {part} part is empty ({counts.sum()} rows in all, "
        f"{counts[TRAIN]} train, {counts[VALIDATION]} validation, {counts[TEST]} test); "
        "every part needs at least one row"
        for part, count in zip(SPLIT_NAMES, counts, strict=True)
        if count == 0
    ]
    if problems:
        raise DataError(problems)
