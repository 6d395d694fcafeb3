"""Windows of a user's training events: one history, and a query after many of its events.

A batch of events repeats almost the same history for every event of a user. A window holds L
events once; an encoder that reads in order says its state after each of them, and each training
event of the window is the target of the state that the history before it ends in.

Shape letters: B windows, L history length, N targets of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.batches import ITEM_ROWS, NUM_SEEN, USER_ROWS, WEIGHTS, Batch, Columns
from twotower.data.item_lists import ItemLists
from twotower.data.prepared import Prepared
from twotower.data.schema import PLACE as PLACE
from twotower.data.schema import WINDOW as WINDOW

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Training events grouped by the windows that their histories end in.

    The windows of a user go back from the end of its longest history, L events each, so only the
    first one may be shorter. Every training event is the target of one window. Events at the same
    time do not see each other, as everywhere, so several may follow the same place.

    Args:
        prepared: The data set.
        columns: Where features come from; its history length is L.
        user_rows: (W,) user of each window.
        ends: (W,) where its histories end in the events, at the latest.
        targets: (E',) positions of the training events, window by window.
        offsets: (W + 1,) where the targets of each window begin and end in `targets`.
    """

    prepared: Prepared
    columns: Columns
    user_rows: Array
    ends: Array
    targets: Array
    offsets: Array

    @staticmethod
    def of(prepared: Prepared, columns: Columns) -> Windows:
        """All windows of a data set.

        Raises:
            ValueError: When the model is given no history.
        """
        length = columns.names.history_length
        if not length:
            raise ValueError("sequence batches need a history; set features.history_length")
        events, _, _ = prepared.require_events()
        targets = prepared.train_events()
        users = np.searchsorted(events.offsets, targets, side="right") - 1
        history_ends = prepared.interactions.history_end[events.interactions[targets]]
        last = np.searchsorted(users, users, side="right") - 1  # (E',) its user's last target
        behind = (history_ends[last] - history_ends) // length
        ends = history_ends[last] - behind * length
        first = np.flatnonzero(np.diff(users, prepend=-1) | np.diff(ends, prepend=-1))
        return Windows(
            prepared=prepared,
            columns=columns,
            user_rows=users[first],
            ends=np.asarray(ends[first], np.int64),
            targets=targets,
            offsets=np.append(first, len(targets)),
        )

    def __len__(self) -> int:
        return len(self.user_rows)

    def batch(self, chosen: Tensor) -> Batch:
        """Histories and targets of some windows.

        Args:
            chosen: (B,) windows.

        Returns:
            ``history.<item feature>`` (B, L', ...) and ``history.mask`` (B, L'), no wider than the
            longest of these windows needs; for every target its item, weight, user and context
            features (N, ...), how many of its user's events lie before it as ``num_seen`` (N,),
            its ``window`` (N,) in the batch and the ``place`` (N,) in that window after which it
            follows; ``user_rows`` (B,).
        """
        events, _, _ = self.prepared.require_events()
        log, rows = self.prepared.interactions, chosen.numpy()
        starts, stops = self.offsets[:-1][rows], self.offsets[1:][rows]
        of_windows = ItemLists.cut(self.targets, starts, stops)
        windows, targets = of_windows.query_index, of_windows.item_rows  # (N,)
        interactions = np.asarray(events.interactions[targets], np.int64)
        # The latest event before a target stands in this column; where none is, padding does.
        before = self.ends[rows][windows] - log.history_end[interactions]
        first = events.offsets[self.user_rows[rows]]  # (B,)
        held = self.ends[rows] - first  # (B,) events up to the end
        longest = min(int(held.max()), self.columns.names.history_length)
        length = max(longest, int(before.max()) + 1)

        def tensor(values: Array) -> Tensor:
            return torch.from_numpy(np.asarray(values, np.int64)).to(self.columns.device)

        users = tensor(self.user_rows[rows])
        batch = self.columns.history(users, tensor(self.ends[rows]), length)
        batch |= self.columns.context(tensor(interactions))
        batch |= self.columns.users(users[tensor(windows)])
        weights = torch.from_numpy(np.asarray(log.weights[interactions]))
        return batch | {
            WINDOW: tensor(windows),
            PLACE: tensor(length - 1 - before),
            USER_ROWS: users,
            ITEM_ROWS: tensor(events.item_rows[targets]),
            WEIGHTS: weights.to(self.columns.device),
            NUM_SEEN: tensor(log.history_end[interactions] - first[windows]),
        }
