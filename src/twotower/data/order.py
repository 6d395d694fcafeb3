"""Orders and ranks of a log that is seen block by block; all exact, whatever the blocks are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.data.schema import TEST, TRAIN, VALIDATION

Int64 = npt.NDArray[np.int64]
Int8 = npt.NDArray[np.int8]
Array = npt.NDArray[Any]

DIGIT_BITS = 16  # NumPy sorts integers of this width by radix
BIN_BITS = 16
NUM_KEPT = 3
EARLIEST = np.iinfo(np.int64).min


def stable_order(key: Array, times: Int64 | None) -> Int64:
    """Rows by key, then by time, then as they came.

    Args:
        key: (R,) integers of at least 0.
        times: (R,) or None.
    """
    order = np.arange(len(key)) if times is None else np.argsort(times, kind="stable")
    for shift in range(0, int(key.max(initial=0)).bit_length(), DIGIT_BITS):
        digit = (key >> shift).astype(np.uint16)  # the lower bits
        order = order[np.argsort(digit[order], kind="stable")]
    return np.asarray(order, np.int64)


def nth_smallest(blocks: Callable[[], Iterator[Int64]], ranks: Sequence[int]) -> list[int]:
    """The values that would stand at some places if all values were sorted.

    A histogram over all values tells the bin that holds the place; the bin is then divided until it
    is one value wide.

    Args:
        blocks: Gives all values, block by block, as often as it is asked.
        ranks: Places from 0.

    Example:
        >>> nth_smallest(lambda: iter([np.array([9, 4]), np.array([7, 4])]), [0, 2])
        [4, 7]
    """
    ends = [(int(block.min()), int(block.max())) for block in blocks() if len(block)]
    counted: dict[tuple[int, int], Int64] = {}

    def value(rank: int) -> int:
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        while low < high:
            shift = max(0, (high - low).bit_length() - BIN_BITS)
            if (low, high) not in counted:
                counted[low, high] = _histogram(blocks, low, high, shift)
            up_to = np.cumsum(counted[low, high])
            place = int(np.searchsorted(up_to, rank, side="right"))
            rank -= int(up_to[place - 1]) if place else 0
            low += place << shift
            high = min(high, low + (1 << shift) - 1)
        return low

    return [value(rank) for rank in ranks]


def _histogram(blocks: Callable[[], Iterator[Int64]], low: int, high: int, shift: int) -> Int64:
    counts = np.zeros(1 << BIN_BITS, np.int64)
    for block in blocks():
        inside = block[(block >= low) & (block <= high)]
        counts += np.bincount((inside - low) >> shift, minlength=len(counts))
    return counts


class LatestPositives:
    """The last three positives of every user, by time and then by row."""

    def __init__(self) -> None:
        self.times = np.zeros((0, NUM_KEPT), np.int64)  # (U, 3), the latest last
        self.rows = np.zeros((0, NUM_KEPT), np.int64)  # (U, 3), -1 where there are fewer

    def add(self, users: Array, times: Int64, rows: Int64) -> None:
        """Take note of positives that stand behind all those seen so far.

        Args:
            users: (P,) rows of their users.
            times: (P,).
            rows: (P,) rising positions in the table.
        """
        if not len(users):
            return
        self._grow(int(users.max()) + 1)
        late = np.flatnonzero(self._is_after(users, times, rows, 0))  # the others change nothing
        users, times, rows = users[late], times[late], rows[late]
        touched = np.unique(users)
        old = self.rows[touched].ravel() >= 0
        users = np.concatenate([np.repeat(touched, NUM_KEPT)[old], users])
        times = np.concatenate([self.times[touched].ravel()[old], times])
        rows = np.concatenate([self.rows[touched].ravel()[old], rows])
        order = stable_order(users, times)
        users, times, rows = users[order], times[order], rows[order]
        ends = np.flatnonzero(np.diff(users, append=-1))
        for back in range(NUM_KEPT):
            places = ends - back
            mine = places >= 0
            mine[mine] = users[places[mine]] == touched[mine]
            self.times[touched[mine], NUM_KEPT - 1 - back] = times[places[mine]]
            self.rows[touched[mine], NUM_KEPT - 1 - back] = rows[places[mine]]

    def codes(self, users: Array, times: Int64, rows: Int64) -> Int8:
        """(B,) parts of rows.

        Rows after the last positive but one are for testing, rows before that and after the
        last but two for validation; the rows of a user with fewer than three only train.

        Args:
            users: (B,) rows of their users.
            times: (B,).
            rows: (B,) positions in the table.
        """
        self._grow(int(users.max(initial=-1)) + 1)
        third, second = (self._is_after(users, times, rows, place) for place in (0, 1))
        codes = np.where(second, TEST, np.where(third, VALIDATION, TRAIN)).astype(np.int8)
        codes[self.rows[users, 0] < 0] = TRAIN
        return codes

    def _is_after(
        self, users: Array, times: Int64, rows: Int64, place: int
    ) -> npt.NDArray[np.bool_]:
        other = self.times[users, place]
        same = (times == other) & (rows > self.rows[users, place])
        return np.asarray((times > other) | same, np.bool_)

    def _grow(self, num_users: int) -> None:
        missing = num_users - len(self.rows)
        if missing > 0:
            more = max(missing, len(self.rows))
            self.times = np.pad(self.times, ((0, more), (0, 0)), constant_values=EARLIEST)
            self.rows = np.pad(self.rows, ((0, more), (0, 0)), constant_values=-1)
