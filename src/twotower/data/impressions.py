"""The log of the built-in world: sessions, slates and clicks drawn from its truth.

Slates are drawn session by session: an item is never shown before its launch, twice in a slate,
or again to a user who has clicked it. A slot for which `MAX_DRAWS` draws found no such item stays
empty; that happens in worlds with hardly more items than a user clicks.

Every round of sessions and every redraw has random numbers of its own, so a drift leaves the log
before it as it was, row by row.

Shapes: U users, N items, T topics, A sessions of one round, S slots of a slate, R impressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twotower.data.world import (
    DAY,
    NUM_TOPICS,
    POPULAR_SHARE,
    START,
    TASTE_SHARE,
    Floats,
    Integers,
    World,
)

MAX_DRAWS = 40
SESSION_STREAM, SLATE_STREAM, CLICK_STREAM = range(10, 13)

ACTIVITY_SHAPE = 6.0  # sessions of a user: Poisson with a gamma rate of this shape
EVENING, EVENING_SPREAD = 20.0, 4.0  # hours; when people come


@dataclass(frozen=True, kw_only=True, eq=False)
class Log:
    """Impressions in the order of time.

    Args:
        sessions: Number of the session (R,); sessions are numbered by user, then by time.
        user_rows: Rows of the users (R,).
        item_rows: Rows of the items (R,).
        timestamps: Microseconds since 1970 (R,).
        positions: Slots, from 1 (R,).
        clicks: Whether the impression was clicked (R,).
    """

    sessions: Integers
    user_rows: Integers
    item_rows: Integers
    timestamps: Integers
    positions: Integers
    clicks: NDArray[np.bool_]


def draw_log(world: World, num_days: int, slates_per_user: float, seed: int) -> Log:
    """Draw all sessions; round r holds the r-th session of every user who has that many.

    Args:
        world: The truth.
        num_days: Length of the period in days.
        slates_per_user: Mean number of sessions of a user.
        seed: Decides everything that is drawn.
    """
    rng = np.random.default_rng([seed, SESSION_STREAM])
    users, times, rounds = _draw_sessions(len(world.user_ids), num_days, slates_per_user, rng)
    policy = _Policy(world)
    items = np.full((len(users), world.slate_size), -1)  # (sessions, S)
    clicks = np.zeros(items.shape, dtype=np.bool_)
    clicked = np.empty(0, dtype=np.int64)
    by_round = np.split(np.argsort(rounds, kind="stable"), np.cumsum(np.bincount(rounds))[:-1])
    for number, now in enumerate(by_round):
        slate = policy.draw_slates(users[now], times[now], clicked, [seed, SLATE_STREAM, number])
        chance = np.random.default_rng([seed, CLICK_STREAM, number]).random(slate.shape)
        items[now] = slate
        clicks[now] = _draw_clicks(world, users[now], times[now], slate, chance)
        new = (users[now, None] * len(world.item_ids) + slate)[clicks[now]]
        clicked = np.sort(np.concatenate([clicked, new]), kind="stable")
    sessions, slots = np.nonzero(items >= 0)
    order = np.argsort(times[sessions], kind="stable")
    sessions, slots = sessions[order], slots[order]
    return Log(
        sessions=sessions,
        user_rows=users[sessions],
        item_rows=items[sessions, slots],
        timestamps=times[sessions],
        positions=slots + 1,
        clicks=clicks[sessions, slots],
    )


def _draw_sessions(
    num_users: int, num_days: int, slates_per_user: float, rng: np.random.Generator
) -> tuple[Integers, Integers, Integers]:
    """User, time and ordinal within the user of every session, by user and time (sessions,)."""
    rates = rng.gamma(ACTIVITY_SHAPE, slates_per_user / ACTIVITY_SHAPE, num_users)
    counts = rng.poisson(rates)  # (U,)
    users = np.repeat(np.arange(num_users), counts)
    hours = (rng.normal(EVENING, EVENING_SPREAD, len(users)) % 24) / 24
    days = rng.integers(0, num_days, len(users))
    times = START + ((days + hours) * DAY).astype(np.int64)
    times = times[np.lexsort((times, users))]
    return users, times, np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)


def _draw_clicks(
    world: World, users: Integers, times: Integers, slates: Integers, chance: Floats
) -> NDArray[np.bool_]:
    """Clicks of slates (A, S) from uniform random numbers (A, S); empty slots get none."""
    sessions, slots = np.nonzero(slates >= 0)
    probability = world.click_probability(
        users[sessions], slates[sessions, slots], slots + 1, times[sessions]
    )
    clicks = np.zeros(slates.shape, dtype=np.bool_)
    clicks[sessions, slots] = chance[sessions, slots] < probability
    return clicks


class _Policy:
    """The logging policy of the world, ready to draw from.

    Items lie in the order of their topics, so that all of them and those of one topic are both
    stretches of one cumulative popularity.
    """

    def __init__(self, world: World) -> None:
        items = world.items
        self.world = world
        self.order = np.argsort(items.topics, kind="stable")  # (N,)
        self.bounds = np.searchsorted(items.topics[self.order], np.arange(NUM_TOPICS + 1))
        cumulative = np.cumsum(items.popularity[:, self.order], axis=1)
        self.cumulative = np.pad(cumulative, ((0, 0), (1, 0)))  # (2, N + 1)
        self.topic_cumulative = np.cumsum(world.users.topic_shares, axis=2)  # (2, U, T)

    def draw_slates(
        self, users: Integers, times: Integers, clicked: Integers, stream: Sequence[int]
    ) -> Integers:
        """Draw slates without replacement, in random order of slots.

        Args:
            users: Users of the sessions (A,).
            times: Times of the sessions in microseconds since 1970 (A,).
            clicked: Keys ``user * N + item`` that may not be shown again, ascending.
            stream: Seed of the random numbers; how many are used does not alter other streams.

        Returns:
            Item rows (A, S); -1 in a slot that stayed empty.
        """
        shape = (len(users), self.world.slate_size)
        slates = np.full(shape, -1)
        drifted = (times >= self.world.drift_time).astype(np.int64)
        for attempt in range(MAX_DRAWS):
            rows = np.flatnonzero((slates < 0).any(axis=1))
            if len(rows) == 0:
                break
            chance = np.random.default_rng([*stream, attempt]).random((2, *shape))[:, rows]
            open_slots = slates[rows] < 0  # (rows, S)
            drawn = self._draw_items(drifted[rows], users[rows], chance)
            proposal = np.where(open_slots, drawn, slates[rows])
            keys = users[rows, None] * len(self.order) + proposal
            refused = _contains(clicked, keys) | repeats(proposal, open_slots)
            refused |= self.world.launch_times[proposal] > times[rows, None]
            slates[rows] = np.where(refused & open_slots, -1, proposal)
        slots = np.random.default_rng([*stream, MAX_DRAWS]).random(shape).argsort(axis=1)
        return np.take_along_axis(slates, slots, axis=1)

    def _draw_items(self, drifted: Integers, users: Integers, chance: Floats) -> Integers:
        """Draw items with replacement from two uniform random numbers each (2, n, S) -> (n, S)."""
        channel, place = chance
        by_chance = channel >= POPULAR_SHARE + TASTE_SHARE
        by_taste = (channel >= POPULAR_SHARE) & ~by_chance
        wanted = (channel - POPULAR_SHARE) / TASTE_SHARE  # uniform where by_taste
        shares = self.topic_cumulative[drifted, users]  # (n, T)
        topics = (shares[:, None, :-1] <= wanted[:, :, None]).sum(axis=2)  # (n, S)
        phase = drifted[:, None]
        low = np.where(by_taste, self.cumulative[phase, self.bounds[topics]], 0.0)
        high = np.where(by_taste, self.cumulative[phase, self.bounds[topics + 1]], 1.0)
        target = low + place * (high - low)
        before, after = (np.searchsorted(c[1:], target, side="right") for c in self.cumulative)
        found = self.order[np.minimum(np.where(phase, after, before), len(self.order) - 1)]
        anywhere = (place * len(self.order)).astype(np.int64)
        items: Integers = np.where(by_chance, anywhere, found)
        return items


def _contains(ascending: Integers, keys: Integers) -> NDArray[np.bool_]:
    """Which keys occur in an ascending array, in the shape of the keys."""
    found: NDArray[np.bool_] = np.append(ascending, -1)[np.searchsorted(ascending, keys)] == keys
    return found


def repeats(items: Integers, is_new: NDArray[np.bool_] | bool = True) -> NDArray[np.bool_]:
    """Which entries (n, S) repeat an earlier one of their row; those not new come first."""
    order = np.argsort(2 * items + is_new, axis=1, kind="stable")
    ranked = np.take_along_axis(items, order, axis=1)
    found = np.zeros(items.shape, dtype=np.bool_)
    np.put_along_axis(found, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    return found
