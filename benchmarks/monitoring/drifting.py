"""The built-in world with forty profiled columns, and windows of it that drift on demand.

The world has fifteen columns; the others are made here, as columns of a log are: of the session,
and leaning to what the user is like, so that the events of a user are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.prepare import prepare
from twotower.data.schema import MICROSECONDS, SPLIT, TIMESTAMP, USER_ID, Tables
from twotower.data.split import GivenSplit
from twotower.data.synthetic import SyntheticSource
from twotower.data.world import DAY, START
from twotower.features.infer import AutoSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.monitoring.profile import Profile
from twotower.monitoring.reference import Reference, make_reference, window_form
from twotower.monitoring.window_profile import Known, WindowProfiler

NUM_NUMBERS, NUM_GROUPS = 13, 12  # numeric and categorical columns that are made here
TRAIN_DAYS, VALIDATION_DAYS, WINDOW_DAYS, NUM_WINDOWS = 20, 2, 2, 10
ALIKE = 0.5  # correlation of the numbers of one user


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Size of the world, and whether its sessions are dealt to the days at random.

    The world shows nobody again what he has clicked, so that the items that are shown drift by
    themselves. Dealt to the days at random, no day differs from another but by chance.
    """

    num_users: int = 2000
    num_items: int = 4000
    slates_per_user: float = 8.0
    slate_size: int = 10
    dealt: bool = False


class MadeSource:
    """Tables in memory as a source."""

    def __init__(self, tables: Tables, name: str) -> None:
        self.tables = tables
        self.name = name

    def fingerprint(self) -> str:
        """See `Source`."""
        return self.name

    def read(self) -> Tables:
        """See `Source`."""
        return self.tables


class World:
    """One world: its reference, and its windows one by one."""

    def __init__(self, seed: int, folder: Path, setting: Setting) -> None:
        num_days = TRAIN_DAYS + VALIDATION_DAYS + WINDOW_DAYS * NUM_WINDOWS
        source = SyntheticSource(
            num_users=setting.num_users,
            num_items=setting.num_items,
            num_days=num_days,
            slates_per_user=setting.slates_per_user,
            slate_size=setting.slate_size,
            seed=seed,
            launched_share=0.0,
        )
        tables = source.read()
        self.log = _with_columns(tables.interactions, np.random.default_rng([seed, 99]))
        days = (self.log[TIMESTAMP].to_numpy() - START) // DAY
        if setting.dealt:
            days = _dealt(self.log, days, np.random.default_rng([seed, 98]))
        self.days = days
        known = days < TRAIN_DAYS + VALIDATION_DAYS + 1  # the test part is of no interest
        part = np.digitize(days, [TRAIN_DAYS, TRAIN_DAYS + VALIDATION_DAYS]).astype(np.int8)
        made = [name for name in self.log.column_names if name.startswith(("number", "group"))]
        past = self.log.append_column(SPLIT, pa.array(part)).filter(pa.array(known))
        past = replace(tables, interactions=past, context=(*tables.context, *made))
        prepared = prepare(
            source=MadeSource(past, f"drifting-{seed}"),
            splitter=GivenSplit(),
            encoders=PipelineFactory(provider=AutoSpec(history_length=0)),
            root=folder,
        )
        pipeline = FeaturePipeline.load(prepared.folder / "features")
        self.reference: Reference = make_reference(prepared, pipeline)
        items = prepared.items
        self.profiler = WindowProfiler(
            Known(pipeline=pipeline, users=prepared.users, items=items),
            self.reference,
            window_form(self.reference),
        )

    def window(self, number: int) -> pa.Table:
        """The log of a window, from 0, as it is without drift."""
        first = TRAIN_DAYS + VALIDATION_DAYS + WINDOW_DAYS * number
        inside = (self.days >= first) & (self.days < first + WINDOW_DAYS)
        return self.log.filter(pa.array(inside))

    def usual(self, name: str) -> np.ndarray:
        """Values of a column in the training part."""
        known = self.log[name].filter(pa.array(self.days < TRAIN_DAYS)).drop_null()
        return known.to_numpy(zero_copy_only=False)

    def profile(self, rows: pa.Table) -> Profile:
        """The profile of a window."""
        times = pc.min_max(rows[TIMESTAMP]).as_py()
        start = (times["min"] - START) // DAY * DAY + START  # whole days, dealt or not
        span = (start // MICROSECONDS, (start + WINDOW_DAYS * DAY) // MICROSECONDS)
        return replace(self.profiler.profile_rows(rows), span=span)


def with_column(rows: pa.Table, name: str, values: object) -> pa.Table:
    """The rows with other values in a column."""
    return rows.set_column(rows.column_names.index(name), name, values)


def shifted_number(rows: pa.Table, name: str, usual: np.ndarray, wanted: float) -> pa.Table:
    """A number moved by so much that its PSI over ten bins of equal weight is what is wanted.

    Args:
        rows: Of a window.
        name: The column.
        usual: Its values in the training part.
        wanted: The PSI.
    """
    edges = np.quantile(usual, np.linspace(0, 1, 11)[1:-1])

    def psi(shift: float) -> float:
        moved = np.bincount(np.searchsorted(edges, usual + shift), minlength=10) / len(usual)
        moved = np.maximum(moved, 1e-4)
        return float(((moved - 0.1) * np.log(moved / 0.1)).sum())

    return with_column(rows, name, pc.add(rows[name], bisect(psi, wanted, float(np.std(usual)))))


def shifted_group(rows: pa.Table, name: str, usual: np.ndarray, wanted: float) -> pa.Table:
    """A share of all rows takes the second most frequent value, so that the PSI is as wanted."""
    shares = np.sort(np.unique(usual, return_counts=True)[1] / len(usual))[::-1]
    values, counts = np.unique(usual, return_counts=True)
    second = values[np.argsort(-counts)[1]]
    target = np.eye(len(shares))[1]

    def psi(share: float) -> float:
        moved = (1 - share) * shares + share * target
        return float(((moved - shares) * np.log(moved / shares)).sum())

    share = bisect(psi, wanted, 1.0)
    turn = np.random.default_rng(len(rows)).random(len(rows)) < share
    return with_column(rows, name, pc.if_else(pa.array(turn), pa.scalar(second), rows[name]))


def bisect(of: Callable[[float], float], wanted: float, high: float) -> float:
    """Where a function that rises from 0 reaches a value."""
    low = 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if of(middle) < wanted else (low, middle)
    return high


def new_ids(rows: pa.Table, column: str, share: float, seed: int) -> pa.Table:
    """A share of all ids is written in a new way, the same ones in every window."""
    ids = rows[column].combine_chunks().dictionary_encode()
    words = ids.dictionary.to_pylist()
    renamed = pa.array([f"n{w}" if hash_share(w, seed) < share else w for w in words])
    return with_column(rows, column, renamed.take(ids.indices))


def vanished(rows: pa.Table, column: str, share: float, seed: int) -> pa.Table:
    """A share of the values of a column is null."""
    gone = np.random.default_rng([seed, len(rows)]).random(len(rows)) < share
    values = pc.if_else(pa.array(gone), pa.scalar(None, rows[column].type), rows[column])
    return with_column(rows, column, values)


def hash_share(word: str, seed: int) -> float:
    """A number from 0 to 1 that belongs to an id."""
    return np.random.default_rng([seed, *word.encode()]).random()


def _dealt(log: pa.Table, days: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The days of all sessions in another order (R,)."""
    users = log[USER_ID].combine_chunks().dictionary_encode().indices.to_numpy()
    keys = np.stack([users, log[TIMESTAMP].to_numpy()])
    _, first, sessions = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    return rng.permutation(days[first])[sessions.ravel()]


def _with_columns(log: pa.Table, rng: np.random.Generator) -> pa.Table:
    users = log[USER_ID].combine_chunks().dictionary_encode()
    rows = users.indices.to_numpy()
    times = log[TIMESTAMP].to_numpy()
    _, sessions = np.unique(np.stack([rows, times]), axis=1, return_inverse=True)
    num_users, num_sessions = len(users.dictionary), int(sessions.max()) + 1
    for number in range(NUM_NUMBERS):
        trait = rng.standard_normal(num_users)[rows]
        own = rng.standard_normal(num_sessions)[sessions]
        values = np.sqrt(ALIKE) * trait + np.sqrt(1 - ALIKE) * own
        values = np.exp(values) if number % 3 == 0 else values
        missing = rng.random(num_sessions)[sessions] < 0.02
        log = log.append_column(f"number_{number:02}", pa.array(values, mask=missing))
    for number in range(NUM_GROUPS):
        size = 3 + 2 * number
        weights = np.arange(1, size + 1) ** -0.8
        usual = rng.choice(size, num_users, p=weights / weights.sum())[rows]
        other = rng.choice(size, num_sessions, p=weights / weights.sum())[sessions]
        keeps = rng.random(num_sessions)[sessions] < ALIKE
        words = pa.array([str(code) for code in range(size)])
        log = log.append_column(
            f"group_{number:02}", words.take(pa.array(np.where(keeps, usual, other)))
        )
    return log
