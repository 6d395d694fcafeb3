"""Two versions of a bundle over the users and items that both know.

Shape letters: n items of both, U users of both, D width of the vectors, k length of a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.item_lists import ItemLists
from twotower.export.bundle import Bundle
from twotower.metrics.top_k import Relevant
from twotower.monitoring.scoring import UNKNOWN, BundleModels, WindowRows
from twotower.serving.queries import Columns, encode_context
from twotower.serving.recommender import Recommender

Integers = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

BLOCK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Lists:
    """What a version recommends.

    Args:
        rows: (U, k) rows of its own catalogue, padded with -1.
        scores: (U, k) probabilities of the ranker, or scores of the retrieval without one.
        num_items: Size of the catalogue.
    """

    rows: Integers
    scores: Vectors
    num_items: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Version:
    """One of the versions.

    Args:
        models: The bundle.
        user_rows: (U,) its rows of the users of both.
        item_rows: (n,) its rows of the items of both.
        users: (U, D) vectors of the users.
        items: (n, D) vectors of the items.
    """

    models: BundleModels
    user_rows: Integers
    item_rows: Integers
    users: Vectors
    items: Vectors

    def lists(self, k: int, seconds: int) -> Lists:
        """What the users are recommended.

        Args:
            k: Length of the lists.
            seconds: When they ask, seconds since 1970.
        """
        recommender = _recommender(self.models)
        found, scores = [], []
        for start in range(0, len(self.user_rows), BLOCK):
            rows = self.user_rows[start : start + BLOCK]
            queries = _queries(self.models, rows, seconds)
            ranked = recommender.rank(queries, k, _seen(self.models.bundle, rows))
            values = ranked.probabilities
            values = ranked.candidates.scores if values is None else values
            found.append(ranked.rows)
            scores.append(np.take_along_axis(values, ranked.places, axis=1))
        return Lists(
            rows=np.concatenate(found),
            scores=np.concatenate(scores),
            num_items=len(recommender.items),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class VersionPair:
    """Both versions.

    Args:
        old: The version before.
        new: The version that is served.
        seen: What each of the U users has taken, as far as the new version knows and removes it,
            as places among the n items.
        truth: What each has taken since, or None where that is not known.
        seconds: When users ask, seconds since 1970.
    """

    old: Version
    new: Version
    seen: ItemLists
    truth: Relevant | None
    seconds: int

    @staticmethod
    def of(
        old: BundleModels,
        new: BundleModels,
        *,
        num_users: int,
        seed: int,
        taken: WindowRows | None = None,
    ) -> VersionPair:
        """Find what both know.

        Args:
            old: The version before.
            new: The version that is served.
            num_users: So many users at most.
            seed: Decides which.
            taken: Rows of a window, as the new version knows them: what users took is the truth,
                and only users who took something are looked at.

        Raises:
            ValueError: When a version has no retrieval stage, or they have no user or item in
                common.
        """
        items = _both(old.bundle, new.bundle, "items")
        users = _both(old.bundle, new.bundle, "users")
        if taken is not None:
            chosen = np.flatnonzero(np.isin(users[1], taken.user_rows[taken.taken]))
            users = (users[0][chosen], users[1][chosen])
        if not len(users[0]) or not len(items[0]):
            raise ValueError(
                f"{old.bundle.folder} and {new.bundle.folder}: {len(users[0])} users and "
                f"{len(items[0])} items in common; at least one of each is needed"
            )
        kept = np.sort(np.random.default_rng(seed).permutation(len(users[0]))[:num_users])
        users = (users[0][kept], users[1][kept])
        seconds = max(old.last_event, new.last_event) + 1
        seen = _seen(new.bundle, users[1])
        if seen is None:
            seen = ItemLists(
                offsets=np.zeros(len(kept) + 1, np.int64), item_rows=np.zeros(0, np.int64)
            )
        places = np.full(len(new.item_counts), UNKNOWN)
        places[items[1]] = np.arange(len(items[1]))
        seen = ItemLists(offsets=seen.offsets, item_rows=places[seen.item_rows])
        seen = seen.where(seen.item_rows != UNKNOWN)
        return VersionPair(
            old=_version(old, users[0], items[0], seconds),
            new=_version(new, users[1], items[1], seconds),
            seen=seen,
            truth=None if taken is None else _truth(taken, users[1], places, seen),
            seconds=seconds,
        )


def _version(models: BundleModels, users: Integers, items: Integers, seconds: int) -> Version:
    recommender = _recommender(models)
    vectors = [
        recommender.embed(_queries(models, users[start : start + BLOCK], seconds))
        for start in range(0, len(users), BLOCK)
    ]
    return Version(
        models=models,
        user_rows=users,
        item_rows=items,
        users=np.concatenate(vectors),
        items=np.asarray(models.bundle.item_vectors)[items],
    )


def _queries(models: BundleModels, rows: Integers, seconds: int) -> Columns:
    context = encode_context(models.bundle.pipeline, {}, seconds=seconds)
    queries = {name: np.repeat(column, len(rows), 0) for name, column in context.items()}
    return queries | models.user_columns(rows, np.full(len(rows), seconds, np.int64))


def _seen(bundle: Bundle, rows: Integers) -> ItemLists | None:
    if not bundle.manifest.remove_seen or bundle.offsets is None or bundle.item_rows is None:
        return None
    return ItemLists.cut(bundle.item_rows, bundle.offsets[rows], bundle.offsets[rows + 1])


def _truth(rows: WindowRows, users: Integers, places: Integers, seen: ItemLists) -> Relevant:
    """What users (U,) took that both versions know and the user had not taken before."""
    chosen = np.flatnonzero(rows.taken & np.isin(rows.user_rows, users) & (rows.item_rows >= 0))
    query = np.searchsorted(users, rows.user_rows[chosen])
    items = places[rows.item_rows[chosen]]
    known = items != UNKNOWN
    query, items = query[known], items[known]
    span = len(places) + 1
    new = ~np.isin(query * span + items, seen.query_index * span + seen.item_rows)
    return Relevant.from_pairs(query[new], items[new], len(users))


def _both(old: Bundle, new: Bundle, kind: str) -> tuple[Integers, Integers]:
    """Rows (n,) in each of what both have, in the order of the new one."""
    tables: list[Any] = [getattr(bundle, kind) for bundle in (old, new)]
    if any(table is None for table in tables):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ids = [table.ids for table in tables]
    if ids[0].type != ids[1].type:
        ids = [one.cast(pa.string()) for one in ids]
    found = np.asarray(pc.fill_null(pc.index_in(ids[1], value_set=ids[0]), UNKNOWN), np.int64)
    rows = np.flatnonzero(found != UNKNOWN)
    return found[rows], rows


def _recommender(models: BundleModels) -> Recommender:
    if models.recommender is None:
        raise ValueError(
            f"{models.bundle.folder}: holds no retrieval stage, so its vectors cannot be compared"
        )
    return models.recommender
