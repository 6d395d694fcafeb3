"""Requests as encoded query columns, looked up in a bundle.

Shape letters: E events of a user.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.schema import DataError
from twotower.export.bundle import Bundle
from twotower.serving.catalogue import Catalogue
from twotower.serving.ids import ItemId, find_rows, prepare_to_find
from twotower.serving.queries import Columns, encode_context, encode_user, history_columns
from twotower.serving.requests import Request, RequestError, UnknownUser


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that the models answer.

    Args:
        place: Which of the requests.
        request: It itself.
        events: (E,) item rows of its history.
        columns: Encoded columns, (1, ...) each.
        user_row: Row of the user in the bundle, -1 for one that is not known.
    """

    place: int
    request: Request
    events: npt.NDArray[np.int64]
    columns: Columns
    user_row: int = -1


class RequestEncoder:
    """Looks up users, items and features.

    Args:
        bundle: The bundle.
        items: Its catalogue.
    """

    def __init__(self, bundle: Bundle, items: Catalogue) -> None:
        self.bundle = bundle
        self.items = items
        for entities in (bundle.items, bundle.users):
            if entities is not None:
                prepare_to_find(entities.ids)

    def asked(self, place: int, request: Request) -> Asked | None:
        """A request as columns; None where nothing is known of the user.

        Args:
            place: Which of several requests it is.
            request: The request.

        Raises:
            RequestError: When it asks for what the bundle does not know, or for no items.
        """
        if request.k < 1:
            raise RequestError("k", f"must be at least 1, got {request.k}")
        user_row = None if request.user is None else self._user_row(request.user)
        events = self._events(user_row, request.history)
        if user_row is None and not len(events) and not request.user_features:
            return None
        try:
            columns = self._columns(request, user_row, events)
        except DataError as error:  # A value of a kind that its feature cannot take.
            raise RequestError("request", str(error)) from error
        known = -1 if user_row is None else user_row
        return Asked(place=place, request=request, events=events, columns=columns, user_row=known)

    def _user_row(self, user: ItemId) -> int:
        users = self.bundle.users
        ids = pa.array([], pa.string()) if users is None else users.ids
        row = find_rows(ids, [user])[0]
        if row < 0:
            some = ", ".join(map(str, ids[:3].to_pylist()))
            raise UnknownUser(
                f"{user!r} is unknown; known are {len(ids)} users such as {some}. For somebody "
                "new give user=null and history=[<item ids>]"
            )
        return int(row)

    def _events(self, user_row: int | None, history: Sequence[ItemId]) -> npt.NDArray[np.int64]:
        offsets, item_rows = self.bundle.offsets, self.bundle.item_rows
        known = np.zeros(0, np.int64)
        if user_row is not None and offsets is not None and item_rows is not None:
            known = np.asarray(item_rows[offsets[user_row] : offsets[user_row + 1]], np.int64)
        given = self.items.find(history)
        unknown = [str(item) for item, row in zip(history, given, strict=True) if row < 0]
        if unknown:
            some = ", ".join(map(str, self.items.ids[:3].to_pylist()))
            raise RequestError(
                "history",
                f"unknown items {', '.join(unknown)}; known are {len(self.items.ids)} items such "
                f"as {some}",
            )
        return np.concatenate([known, given])

    def _columns(
        self, request: Request, user_row: int | None, events: npt.NDArray[np.int64]
    ) -> Columns:
        pipeline, users = self.bundle.pipeline, self.bundle.users
        now = time.time() if request.seconds is None else request.seconds
        try:
            columns = encode_context(pipeline, request.context, seconds=now)
        except DataError as error:
            raise RequestError("context", str(error)) from error
        if user_row is None or users is None:
            try:
                columns |= encode_user(pipeline, request.user_features)
            except DataError as error:
                raise RequestError("user_features", str(error)) from error
        else:
            columns |= {n: c[user_row : user_row + 1] for n, c in users.columns.items()}
        names, length = pipeline.spec.history.features, pipeline.spec.history.length
        times = self._times(user_row, len(events), int(now))
        starts, ends = np.zeros(1, np.int64), np.array([len(events)])
        return columns | history_columns(
            events, times, starts, ends, self.items.columns, names, length
        )

    def _times(self, user_row: int | None, num_events: int, now: int) -> npt.NDArray[np.int64]:
        """When events happened, seconds since 1970; now, where it is not known."""
        offsets, known = self.bundle.offsets, self.bundle.event_times
        times = np.full(num_events, now, np.int64)
        if user_row is not None and offsets is not None and known is not None:
            own = known[offsets[user_row] : offsets[user_row + 1]]
            times[: len(own)] = own
        return times
