"""Which row a value stands in, without looking at all of them.

Integers are sorted once and looked up by bisection. Text is hashed to 64 bits, the hashes are
sorted once and looked up by bisection, and what stands in a found row is compared with what was
asked for, so that two texts of one hash do no harm. A value takes 12 bytes beside itself.

Shapes: N values, n of them of one block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Array = npt.NDArray[Any]

UNKNOWN = -1
BLOCK = 1 << 20  # texts that are hashed at a time
WORD = 8  # bytes
MASK = (1 << 64) - 1
# Odd constants of the finalizer of MurmurHash3.
FIRST, SECOND = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53


class RowIndex:
    """Rows of distinct values.

    The index is built when it is asked for the first time, in whichever thread asks.

    Args:
        values: (N,) distinct values without nulls, integers or text.

    Example:
        >>> colours = RowIndex(pa.array(["red", "blue"]))
        >>> colours.row("blue"), colours.row("green")
        (1, -1)
    """

    def __init__(self, values: pa.Array) -> None:
        self.values = values
        self.is_integer = pa.types.is_integer(values.type)
        self._lock = threading.Lock()
        self._built: tuple[Array, Array] | None = None

    def build(self) -> None:
        """Build the index now rather than when it is asked for the first time."""
        with self._lock:
            if self._built is None:
                self._built = self._sorted()

    def row(self, value: int | str) -> int:
        """Row of one value, -1 where it is unknown."""
        return int(self.rows([value])[0])

    def rows(self, values: Sequence[int | str]) -> npt.NDArray[np.int64]:
        """Rows ``(n,)`` of some values, -1 where they are unknown.

        Args:
            values: Integers of 64 bits where the values are integers, else text.
        """
        if self._built is None:
            self.build()
        keys, order = self._built or self._sorted()
        if not len(keys) or not len(values):
            return np.full(len(values), UNKNOWN, np.int64)
        if self.is_integer:
            wanted = np.array(values, np.int64)
            places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            return np.where(keys[places] == wanted, order[places], UNKNOWN).astype(np.int64)
        hashes = [hash_text(text) for text in values if isinstance(text, str)]
        places = np.searchsorted(keys, np.array(hashes, np.uint64))
        found = [
            self._text(text, hashed, int(place), keys, order)
            for text, hashed, place in zip(values, hashes, places, strict=True)
        ]
        return np.array(found, np.int64)

    def find(self, values: pa.Array) -> npt.NDArray[np.int64]:
        """Rows of many values (n,), -1 where they are unknown; faster than `rows` for a column.

        Args:
            values: (n,) of the type of the values, none of them null.
        """
        if self._built is None:
            self.build()
        keys, order = self._built or self._sorted()
        if self.is_integer or not len(keys) or not len(values):
            return self.rows(values.to_numpy() if self.is_integer else values)
        hashes = np.concatenate([*_hashes(values)])
        places = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
        found = np.where(keys[places] == hashes, order[places], UNKNOWN).astype(np.int64)
        likely = np.flatnonzero(found != UNKNOWN)
        here = self.values.take(pa.array(found[likely])).cast(values.type)
        differs = pc.not_equal(here, values.take(pa.array(likely)))
        for place in likely[differs.to_numpy(zero_copy_only=False)]:  # two texts of one hash
            found[place] = self.row(values[int(place)].as_py())
        return found

    def _text(self, text: int | str, hashed: int, place: int, keys: Array, order: Array) -> int:
        """Row of a text among those of its hash, the first of which stands in a place."""
        while place < len(keys) and int(keys[place]) == hashed:
            row = int(order[place])
            if self.values[row].as_py() == text:
                return row
            place += 1
        return UNKNOWN

    def _sorted(self) -> tuple[Array, Array]:
        """Integers or hashes in order (N,), and the row that each of them stands in (N,)."""
        if self.is_integer:
            keys = self.values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        else:
            keys = np.concatenate([np.zeros(0, np.uint64), *_hashes(self.values)])
        rows = np.int32 if len(keys) <= np.iinfo(np.int32).max else np.int64
        if self.is_integer and bool((keys[1:] > keys[:-1]).all()):  # differences may not fit
            return keys, np.arange(len(keys), dtype=rows)
        order = np.argsort(keys, kind="stable").astype(rows)
        return keys[order], order


def hash_text(text: str) -> int:
    """64 bits of a text's UTF-8; what UTF-8 cannot say is hashed too."""
    written = text.encode("utf-8", "surrogatepass")
    hashed = len(written)
    for start in range(0, len(written), WORD):
        word = int.from_bytes(written[start : start + WORD], "little")
        hashed = ((hashed ^ word) * FIRST) & MASK
        hashed ^= hashed >> 32
        hashed = (hashed * SECOND) & MASK
        hashed ^= hashed >> 29
    return hashed


def _hashes(texts: pa.Array) -> Iterator[npt.NDArray[np.uint64]]:
    """`hash_text` of many texts, block by block."""
    large = texts.cast(pa.large_string())
    for start in range(0, len(large), BLOCK):
        block = large.slice(start, BLOCK)
        _, raw_offsets, raw_data = block.buffers()
        offsets = np.frombuffer(raw_offsets, np.int64)[block.offset :][: len(block) + 1]
        written = np.zeros(offsets[-1] - offsets[0] + WORD, np.uint8)  # a word may begin at the end
        if raw_data is not None:
            written[:-WORD] = np.frombuffer(raw_data, np.uint8)[offsets[0] : offsets[-1]]
        yield _hash_block(written, offsets[:-1] - offsets[0], np.diff(offsets))


def _hash_block(written: Array, starts: Array, lengths: Array) -> npt.NDArray[np.uint64]:
    """Hashes (n,) of texts that stand one behind the other, a word of all of them at a time.

    Args:
        written: Bytes of all texts and one word more.
        starts: (n,) where each begins.
        lengths: (n,) how many bytes each has.
    """
    # The word that begins at every byte; x86 and ARM are little-endian, as `hash_text` is.
    words = np.ndarray(len(written) - WORD + 1, "<u8", written, strides=(1,))
    hashed = lengths.astype(np.uint64)
    active = np.flatnonzero(lengths)
    for done in range(0, int(lengths.max(initial=0)), WORD):
        active = active[lengths[active] > done]
        word = words[starts[active] + done]
        missing = np.maximum(WORD - (lengths[active] - done), 0).astype(np.uint64) * np.uint64(8)
        word &= np.uint64(MASK) >> missing
        one = (hashed[active] ^ word) * np.uint64(FIRST)
        one ^= one >> np.uint64(32)
        one *= np.uint64(SECOND)
        hashed[active] = one ^ (one >> np.uint64(29))
    return hashed
