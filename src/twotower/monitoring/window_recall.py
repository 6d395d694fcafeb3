"""Recall of a bundle on a window: does today's bundle find what users took yesterday.

Every user who took something in the window asks once, at the start of the window, with the events
that the bundle knows of until then: the whole path of a request, query tower, index, ranker. What
the user had taken before is neither shown nor a right answer where the bundle removes it; an item
that the bundle does not know is a right answer that cannot be found, and counts as missed. Users
whom the bundle does not know are shown its popular items.

Shape letters: Q users who ask, K length of the lists, E right answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.item_lists import ItemLists
from twotower.data.schema import ITEM_ID
from twotower.index.base import NO_ITEM
from twotower.metrics.top_k import Relevant, top_k_metrics
from twotower.monitoring.estimates import Clusters, Estimate, mean
from twotower.monitoring.scoring import UNKNOWN, BundleModels, WindowRows, find_ids
from twotower.monitoring.slices import ALL, item_slices
from twotower.monitoring.windows import Window
from twotower.serving.queries import encode_context
from twotower.serving.recommender import Recommender

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

BLOCK = 2048
ODD = np.uint64(0x9E3779B97F4A7C15)  # of a multiplicative hash, 2^64 over the golden ratio


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What the users of a window were shown.

    Args:
        keys: (Q,) keys of the users.
        user_rows: (Q,) users, -1 where unknown.
        final: (Q, k) item rows of the lists, padded with -1.
        candidates: (Q, K) what the index found; of unknown users their list.
        truth: The right answers; an item that the bundle does not know has a row beyond its items.
    """

    keys: Integers
    user_rows: Integers
    final: Integers
    candidates: Integers
    truth: Relevant


def window_recall(
    models: BundleModels, window: Window, rows: WindowRows, *, k: int, max_users: int
) -> Iterator[tuple[str, str, Estimate]]:
    """Recall of the lists and of the candidates on a window, with slices.

    Args:
        models: The bundle; without a retrieval stage there is nothing to recall.
        window: The window.
        rows: Its rows.
        k: Length of the lists.
        max_users: So many users ask, the same ones in every window where they are there.

    Yields:
        Slice, statistic and estimate, every user counting once.
    """
    if models.recommender is None or not rows.taken.any():
        return
    asked = _ask(models.recommender, models, window, rows, k, max_users)
    truth = asked.truth
    catalogue = len(models.recommender.items)
    unknown = np.where(truth.item_rows < catalogue, truth.item_rows, UNKNOWN)
    masks = [(ALL, np.ones(len(unknown), np.bool_)), *item_slices(models, unknown)]
    is_new = asked.user_rows[truth.query_index] == UNKNOWN
    masks += [("users=new", is_new), ("users=warm", ~is_new)]
    for name, mask in masks:
        if not mask.any() or (mask.all() and name != ALL):
            continue
        relevant = Relevant.of(truth.where(mask))
        for statistic, ranked in (
            (f"recall@{k}", asked.final),
            (f"candidate_recall@{asked.candidates.shape[1]}", asked.candidates),
        ):
            width = ranked.shape[1]
            values = top_k_metrics(ranked, relevant, [width])[f"recall@{width}"]
            counted = ~np.isnan(values)
            yield name, statistic, mean(values[counted], Clusters.of(asked.keys[counted]))


def _ask(
    recommender: Recommender,
    models: BundleModels,
    window: Window,
    rows: WindowRows,
    k: int,
    max_users: int,
) -> Asked:
    taken = _of_some_users(rows, np.flatnonzero(rows.taken), max_users)
    codes = rows.clusters.codes[taken]
    users, first, query = np.unique(codes, return_index=True, return_inverse=True)
    user_rows = rows.user_rows[taken][first]
    answers = _answers(window, rows, taken, len(recommender.items))
    seconds = np.full(len(users), window.start, np.int64)
    bundle = models.bundle
    starts, ends = models.histories(user_rows, seconds)
    removes = bundle.manifest.remove_seen and bundle.item_rows is not None
    seen = ItemLists(offsets=np.zeros(len(users) + 1, np.int64), item_rows=np.zeros(0, np.int64))
    if removes and bundle.item_rows is not None:
        seen = ItemLists.cut(bundle.item_rows, starts, ends)
    truth = Relevant.from_pairs(*_unseen(query, answers, seen), len(users))
    num_candidates = max(k, recommender.num_candidates)
    final = np.full((len(users), k), NO_ITEM, np.int64)
    candidates = np.full((len(users), num_candidates), NO_ITEM, np.int64)
    known = np.flatnonzero(user_rows != UNKNOWN)
    context = encode_context(bundle.pipeline, {}, seconds=window.start)
    for start in range(0, len(known), BLOCK):
        block = known[start : start + BLOCK]
        queries = {name: np.repeat(column, len(block), 0) for name, column in context.items()}
        queries |= models.user_columns(user_rows[block], seconds[block])
        ranked = recommender.rank(queries, k, seen.take(block) if removes else None)
        final[block] = ranked.rows
        candidates[block] = ranked.candidates.rows
    if bundle.popular is not None:
        strangers = np.flatnonzero(user_rows == UNKNOWN)
        for lists in (final, candidates):
            shown = np.asarray(bundle.popular[: lists.shape[1]])
            lists[strangers[:, None], np.arange(len(shown))] = shown
    return Asked(
        keys=rows.clusters.keys[users],
        user_rows=user_rows,
        final=final,
        candidates=candidates,
        truth=truth,
    )


def _of_some_users(rows: WindowRows, taken: Integers, max_users: int) -> Integers:
    """Those of the rows that are of at most so many users, chosen by a hash of their keys."""
    codes = rows.clusters.codes[taken]
    users = np.unique(codes)
    if len(users) <= max_users:
        return taken
    hashes = rows.clusters.keys[users].astype(np.uint64) * ODD
    chosen = users[np.argsort(hashes, kind="stable")[:max_users]]
    return taken[np.isin(codes, chosen)]


def _answers(window: Window, rows: WindowRows, taken: Integers, num_items: int) -> Integers:
    """Item rows (E,) of what was taken; unknown items are numbered from the catalogue's end on."""
    known = rows.item_rows[taken]
    table = window.interactions.select([ITEM_ID]).take(pa.array(taken))
    keys = find_ids(table, ITEM_ID, None)[1]  # below -1, one an id
    return np.where(known == UNKNOWN, num_items - 2 - keys, known)


def _unseen(query: Integers, items: Integers, seen: ItemLists) -> tuple[Integers, Integers]:
    """Pairs (E,) of query and item without those in the lists of seen items."""
    span = int(max(items.max(initial=0), seen.item_rows.max(initial=0))) + 1
    kept = ~np.isin(query * span + items, seen.query_index * span + seen.item_rows)
    return query[kept], items[kept]
