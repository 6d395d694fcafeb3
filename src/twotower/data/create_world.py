"""Draws a world: topic centres, users with their tastes, items with popularity and launch times.

What the parts mean stands in `twotower.data.world`. Users, items and topics have random numbers of
their own, so that the number of users alters no item.

Shapes: U users, N items, T topics, D latent dimensions; a leading 2 means before the drift and from
it on.
"""

from __future__ import annotations

import numpy as np

from twotower.data.world import (
    DAY,
    LATENT_DIM,
    NUM_TOPICS,
    START,
    Drift,
    Floats,
    Items,
    Strings,
    Users,
    World,
)

ZIPF_EXPONENT = 0.8

INTEREST_CONCENTRATION = 0.05  # Dirichlet; most users live in one or two topics
PERSONAL_SPREAD, ITEM_SPREAD = 0.2, 0.3
QUALITY_SPREAD = 0.4

LATE, LAST = 0.9, 0.98  # shares of the period
LATE_LAUNCH_SHARE = 0.25  # of the items that are launched, those between these two


def create_world(
    *,
    num_users: int,
    num_items: int,
    num_days: int,
    slate_size: int,
    seed: int,
    drift: Drift | None,
    launched_share: float,
    launched_from: float,
) -> World:
    """Draw a world; the same arguments give the same one, and a drift alters only what follows.

    Args:
        num_users: U.
        num_items: N, at least one a topic.
        num_days: Length of the period in days.
        slate_size: Slots of a slate.
        seed: Decides everything that is drawn.
        drift: A change of tastes or popularity at one time, or None.
        launched_share: Share of the items that are not there from the beginning.
        launched_from: Share of the period before which none of them comes, below 0.9.
    """
    topic_rng, user_rng, item_rng = (np.random.default_rng([seed, part]) for part in range(3))
    centres = np.linalg.qr(topic_rng.standard_normal((LATENT_DIM, NUM_TOPICS))).Q.T  # (T, D)
    change = drift or Drift(start_share=0.5)
    period = num_days * DAY
    items = _create_items(num_items, centres, change.popularity_shift, item_rng)
    launches = _draw_launches(num_items, launched_share, launched_from, item_rng)
    return World(
        users=_create_users(num_users, centres, change.taste_shift, user_rng),
        items=items,
        launch_times=START + (launches * period).astype(np.int64),
        centres=centres,
        slate_size=slate_size,
        end=START + period,
        drift_time=START + (int(change.start_share * period) if drift else period),
    )


def _create_users(num_users: int, centres: Floats, shift: float, rng: np.random.Generator) -> Users:
    shares = rng.dirichlet(np.full(NUM_TOPICS, INTEREST_CONCENTRATION), num_users)  # (U, T)
    moved = (1 - shift) * shares + shift * np.roll(shares, 1, axis=1)
    topic_shares = np.stack([shares, moved])  # (2, U, T)
    personal = PERSONAL_SPREAD * gaussian(num_users, rng)  # (U, D)
    return Users(
        ids=_ids("u", num_users, 6),
        topic_shares=topic_shares,
        vectors=_unit(_unit(topic_shares @ centres) + personal),  # (2, U, D)
    )


def _create_items(num_items: int, centres: Floats, shift: float, rng: np.random.Generator) -> Items:
    topics = rng.permutation(num_items) % NUM_TOPICS
    zipf = np.arange(1, num_items + 1) ** -ZIPF_EXPONENT
    before, after = (rng.permutation(zipf / zipf.sum()) for _ in range(2))
    return Items(
        ids=_ids("i", num_items, 5),
        topics=topics,
        vectors=_unit(centres[topics] + ITEM_SPREAD * gaussian(num_items, rng)),
        quality=QUALITY_SPREAD * rng.standard_normal(num_items),
        popularity=np.stack([before, (1 - shift) * before + shift * after]),
    )


def _draw_launches(
    num_items: int, launched_share: float, launched_from: float, rng: np.random.Generator
) -> Floats:
    """Shares of the period after which items come (N,): 0 for most, some in the last tenth."""
    num_launched = round(launched_share * num_items)
    num_late = int(np.ceil(LATE_LAUNCH_SHARE * num_launched))
    shares = np.zeros(num_items)
    shares[:num_late] = rng.uniform(LATE, LAST, num_late)
    shares[num_late:num_launched] = rng.uniform(launched_from, LATE, num_launched - num_late)
    return rng.permutation(shares)


def gaussian(num_rows: int, rng: np.random.Generator) -> Floats:
    """Gaussian vectors of expected squared length 1 (num_rows, D)."""
    return rng.normal(0.0, LATENT_DIM**-0.5, (num_rows, LATENT_DIM))


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def _ids(letter: str, count: int, digits: int) -> Strings:
    return np.strings.add(letter, np.strings.zfill(np.arange(count).astype(np.str_), digits))
