"""What may be fitted on, and what preparing asks of the features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.leakage import FittedOn
from twotower.data.schema import TRAIN
from twotower.data.spill import IDS, Log

Array = npt.NDArray[Any]


class Column(Protocol):
    """A column that may be too long for memory; a `pa.ChunkedArray` is one."""

    @property
    def type(self) -> pa.DataType:
        """Its Arrow type; a dictionary is a way of storing the values."""

    def iterchunks(self) -> Iterator[pa.Array]:
        """Its values, some at a time and in order."""


class Columns(Protocol):
    """A table that may be too long for memory; a `pa.Table` is one."""

    @property
    def column_names(self) -> Sequence[str]:
        """Names of the columns."""

    def column(self, name: str) -> Column:
        """One of them."""


@dataclass(frozen=True, kw_only=True)
class TrainingPart:
    """What may be fitted on: rows of the training part, and users and items that occur in it.

    Args:
        interactions: Training rows.
        users: Users with a training row, or None.
        items: Items with a training row, or None.
        context: Columns of the interactions that may be features.
        fitted_on: Record of the training rows; whatever is fitted carries it on.
    """

    interactions: Columns
    users: pa.Table | None
    items: pa.Table | None
    context: tuple[str, ...]
    fitted_on: FittedOn


class Encoder(Protocol):
    """Turns raw columns into encoded feature columns; fitted on a `TrainingPart`."""

    @property
    def fitted_on(self) -> FittedOn:
        """On which interactions it was fitted."""

    def source_columns(self, side: Literal["user", "item", "context"]) -> Sequence[str]:
        """Columns of a table that `encode` reads, where they are there."""

    def encode(self, side: Literal["user", "item", "context"], table: pa.Table) -> dict[str, Array]:
        """Encoded columns ``(R, ...)`` of one table of R rows.

        A long table is encoded in parts; the values of a row do not depend on other rows.
        """

    def save(self, folder: Path) -> None:
        """Write the fitted state into a folder."""


class EncoderFactory(Protocol):
    """Makes an encoder out of a training part."""

    def fingerprint(self) -> str:
        """Digest of the options of the encoder."""

    def fit(self, part: TrainingPart) -> Encoder:
        """Infer or take the feature spec and fit it."""


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """The training rows of a log in table order: sums over them depend on no held-out row.

    Args:
        log: The interactions, of which it is known who is in which part.
    """

    log: Log

    @property
    def column_names(self) -> Sequence[str]:
        """See `Columns`; further outcomes are left out, because nothing may be fitted on them."""
        names: list[str] = self.log.tables.foreseeable.column_names
        return names

    def column(self, name: str) -> Column:
        """See `Columns`."""
        return _TrainingColumn(log=self.log, name=name)


@dataclass(frozen=True, kw_only=True)
class _TrainingColumn:
    """A column of the training rows; ids are stored as rows of a dictionary."""

    log: Log
    name: str

    @property
    def type(self) -> pa.DataType:
        return self.log.tables.interactions.schema.field(self.name).type

    def iterchunks(self) -> Iterator[pa.Array]:
        for block in range(len(self.log.lengths)):
            train = np.flatnonzero(self.log.parts(block) == TRAIN)
            if self.name in IDS:
                rows = pa.array(self.log.entity_rows(block, self.name)[train])
                yield pa.DictionaryArray.from_arrays(rows, self.log.ids[self.name])
            else:
                column = self.log.table(block).column(self.name).combine_chunks()
                yield column.take(pa.array(train))
