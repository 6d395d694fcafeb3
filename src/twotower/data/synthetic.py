"""The built-in world as a source of tables: users, items and a log of impressions with clicks.

The truth stands in `twotower.data.world`, the drawing of the log in `twotower.data.impressions`.
Here both are put into tables, with attributes that tell a part of the truth: what users say about
themselves follows their tastes, category, tags and image follow the place of an item, and its
price follows its quality.

Shapes: U users, N items, T topics, D latent dimensions.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.data.create_world import LATE, create_world, gaussian
from twotower.data.impressions import Log, draw_log, repeats
from twotower.data.schema import ITEM_ID, LABEL, TIMESTAMP, TITLE, USER_ID, Label, Tables
from twotower.data.world import (
    LATENT_DIM,
    NUM_TOPICS,
    Drift,
    Integers,
    Strings,
    World,
)

VERSION = 1
DEVICE_STREAM, USER_STREAM, ITEM_STREAM = range(20, 23)

POSITION = "position"
DEVICE = "device"

DEVICES = ("phone", "desktop", "tablet")
DEVICE_SHARES = (0.6, 0.3, 0.1)
USUAL_DEVICE = 0.8
INTEREST_TOLD, GROUP_TOLD, UNDISCLOSED = 0.95, 0.5, 0.05
IMAGE_NOISE = 0.3
AGE_GROUPS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
COUNTRIES = ("BR", "DE", "FR", "IN", "JP", "KE", "SE", "US")

TOPICS = (
    *("adventure", "astronomy", "baking", "comedy", "crime", "football"),
    *("gardening", "history", "jazz", "nature", "romance", "sailing"),
)
STYLES = (("slow", "fast"), ("dark", "light"))
EXTRAS = ("award", "classic", "family", "festival", "independent", "remake", "series", "short")
ADJECTIVES = (
    *("Amber", "Ancient", "Blue", "Broken", "Burning", "Clever", "Crimson", "Distant", "Early"),
    *("Empty", "Endless", "Fallen", "Golden", "Hidden", "Hollow", "Iron", "Last", "Lonely"),
    *("Lost", "Midnight", "Northern", "Pale", "Paper", "Quiet", "Restless", "Scarlet", "Second"),
    *("Secret", "Silent", "Silver", "Stolen", "Velvet"),
)
NOUNS = (
    *("Anchor", "Archive", "Bridge", "Castle", "Circle", "City", "Compass", "Country", "Crown"),
    *("Door", "Dream", "Empire", "Forest", "Garden", "Harbor", "Horizon", "House", "Island"),
    *("Journey", "Kingdom", "Lantern", "Letter", "Map", "Mirror", "Mountain", "Ocean", "Orchard"),
    *("River", "Road", "Shadow", "Station", "Winter"),
)


@dataclass(frozen=True, kw_only=True)
class SyntheticSource:
    """The built-in world behind the interface of a source.

    Args:
        num_users: Users; some may never come.
        num_items: Items, at least 12, one a topic, and at least twice the slate.
        num_days: Length of the period in days.
        slates_per_user: Mean number of sessions of a user; a session shows one slate.
        slate_size: Slots of a slate.
        seed: Decides everything that is drawn.
        drift: A change of tastes or popularity at one time, or None.
        launched_share: Share of the items that are not there from the beginning; a quarter of them
            come in the last tenth of the period.
        launched_from: Share of the period before which none of them comes; with 0.8 and a temporal
            split of the last two tenths they are cold: no training event is of them.
        name: Short name of the data set.
    """

    num_users: int
    num_items: int
    num_days: int
    slates_per_user: float
    slate_size: int
    seed: int
    drift: Drift | None = None
    launched_share: float = 0.12
    launched_from: float = 0.0
    name: str = "synthetic"

    def __post_init__(self) -> None:
        allowed = (
            ("num_users", self.num_users, 1),
            ("num_items", self.num_items, max(NUM_TOPICS, 2 * self.slate_size)),
            ("num_days", self.num_days, 1),
            ("slate_size", self.slate_size, 1),
            ("seed", self.seed, 0),
        )
        problems = [
            f"synthetic data: `{field}` must be at least {minimum}, got {value}"
            for field, value, minimum in allowed
            if value < minimum
        ]
        shares = (
            ("launched_share", self.launched_share, 1),
            ("launched_from", self.launched_from, LATE),
        )
        problems += [
            f"synthetic data: `{field}` must be at least 0 and below {below}, got {value}"
            for field, value, below in shares
            if not 0 <= value < below
        ]
        if not self.slates_per_user > 0:
            problems.append(
                f"synthetic data: `slates_per_user` must be above 0, got {self.slates_per_user}"
            )
        if problems:
            raise ValueError("\n".join(problems))

    @cached_property
    def world(self) -> World:
        """The truth behind the tables."""
        return create_world(
            num_users=self.num_users,
            num_items=self.num_items,
            num_days=self.num_days,
            slate_size=self.slate_size,
            seed=self.seed,
            drift=self.drift,
            launched_share=self.launched_share,
            launched_from=self.launched_from,
        )

    def fingerprint(self) -> str:
        """Digest of the settings and of the version of the generator."""
        settings = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()

    def read(self) -> Tables:
        """Draw the log and describe users and items."""
        log = draw_log(self.world, self.num_days, self.slates_per_user, self.seed)
        return Tables(
            interactions=_interaction_table(log, self.world, self.seed),
            users=_user_table(self.world, np.random.default_rng([self.seed, USER_STREAM])),
            items=_item_table(self.world, np.random.default_rng([self.seed, ITEM_STREAM])),
            label=Label(column="click", minimum=0.0, maximum=1.0, positive_from=1.0),
            context=(POSITION, DEVICE),
        )


def _interaction_table(log: Log, world: World, seed: int) -> pa.Table:
    rng = np.random.default_rng([seed, DEVICE_STREAM])
    num_sessions = int(log.sessions.max(initial=-1)) + 1
    usual = rng.choice(len(DEVICES), len(world.user_ids), p=DEVICE_SHARES)  # (U,)
    other = rng.choice(len(DEVICES), num_sessions, p=DEVICE_SHARES)  # (sessions,)
    is_usual = rng.random(num_sessions) < USUAL_DEVICE
    device = np.where(is_usual[log.sessions], usual[log.user_rows], other[log.sessions])
    return pa.table(
        {
            USER_ID: pa.array(world.user_ids).take(pa.array(log.user_rows)),
            ITEM_ID: pa.array(world.item_ids).take(pa.array(log.item_rows)),
            TIMESTAMP: pa.array(log.timestamps),
            LABEL: pa.array(log.clicks.astype(np.float32)),
            POSITION: pa.array(log.positions),
            DEVICE: pa.array(DEVICES).take(pa.array(device)),
        }
    )


def _user_table(world: World, rng: np.random.Generator) -> pa.Table:
    """Age group, country and declared interests, which follow the tastes before any drift."""
    shares = np.cumsum(world.users.topic_shares[0], axis=1)  # (U, T)
    count = len(shares)

    def noisy_topic(told: float) -> Integers:
        topic = (shares[:, :-1] <= rng.random((count, 1))).sum(axis=1)  # (U,)
        return np.where(rng.random(count) < told, topic, rng.integers(0, NUM_TOPICS, count))

    age, country = (noisy_topic(GROUP_TOLD) for _ in range(2))
    interests = np.stack([noisy_topic(INTEREST_TOLD) for _ in range(3)], axis=1)  # (U, 3)
    kept = ~repeats(interests) & (rng.random((count, 1)) >= UNDISCLOSED)
    return pa.table(
        {
            USER_ID: pa.array(world.user_ids),
            "age_group": pa.array(np.array(AGE_GROUPS)[age % len(AGE_GROUPS)]),
            "country": pa.array(np.array(COUNTRIES)[country % len(COUNTRIES)]),
            "interests": _lists(np.array(TOPICS)[interests], kept),
        }
    )


def _item_table(world: World, rng: np.random.Generator) -> pa.Table:
    """Title, category, tags that follow the latent place, price that follows quality, an image."""
    items = world.items
    count = len(items.topics)
    images = (items.vectors + IMAGE_NOISE * gaussian(count, rng)).astype(np.float32)  # (N, D)
    price = np.exp(2.3 + 0.4 * items.quality + 0.3 * rng.standard_normal(count))
    return pa.table(
        {
            ITEM_ID: pa.array(world.item_ids),
            TITLE: pa.array(_titles(count, rng)),
            "category": pa.array(np.array(TOPICS)[items.topics]),
            "tags": _tags(world, rng),
            "price": pa.array(np.round(price, 2)),
            "image_vector": pa.FixedSizeListArray.from_arrays(images.ravel(), LATENT_DIM),
        }
    )


def _titles(count: int, rng: np.random.Generator) -> Strings:
    """Titles (N,) such as `The Silver Harbor`, all different; numbered when names run out."""
    pairs = len(ADJECTIVES) * len(NOUNS)
    volume, pair = np.divmod(np.arange(count), pairs)
    pair = rng.permutation(pairs)[pair]
    adjective = np.strings.add("The ", np.array(ADJECTIVES)[pair % len(ADJECTIVES)])
    noun = np.strings.add(" ", np.array(NOUNS)[pair // len(ADJECTIVES)])
    suffix = np.where(volume > 0, np.strings.add(" ", (volume + 1).astype(np.str_)), "")
    return np.strings.add(np.strings.add(adjective, noun), suffix)


def _tags(world: World, rng: np.random.Generator) -> pa.ListArray:
    """Two tags by the item's place beside its topic centre, and a free one for every other item."""
    topics = world.items.topics
    sides = (world.items.vectors - world.centres[topics])[:, :2] > 0  # (N, 2)
    topic = np.strings.add(" ", np.array(TOPICS)[topics])
    styles = [
        np.strings.add(np.array(style)[sides[:, k].astype(np.int64)], topic)
        for k, style in enumerate(STYLES)
    ]
    free = np.array(EXTRAS)[rng.integers(0, len(EXTRAS), len(topics))]
    table = np.stack([*styles, free], axis=1)  # (N, 3)
    kept = np.ones(table.shape, dtype=np.bool_)
    kept[:, 2] = rng.random(len(topics)) < 0.5
    return _lists(table, kept)


def _lists(values: Strings, kept: NDArray[np.bool_]) -> pa.ListArray:
    """One list a row, of the values (R, W) that are kept (R, W)."""
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[kept]))
