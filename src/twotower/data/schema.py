"""Names and meanings of the columns that user tables share; the only place that spells them.

A source (``tables``, ``movielens``, ``synthetic``) yields `Tables` in canonical form:

==============  ==================  ====================================================
column          Arrow type          meaning
==============  ==================  ====================================================
``user_id``     int64 or string     external user id, kept as it came
``item_id``     int64 or string     external item id, kept as it came
``timestamp``   int64               microseconds since 1970-01-01 UTC
``label``       float32             outcome of an impression (click, rating, seconds)
``weight``      float32             weight of the row in the losses, default 1
``split``       int8                `TRAIN`, `VALIDATION` or `TEST`, where given
==============  ==================  ====================================================

A flat click table may lack ``user_id``, ``item_id`` and ``timestamp``; then only the ranker can be
trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
LABEL = "label"
WEIGHT = "weight"
SPLIT = "split"
TITLE = "title"
POSITION = "position"
REJECTED_REASON = "reason"

HISTORY_PREFIX = "history."
HISTORY_MASK = "history.mask"
HISTORY_TIME = "history.time"
HISTORY_OFFSETS = "history.offsets"  # where each begins, if they stand one behind the other
RETRIEVAL_SCORE = "retrieval_score"
RETRIEVAL_RANK = "retrieval_rank"
USER_ROWS = "user_rows"
ITEM_ROWS = "item_rows"
LABELS = "labels"
WEIGHTS = "weights"
TASK_WEIGHTS = "task_weights"
NUM_SEEN = "num_seen"  # how many events of its user lie before a query
WINDOW, PLACE = "window", "place"  # of every target, and in it the latest event of its history
OWNER = "owner"  # whose query a target belongs to
BORROWED = "borrowed"  # the example belongs to another process; this one has no share in the batch

TASK_PREFIX = "task."  # before the name of a further outcome, in a batch and in an exported ranker

RESERVED_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP, LABEL, WEIGHT, SPLIT)
# What a batch holds beside the features.
BATCH_COLUMNS = (
    *(RETRIEVAL_SCORE, RETRIEVAL_RANK, USER_ROWS, ITEM_ROWS, LABELS, WEIGHTS, TASK_WEIGHTS),
    *(NUM_SEEN, WINDOW, PLACE, OWNER, BORROWED),
)

SPLIT_NAMES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)

MICROSECONDS = 1_000_000


class DataError(ValueError):
    """Input that cannot be used; one message lists all its problems.

    Args:
        problems: One sentence each: file, column, rows, what was received, what is allowed.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, kw_only=True)
class Label:
    """Which column says how an impression ended, and what counts as a positive.

    Args:
        column: Name of the column in the user's table.
        minimum: Smallest allowed value.
        maximum: Largest allowed value.
        positive_from: Rows with a label of at least this value are positives; the others are
            impressions that did not succeed, on which the ranker learns.
        tasks: Columns with further outcomes that a ranker of several tasks learns beside this one,
            and the smallest value that is a success of each.

    Raises:
        ValueError: When the range cannot be, or the name of a further outcome has a meaning.
    """

    column: str = LABEL
    minimum: float = 0.0
    maximum: float = 1.0
    positive_from: float = 1.0
    tasks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = [name for name in self.tasks if name in RESERVED_COLUMNS or "/" in name]
        if taken:
            raise ValueError(
                f"label: `{'`, `'.join(taken)}` cannot be the name of a further outcome; allowed: "
                f"names without `/` other than {', '.join(RESERVED_COLUMNS)}"
            )
        if not self.minimum < self.positive_from <= self.maximum:
            raise ValueError(
                "label: `positive_from` must lie above `minimum` and at most at `maximum`, got "
                f"minimum={self.minimum}, positive_from={self.positive_from}, "
                f"maximum={self.maximum}"
            )


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The raw tables of one data set in canonical form.

    Args:
        interactions: One row an event or impression, in the order of the user's table.
        users: One row a user, or None.
        items: One row an item, or None.
        label: How `label` is to be read; None when every row is a positive.
        context: Columns of `interactions` that are known at request time and may be features.
        rejected: Rows set aside by ``on_bad_rows=quarantine``, with the reason, or None.
    """

    interactions: pa.Table
    users: pa.Table | None = None
    items: pa.Table | None = None
    label: Label | None = None
    context: tuple[str, ...] = ()
    rejected: pa.Table | None = None

    @property
    def tasks(self) -> Mapping[str, float]:
        """Columns with further outcomes, and the smallest value that is a success of each."""
        return {} if self.label is None else self.label.tasks

    @property
    def foreseeable(self) -> pa.Table:
        """The interactions without further outcomes, which no feature may be fitted on."""
        return self.interactions.drop_columns(list(self.tasks))

    def has(self, column: str) -> bool:
        """Whether the interactions carry a column."""
        return column in self.interactions.column_names


class Source(Protocol):
    """Where tables come from; one implementation a file in this folder."""

    @property
    def name(self) -> str:
        """Short name, used for folders."""

    def fingerprint(self) -> str:
        """Digest of everything that `read` depends on: file contents and options."""

    def read(self) -> Tables:
        """Read, map and check the tables.

        Raises:
            DataError: When a table cannot be used; nothing has been written by then.
        """
