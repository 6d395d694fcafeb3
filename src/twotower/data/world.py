"""The truth of the built-in world: who likes what, what is shown, and what is clicked.

Users and items live in one latent space around orthogonal topic centres. A user has a share of
interest in every topic, an item belongs to one; popularity follows Zipf's law with exponent 0.8.
The logging policy mixes popularity, the user's topics and chance; every draw of a slot shows

    exposure(i | u) = 0.3 zipf(i) + 0.55 share(u, topic(i)) zipf(i | topic(i)) + 0.15 / N

and what is shown is clicked under the examination model, slots being numbered from 1:

    P(click | u, i, slot) = slot^-0.6 * sigmoid(5 taste(u) . item(i) + quality(i) - 2.7)

From the time of a `Drift` on, tastes turn from every topic to the next one and popularity to
another order of the items. Nothing else ever changes. `twotower.data.create_world` draws a world.

Examination model: Craswell et al., "An experimental comparison of click position-bias models",
WSDM 2008.

Shapes: U users, N items, T topics, D latent dimensions, B and M some users and items, n rows; a
leading 2 means before the drift and from it on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from twotower.data.schema import MICROSECONDS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Strings = NDArray[np.str_]

NUM_TOPICS = 12
LATENT_DIM = 16

POPULAR_SHARE, TASTE_SHARE, CHANCE_SHARE = 0.3, 0.55, 0.15
EXAMINATION_EXPONENT = 0.6
TASTE_WEIGHT = 5.0
CLICK_BIAS = -2.7

START = 1_704_067_200 * MICROSECONDS  # 2024-01-01 00:00 UTC
DAY = 86_400 * MICROSECONDS


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A change of the world at one time.

    Args:
        start_share: Share of the period after which the change sets in.
        taste_shift: How far tastes move to the next topic: 0 not at all, 1 wholly. The clicks
            that a user and an item lead to change, the items shown hardly.
        popularity_shift: How far popularity moves to another order of the items, from 0 to 1.
            The items shown change, the clicks that a user and an item lead to do not.
    """

    start_share: float
    taste_shift: float = 0.0
    popularity_shift: float = 0.0

    def __post_init__(self) -> None:
        shifts = {"taste_shift": self.taste_shift, "popularity_shift": self.popularity_shift}
        problems = [
            f"drift: `{field}` must lie between 0 and 1, got {value}"
            for field, value in shifts.items()
            if not 0 <= value <= 1
        ]
        if not 0 < self.start_share < 1:
            problems.append(
                "drift: `start_share` must lie between 0 and 1, both excluded, got "
                f"{self.start_share}"
            )
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True, eq=False)
class Users:
    """The users' truth.

    Args:
        ids: External ids (U,).
        topic_shares: Interest in every topic, summing to 1 (2, U, T).
        vectors: Tastes, of unit length (2, U, D).
    """

    ids: Strings
    topic_shares: Floats
    vectors: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Items:
    """The items' truth.

    Args:
        ids: External ids (N,).
        topics: Topic of every item (N,).
        vectors: Places in the latent space, of unit length (N, D).
        quality: What the click logit gains whoever looks (N,).
        popularity: Zipf weights, summing to 1 (2, N).
    """

    ids: Strings
    topics: Integers
    vectors: Floats
    quality: Floats
    popularity: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Everything that decides what is shown and clicked.

    Args:
        users: The users.
        items: The items.
        launch_times: Microseconds since 1970 before which an item is not shown (N,).
        centres: Topic centres in the latent space, of unit length (T, D).
        slate_size: Slots of a slate.
        end: End of the period in microseconds since 1970; it begins at `START`.
        drift_time: From when on the second half of the truth holds, in microseconds since 1970;
            `end` when nothing drifts.
    """

    users: Users
    items: Items
    launch_times: Integers
    centres: Floats
    slate_size: int
    end: int
    drift_time: int

    @property
    def user_ids(self) -> Strings:
        """External ids of the users (U,)."""
        return self.users.ids

    @property
    def item_ids(self) -> Strings:
        """External ids of the items (N,)."""
        return self.items.ids

    def click_probability(
        self,
        user_rows: Integers,
        item_rows: Integers,
        positions: Integers,
        timestamps: Integers | None = None,
    ) -> Floats:
        """Probability that an impression is clicked.

        Args:
            user_rows: Rows of the users (n,).
            item_rows: Rows of the items (n,).
            positions: Slots, from 1 (n,).
            timestamps: When they are shown, in microseconds since 1970 (n,); without them, at the
                end of the period.
        """
        drifted = 1 if timestamps is None else (timestamps >= self.drift_time).astype(np.int64)
        tastes = self.users.vectors[drifted, user_rows]  # (n, D)
        match = np.einsum("nd,nd->n", tastes, self.items.vectors[item_rows])
        return examination(positions) * attraction(match, self.items.quality[item_rows])

    def exposure(self, user_rows: Integers, item_rows: Integers | None = None) -> Floats:
        """Probability that one draw of the logging policy at the end of the period is an item.

        Args:
            user_rows: Rows of the users (B,).
            item_rows: Rows of the items (M,); all of them when None.

        Returns:
            Probabilities (B, M); over all items they sum to 1.
        """
        popularity = self.items.popularity[1]
        of_topic = np.bincount(self.items.topics, weights=popularity, minlength=NUM_TOPICS)  # (T,)
        rows = slice(None) if item_rows is None else item_rows
        topics, popularity = self.items.topics[rows], popularity[rows]
        shares = self.users.topic_shares[1, user_rows][:, topics]  # (B, M)
        exposure: Floats = (
            POPULAR_SHARE * popularity
            + TASTE_SHARE * shares * (popularity / of_topic[topics])
            + CHANCE_SHARE / len(self.item_ids)
        )
        return exposure

    def affinity(self, user_rows: Integers, item_rows: Integers | None = None) -> Floats:
        """Expected clicks of a user on an item in one session at the end of the period.

        Ranking the items that a user has not clicked yet by it gives the best recall there is,
        but for items that are launched within the test period.

        Args:
            user_rows: Rows of the users (B,).
            item_rows: Rows of the items (M,); all of them when None.

        Returns:
            Expected clicks (B, M).
        """
        rows = slice(None) if item_rows is None else item_rows
        match = self.users.vectors[1, user_rows] @ self.items.vectors[rows].T  # (B, M)
        looked_at = examination(np.arange(1, self.slate_size + 1)).sum()
        clicked = attraction(match, self.items.quality[rows])  # (B, M)
        affinity: Floats = looked_at * self.exposure(user_rows, item_rows) * clicked
        return affinity


def examination(positions: Integers) -> Floats:
    """Probability that a slot is looked at, slots being numbered from 1 (n,)."""
    return np.asarray(positions, dtype=np.float64) ** -EXAMINATION_EXPONENT


def attraction(match: Floats, quality: Floats) -> Floats:
    """Probability that an item is clicked when it is looked at.

    Args:
        match: Inner product of taste and item, from -1 to 1 (..., M).
        quality: Quality of the items (M,).
    """
    probability: Floats = expit(TASTE_WEIGHT * match + quality + CLICK_BIAS)
    return probability
