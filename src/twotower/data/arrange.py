"""A spilled log to its final order, bucket by bucket: sorted rows, events per user, histories.

Rows lie by (user, part, time, table order). A bucket is a range of users whose rows fit in memory
(of a table without users, a range of parts and times): first every block is divided among the
buckets, then every bucket is sorted alone. Both stages can run anywhere; the buckets, one after
another, are the columns.

Shape letters: B rows of a block or bucket, N items, K keys that buckets are ranges of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc as ipc

from twotower.data.order import stable_order
from twotower.data.schema import (
    ITEM_ID,
    LABEL,
    SPLIT_NAMES,
    TIMESTAMP,
    USER_ID,
    WEIGHT,
)
from twotower.data.spill import IDS, Log, column_numbers
from twotower.data.training_part import Encoder

Array = npt.NDArray[Any]

DIVIDED = "divided-"  # before the names of the files that the first stage leaves
ROW, PART = "row", "part"
OWN = "column."  # before the name of a column of the log, which may be called as it likes
TIME_BINS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What buckets are ranges of: users, or else parts and, within them, times or blocks.

    Args:
        log: The interactions.
        first: Earliest time, where there are no users.
        shift: Bits of a time that do not count, where there are no users.
    """

    log: Log
    first: int = 0
    shift: int = 0

    @staticmethod
    def of(log: Log) -> Keys:
        """The keys of a log."""
        if USER_ID in log.ids or not log.tables.has(TIMESTAMP):
            return Keys(log=log)
        blocks = [log.numbers(b, TIMESTAMP, np.int64) for b in range(len(log.lengths))]
        ends = [(int(times.min()), int(times.max())) for times in blocks if len(times)]
        first, last = min(first for first, _ in ends), max(last for _, last in ends)
        return Keys(log=log, first=first, shift=max(0, (last - first + 1).bit_length() - 14))

    @property
    def num_keys(self) -> int:
        """``K``."""
        if USER_ID in self.log.ids:
            return len(self.log.ids[USER_ID])
        within = TIME_BINS if self.log.tables.has(TIMESTAMP) else len(self.log.lengths)
        return len(SPLIT_NAMES) * within

    def of_block(self, block: int) -> Array:
        """(B,) key of every row; rows with a lower key come first."""
        if USER_ID in self.log.ids:
            return self.log.entity_rows(block, USER_ID)
        parts = self.log.parts(block).astype(np.int64)
        if not self.log.tables.has(TIMESTAMP):
            return parts * len(self.log.lengths) + block
        times = self.log.numbers(block, TIMESTAMP, np.int64)
        return np.asarray(parts * TIME_BINS + ((times - self.first) >> self.shift))


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Ranges of keys.

    Args:
        of_key: (K,) bucket of every key, rising.
        starts: Keys that begin a bucket, and K.
    """

    of_key: Array
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @staticmethod
    def of(counts: npt.NDArray[np.int64], rows_per_bucket: int) -> Buckets:
        """Buckets of about as many rows; the rows of one key are never divided.

        Args:
            counts: (K,) rows of every key.
            rows_per_bucket: Rows of a bucket.
        """
        before = np.cumsum(counts) - counts
        before = np.minimum(before, before[np.flatnonzero(counts)[-1:]])  # nothing comes after
        changes = np.flatnonzero(np.diff(before // rows_per_bucket)) + 1
        of_key = np.zeros(len(counts), np.int64)
        of_key[changes] = 1
        of_key = np.cumsum(of_key)
        narrow = np.uint16 if len(changes) < 1 << 16 else np.int64
        return Buckets(of_key=of_key.astype(narrow), starts=(0, *changes.tolist(), len(counts)))


@dataclass(frozen=True, kw_only=True)
class Division:
    """The first stage: every block divided among the buckets.

    Args:
        keys: What buckets are ranges of.
        buckets: The ranges.
        item_rows: (N,) new row of every item, or None where the log has no items.
        names: Columns of the log that go along.
    """

    keys: Keys
    buckets: Buckets
    item_rows: Array | None
    names: tuple[str, ...]

    def divide(self, block: int) -> Array:
        """Write the rows of a block, bucket by bucket, as batches of an Arrow file.

        Returns:
            (buckets, 2) how many rows and how many positives each got.
        """
        log, num_buckets = self.keys.log, len(self.buckets)
        bucket = self.buckets.of_key[self.keys.of_block(block)]
        order = np.argsort(bucket, kind="stable")
        table = log.table(block)
        columns: dict[str, Any] = {
            ROW: log.starts[block] + np.arange(len(bucket)),
            PART: log.parts(block),
        }
        columns |= {name: log.entity_rows(block, name) for name in log.ids}
        if self.item_rows is not None:
            columns[ITEM_ID] = self.item_rows[columns[ITEM_ID]]
        columns = {name: pa.array(values[order]) for name, values in columns.items()}
        for name in self.names:
            columns[OWN + name] = table.column(name).combine_chunks().take(pa.array(order))
        divided = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        counts = np.bincount(bucket, minlength=num_buckets)
        positive = np.bincount(bucket[log.positive(block)], minlength=num_buckets)
        with (
            pa.OSFile(str(log.folder / f"{DIVIDED}{block:06}.arrow"), "wb") as sink,
            ipc.new_file(sink, divided.schema) as writer,
        ):
            for start, count in zip(np.cumsum(counts) - counts, counts, strict=True):
                writer.write_batch(divided.slice(start, count))
        return np.stack([counts, positive], axis=1)


@dataclass(frozen=True, kw_only=True)
class Sorting:
    """The second stage: every bucket sorted and encoded.

    Args:
        division: The first stage.
        encoder: Encodes the context.
        ids: Ids of users and items in their final order.
        starts: (buckets + 1, 2) rows and positives that stand before each bucket.
    """

    division: Division
    encoder: Encoder
    ids: Mapping[str, pa.Array]
    starts: Array

    @property
    def log(self) -> Log:
        """The interactions."""
        return self.division.keys.log

    @property
    def has_events(self) -> bool:
        """Whether there are users and items."""
        return all(name in self.ids for name in IDS)

    def sort(self, bucket: int) -> dict[str, Array]:
        """The columns ``(R, ...)`` of a bucket of R rows, by the path of their file."""
        table = self._gather(bucket)
        numbers = {n: table.column(n).to_numpy() for n in (ROW, PART, *self.ids)}
        times = self._numbers(table, TIMESTAMP, np.int64)
        key = numbers[PART].astype(np.int64)
        if USER_ID in self.ids:
            first_user = self.division.buckets.starts[bucket]
            key = key + len(SPLIT_NAMES) * (numbers[USER_ID].astype(np.int64) - first_user)
        order = stable_order(key, times)
        labels = self._numbers(table, LABEL, np.float32)
        weights = self._numbers(table, WEIGHT, np.float32)
        label, ones = self.log.tables.label, np.ones(len(order), np.float32)
        columns = {
            "rows": numbers[ROW][order],
            "split": numbers[PART][order],
            "labels": ones if labels is None else labels[order],
            "weights": ones if weights is None else weights[order],
        }
        columns["positive"] = (
            np.ones(len(order), bool) if label is None else columns["labels"] >= label.positive_from
        )
        if times is not None:
            columns["timestamps"] = times[order]
        for name, own in ((USER_ID, "user_rows"), (ITEM_ID, "item_rows")):
            if name in self.ids:
                columns[own] = numbers[name][order]
        columns["history_end"] = self._history_end(columns, bucket)
        result = {f"interactions/{name}": values for name, values in columns.items()}
        for name, smallest in self.log.tables.tasks.items():
            outcome = column_numbers(table.column(OWN + name), np.float32)[order]
            result[f"tasks/{name}"] = outcome >= np.float32(smallest)
        raw = self._raw_context(table, order)
        encoded = self.encoder.encode("context", raw)
        result |= {f"context/{name}": values for name, values in encoded.items()}
        if self.has_events:
            events = self._events(columns, bucket)
            result |= {f"events/{name}": values for name, values in events.items()}
        return result

    def _gather(self, bucket: int) -> pa.Table:
        """All rows of a bucket in table order."""
        batches = []
        for block in range(len(self.log.lengths)):
            with pa.memory_map(str(self.log.folder / f"{DIVIDED}{block:06}.arrow")) as source:
                batches.append(ipc.open_file(source).get_batch(bucket))
        return pa.Table.from_batches(batches).combine_chunks()

    def _numbers(self, table: pa.Table, name: str, dtype: type) -> Array | None:
        if not self.log.tables.has(name):
            return None
        return column_numbers(table.column(OWN + name), dtype)

    def _raw_context(self, table: pa.Table, order: Array) -> pa.Table:
        """What the encoder reads, in the order of the rows."""
        columns = {}
        for name in self.encoder.source_columns("context"):
            if name in self.ids:
                rows = table.column(name).combine_chunks().take(pa.array(order))
                columns[name] = pa.DictionaryArray.from_arrays(rows, self.ids[name])
            elif OWN + name in table.column_names:
                columns[name] = table.column(OWN + name).combine_chunks().take(pa.array(order))
        if columns:
            return pa.table(columns)
        return pa.table({ROW: order})  # has the right number of rows

    def _events(self, columns: Mapping[str, Array], bucket: int) -> dict[str, Array]:
        """The positives of a bucket; the offsets say where each of its users ends."""
        rows_before, events_before = self.starts[bucket]
        first, end = self.division.buckets.starts[bucket : bucket + 2]
        places = np.flatnonzero(columns["positive"])
        counts = np.bincount(columns["user_rows"][places] - first, minlength=end - first)
        offsets = events_before + np.cumsum(counts)
        return {
            "offsets": offsets if bucket else np.concatenate([[0], offsets]),
            "item_rows": columns["item_rows"][places],
            "interactions": rows_before + places,
            "split": columns["split"][places],
        }

    def _history_end(self, columns: Mapping[str, Array], bucket: int) -> Array:
        """Absolute end of the history of every interaction.

        In a log of positives alone an event sees all that stand before it, in table order where
        times tie. In a log of impressions every row sees what happened strictly before its instant:
        the outcome of its own slate is not known when it is shown.
        """
        positive = columns["positive"]
        if not self.has_events or not len(positive):
            return np.zeros(len(positive), np.int64)
        before = self.starts[bucket, 1] + np.cumsum(positive) - positive
        num_rows, num_positives = self.starts[-1]
        if num_rows == num_positives or "timestamps" not in columns:
            return np.asarray(before, np.int64)
        changes = np.zeros(len(before), bool)
        for name in ("user_rows", "split", "timestamps"):
            changes[1:] |= np.diff(columns[name]) != 0
        changes[0] = True
        return np.asarray(before[changes][np.cumsum(changes) - 1], np.int64)
