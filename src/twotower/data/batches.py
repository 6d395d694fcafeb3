"""Batches gathered out of the prepared columns.

A training example is one number, the position of its event; features and histories are cut out of
the columns by vectorised gathers when a batch is assembled, where the columns live.

Shape letters: B batch, L history length, E events of all histories of a batch, P known positives of
a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.packed_columns import PackedColumns, gather
from twotower.data.prepared import Prepared
from twotower.data.schema import (
    HISTORY_MASK,
    HISTORY_OFFSETS,
    HISTORY_PREFIX,
    HISTORY_TIME,
    TRAIN,
)
from twotower.data.schema import ITEM_ROWS as ITEM_ROWS
from twotower.data.schema import LABELS as LABELS
from twotower.data.schema import NUM_SEEN as NUM_SEEN
from twotower.data.schema import USER_ROWS as USER_ROWS
from twotower.data.schema import WEIGHTS as WEIGHTS

Batch = dict[str, Tensor]
Residency = Literal["device", "host", "disk"]
Histories = Callable[[Tensor, Tensor], Batch]  # users and ends, both (B,), to columns


@dataclass(frozen=True, kw_only=True)
class KnownPositives:
    """Training positives of some users as flat pairs.

    Args:
        owners: (P,) a position among these users.
        item_rows: (P,).
        places: (P,) int32, which event of its user it is; the oldest is 0.
    """

    owners: Tensor
    item_rows: Tensor
    places: Tensor


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Which encoded columns a batch holds.

    Args:
        user: User features.
        item: Item features.
        context: Features of the interaction.
        history: Item features that describe an event of the history.
        history_length: ``L``; 0 for no history.
        history_times: Whether it is said when the events happened.
    """

    user: Sequence[str]
    item: Sequence[str]
    context: Sequence[str]
    history: Sequence[str]
    history_length: int
    history_times: bool = False


class Columns:
    """The columns of a prepared data set as tensors, and gathers from them.

    Args:
        prepared: The data set.
        names: Which columns batches hold.
        device: Where batches are wanted.
        residency: Where the columns live and the gathers run: on the ``device``, in the memory of
            the ``host``, or on ``disk``, as memory maps of the prepared files. What was gathered
            for a GPU is pinned, so that nobody waits for its copy.
    """

    def __init__(
        self,
        prepared: Prepared,
        names: ColumnNames,
        device: torch.device,
        residency: Residency = "device",
    ) -> None:
        self.names = names
        self.device = device
        self.home = device if residency == "device" else torch.device("cpu")
        self._residency = residency
        users, items, events = prepared.users, prepared.items, prepared.events
        self._users = self._packed(
            {} if users is None else self._tensors(users.columns, names.user)
        )
        of_items = [*dict.fromkeys([*names.item, *names.history])]
        found = {} if items is None else self._tensors(items.columns, of_items)
        self._items = self._packed({name: found[name] for name in names.item if name in found})
        self._of_events = {name: found[name] for name in names.history if name in found}
        self._context = self._packed(self._tensors(prepared.interactions.context, names.context))
        log = prepared.interactions
        self._users_of_log = None if log.user_rows is None else self._tensor(log.user_rows)
        self._items_of_log = None if log.item_rows is None else self._tensor(log.item_rows)
        self._history_end = self._tensor(log.history_end)
        self._positive, self._weights = self._tensor(log.positive), self._tensor(log.weights)
        self._offsets = None if events is None else self._tensor(events.offsets)
        self._event_items = None if events is None else self._tensor(events.item_rows)
        times = prepared.event_times if names.history_times else None
        self._event_times = None if times is None else self._tensor(times)
        self._train_end = None if events is None else self._tensor(events.part_end(TRAIN))

    def items(self, item_rows: Tensor) -> Batch:
        """Item features (B, ...) of some items (B,)."""
        return self._sent(self._items.rows(self._placed(item_rows)))

    def users(self, user_rows: Tensor) -> Batch:
        """User features (B, ...) of some users (B,)."""
        return self._sent(self._users.rows(self._placed(user_rows)))

    def context(self, interactions: Tensor) -> Batch:
        """Context features (B, ...) of some interactions (B,)."""
        return self._sent(self._context.rows(self._placed(interactions)))

    def history(self, user_rows: Tensor, ends: Tensor, length: int | None = None) -> Batch:
        """The latest events before some ends, oldest first, padded on the left.

        Args:
            user_rows: (B,) users.
            ends: (B,) absolute end of each history in the events.
            length: How many, ``L``; by default the length that `names` say.

        Returns:
            ``history.<feature>`` (B, L, ...), ``history.mask`` (B, L) bool and, where it is asked
            for, ``history.time`` (B, L) int64 seconds since 1970.
        """
        length = self.names.history_length if length is None else length
        if (
            not length
            or not self.names.history
            or self._offsets is None
            or self._event_items is None
        ):
            return {}
        user_rows, ends = self._placed(user_rows), self._placed(ends)
        positions = ends[:, None] - torch.arange(length, 0, -1, device=self.home)  # (B, L)
        mask = positions >= self._offsets[user_rows][:, None]  # (B, L)

        def of_events(values: Tensor) -> Tensor:
            if not len(values):
                return torch.zeros_like(positions)
            return torch.where(mask, values[positions.clamp(min=0)].long(), 0)  # (B, L)

        item_rows = of_events(self._event_items)
        columns: Batch = {HISTORY_MASK: mask}
        if self._event_times is not None:
            columns[HISTORY_TIME] = of_events(self._event_times)
        for name, flat in self._events(item_rows.flatten()).items():
            values = flat.reshape(*mask.shape, *flat.shape[1:])  # (B, L, ...)
            keep = mask.reshape(mask.shape + (1,) * (values.dim() - 2))
            columns[name] = torch.where(keep, values, torch.zeros_like(values))
        return self._sent(columns)

    def history_sets(self, user_rows: Tensor, ends: Tensor) -> Batch:
        """The same events, one history behind the other, without padding.

        A GPU is not waited for to know how many they are: there it gives as many as there could be,
        and those beyond the last history are of none.

        Args:
            user_rows: (B,) users.
            ends: (B,) absolute end of each history in the events.

        Returns:
            ``history.<feature>`` (E, ...) and where each history begins and the last one ends,
            ``history.offsets`` (B + 1,) int64.
        """
        if self._offsets is None or self._event_items is None:
            return {}
        user_rows, ends = self._placed(user_rows), self._placed(ends)
        lengths = (ends - self._offsets[user_rows]).clamp(max=self.names.history_length)  # (B,)
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))  # (B + 1,)
        shift = ends - offsets[1:]  # (B,)
        if self.home.type == "cuda" and len(self._event_items):
            most = len(ends) * self.names.history_length
            every = torch.arange(most, dtype=torch.int32, device=self.home)
            owners = torch.searchsorted(offsets[1:-1].int(), every, right=True, out_int32=True)
            positions = shift.index_select(0, owners).add_(every)  # (E,)
            positions.clamp_(max=len(self._event_items) - 1)
        else:
            # From every event to the next one: by one, but for where another history begins.
            steps = torch.ones(int(offsets[-1]) + 1, dtype=torch.long, device=self.home)
            steps[0] = 0
            steps.index_add_(0, offsets[:-1], shift.diff(prepend=shift.new_zeros(1)))
            positions = steps[:-1].cumsum(0)  # (E,)
        columns = self._events(self._event_items.index_select(0, positions))
        return self._sent(columns | {HISTORY_OFFSETS: offsets})

    def events(self, item_rows: Tensor) -> Batch:
        """``history.<feature>`` (E, ...) of events of some items (E,)."""
        return self._sent(self._events(self._placed(item_rows)))

    def _events(self, item_rows: Tensor) -> Batch:
        return {HISTORY_PREFIX + n: gather(v, item_rows) for n, v in self._of_events.items()}

    def queries(self, interactions: Tensor, history: Histories | None = None) -> Batch:
        """Query features of some interactions (B,): user, context, and the history before each.

        Args:
            interactions: (B,).
            history: Cuts the histories: `history`, the default, or `history_sets`.
        """
        history = history or self.history
        interactions = self._placed(interactions)
        batch = self.context(interactions)
        if self._users_of_log is not None:
            user_rows = gather(self._users_of_log, interactions)
            ends = gather(self._history_end, interactions)
            batch |= self.users(user_rows) | history(user_rows, ends)
            own = {USER_ROWS: user_rows}
            if self._offsets is not None:
                own[NUM_SEEN] = ends - self._offsets[user_rows]
            batch |= self._sent(own)
        return batch

    def examples(self, interactions: Tensor, history: Histories | None = None) -> Batch:
        """Queries, targets, labels and weights of some interactions (B,).

        What is known of the targets is looked up in the step, of each item once.

        Args:
            interactions: (B,).
            history: As in `queries`.
        """
        interactions = self._placed(interactions)
        batch = self.queries(interactions, history)
        own = {
            LABELS: self._positive.index_select(0, interactions).float(),
            WEIGHTS: self._weights.index_select(0, interactions),
        }
        if self._items_of_log is not None:
            own[ITEM_ROWS] = gather(self._items_of_log, interactions)
        return batch | self._sent(own)

    def known_positives(self, user_rows: Tensor) -> KnownPositives:
        """Training positives of some users (B,)."""
        if self._offsets is None or self._train_end is None or self._event_items is None:
            empty = torch.zeros(0, dtype=torch.long, device=self.device)
            return KnownPositives(owners=empty, item_rows=empty, places=empty.int())
        user_rows = self._placed(user_rows)
        starts, counts = (
            self._offsets[user_rows],
            self._train_end[user_rows] - self._offsets[user_rows],
        )
        owners = torch.repeat_interleave(torch.arange(len(user_rows), device=self.home), counts)
        firsts = torch.cumsum(counts, 0) - counts  # (B,)
        places = torch.arange(len(owners), device=self.home) - firsts[owners]
        item_rows = self._event_items[starts[owners] + places].long()
        return KnownPositives(
            owners=owners.to(self.device),
            item_rows=item_rows.to(self.device),
            places=places.int().to(self.device),
        )

    def _placed(self, rows: Tensor) -> Tensor:
        """Rows where the columns live; the copy to a GPU is not waited for."""
        if self.home.type == "cuda" and rows.device.type == "cpu":
            return rows.pin_memory().to(self.home, non_blocking=True)
        return rows.to(self.home)

    def _sent(self, batch: Batch) -> Batch:
        """A batch where it is wanted."""
        if self.home == self.device:
            return batch
        if self.device.type == "cuda":
            batch = {name: values.pin_memory() for name, values in batch.items()}
        return {name: values.to(self.device, non_blocking=True) for name, values in batch.items()}

    def _packed(self, columns: Batch) -> PackedColumns:
        return PackedColumns(columns, pack=self._residency != "disk")

    def _tensors(self, columns: Mapping[str, npt.NDArray[Any]], names: Sequence[str]) -> Batch:
        return {name: self._tensor(columns[name]) for name in names}

    def _tensor(self, values: npt.NDArray[Any]) -> Tensor:
        if self._residency == "disk":
            with warnings.catch_warnings():  # a map of a file is not to be written to, and is not
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                return torch.from_numpy(values)
        return torch.from_numpy(np.array(values)).to(self.home)
