"""Users as sets of items: a random part is the history, what is left are the targets.

Where a log has no times, "before" means nothing, and the history of an event is what else its user
took. All targets of a user share one query, so an epoch costs one query a user instead of one an
event. The part is drawn anew in every epoch (Liang et al. 2018, "Variational Autoencoders for
Collaborative Filtering", who train on a random part as well).

Shape letters: B users, E events of their histories, N targets of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.data.batches import ITEM_ROWS, USER_ROWS, WEIGHTS, Batch, Columns
from twotower.data.item_lists import ItemLists
from twotower.data.prepared import Prepared
from twotower.data.schema import HISTORY_OFFSETS, TRAIN, DataError
from twotower.data.schema import OWNER as OWNER

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class UserSets:
    """The training events of every user who has any.

    Args:
        prepared: The data set.
        columns: Where features come from; its history length is the longest history.
        history_share: Share of a user's items that becomes the history, on average.
        user_power: A target of a user with n targets weighs n ** -user_power as much.
        user_rows: (U',) users with training events.
    """

    prepared: Prepared
    columns: Columns
    history_share: float
    user_power: float
    user_rows: Array

    @staticmethod
    def of(
        prepared: Prepared, columns: Columns, *, history_share: float, user_power: float
    ) -> UserSets:
        """The sets of a data set.

        Raises:
            DataError: When the model is given no history, or features of a moment.
        """
        problems = []
        if not columns.names.history_length:
            problems.append("user batches need a history; set features.history_length")
        if columns.names.context:
            problems.append(
                "user batches have no moment that could have a context; leave out "
                f"{', '.join(columns.names.context)} with features.exclude"
            )
        if problems:
            raise DataError(problems)
        events, _, _ = prepared.require_events()
        users = np.flatnonzero(events.part_end(TRAIN) > events.offsets[:-1])
        return UserSets(
            prepared=prepared,
            columns=columns,
            history_share=history_share,
            user_power=user_power,
            user_rows=users,
        )

    def __len__(self) -> int:
        return len(self.user_rows)

    def batch(
        self,
        chosen: Tensor,
        share: slice = slice(None),
        generator: torch.Generator | None = None,
    ) -> Batch:
        """Histories and targets of some users.

        Args:
            chosen: (B,) sets.
            share: Which of them the batch holds; numbers are drawn for all.
            generator: Random state on the CPU; None for torch's global one.

        Returns:
            ``history.<item feature>`` (E, ...) of the events of all histories, and where each
            begins, ``history.offsets`` (B + 1,); user features (B, ...) and ``user_rows`` (B,); for
            every target its item, weight and ``owner`` (N,). Owners are places in the batch. Every
            user has a target.
        """
        events, _, _ = self.prepared.require_events()
        users = self.user_rows[chosen.numpy()]
        starts, stops = events.offsets[:-1][users], events.part_end(TRAIN)[users]
        edges = np.append(0, np.cumsum(stops - starts))  # (B + 1,)
        draw = torch.rand(int(edges[-1]), generator=generator).numpy()
        first, last, _ = share.indices(len(users))
        draw, users = draw[edges[first] : edges[last]], users[first:last]
        positions = np.arange(len(events.item_rows))
        sets = ItemLists.cut(positions, starts[first:last], stops[first:last])
        largest = np.maximum.reduceat(draw, sets.offsets[:-1])  # (B,) always a target
        in_history = (draw < self.history_share) & (draw < largest[sets.query_index])
        history, targets = sets.where(in_history), sets.where(~in_history)
        weights = self.prepared.interactions.weights[events.interactions[targets.item_rows]]
        num_targets = targets.counts[targets.query_index]  # (N,) of the target's user
        weights = (weights * num_targets**-self.user_power).astype(np.float32)

        def tensor(values: Array) -> Tensor:
            return torch.from_numpy(np.asarray(values)).to(self.columns.device)

        after = np.repeat(history.offsets[1:], history.counts) - 1
        after -= np.arange(len(history.item_rows))  # how many events of its history follow
        history = history.where(after < self.columns.names.history_length)
        user_rows = tensor(users)
        batch = self.columns.users(user_rows)
        batch |= self.columns.events(tensor(events.item_rows[history.item_rows].astype(np.int64)))
        return batch | {
            HISTORY_OFFSETS: tensor(history.offsets),
            USER_ROWS: user_rows,
            OWNER: tensor(targets.query_index),
            ITEM_ROWS: tensor(events.item_rows[targets.item_rows].astype(np.int64)),
            WEIGHTS: tensor(weights),
        }
