"""Towers that go on from those of an earlier run: what they are held to and compared with."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import Tensor

from twotower.data.batches import Columns
from twotower.data.queries import Queries
from twotower.losses.alignment import Alignment, FrozenItems
from twotower.models.two_tower import TwoTower
from twotower.training.context import Context
from twotower.training.cross_version import OldVersion, Space, cross_version_recall, space_of
from twotower.training.evaluation import embed_queries
from twotower.training.retrieval import embed_catalogue
from twotower.training.retriever import Retriever

log = logging.getLogger(__name__)

ITEMS_A_PLACE = 10


@dataclass(frozen=True, kw_only=True)
class Warm:
    """What towers that go on from earlier ones are compared with.

    Args:
        alignment: Holds their vectors where they were.
        known: (C,) bool, items that the earlier run knew.
        before: The space of its vectors, None where it is not known.
    """

    alignment: Alignment
    known: Tensor
    before: Space | None


def old_version(
    context: Context, model: TwoTower, columns: Columns, queries: Queries, warm: Warm
) -> OldVersion:
    """The vectors that the towers give before they are trained: those of the earlier run.

    An item that is new stands in histories by its content.

    Args:
        context: Data and settings.
        model: The towers as they were carried over.
        columns: What they are given.
        queries: What recall is measured on.
        warm: About the earlier run.
    """
    model.to(columns.device)
    items = embed_catalogue(model, columns, context.prepared.num_catalogue)
    return OldVersion(
        items=FrozenItems(vectors=items, known=warm.known.to(items.device)),
        queries=embed_queries(model, columns, queries),
    )


def measured(
    context: Context, retriever: Retriever, queries: Queries, warm: Warm, old: OldVersion
) -> Space:
    """The space of towers that went on from others, by what old and new vectors find together.

    Args:
        context: Data and settings.
        retriever: The trained towers.
        queries: What recall is measured on.
        warm: About the earlier run.
        old: Its vectors.
    """
    # Of lists that hold a large part of the items everything is recalled.
    k = max(1, min(max(context.evaluation.ks), int(warm.known.sum()) // ITEMS_A_PLACE))
    recall = cross_version_recall(
        old,
        items=retriever.items,
        vectors=embed_queries(retriever.model, retriever.columns, queries),
        queries=queries,
        k=k,
        remove_seen=context.evaluation.remove_seen,
    )
    space = space_of(retriever.model, warm.before, recall, k)
    log.info(
        "retrieval: recall@%d across versions: %s; vectors may %sbe compared with the old ones",
        *(k, ", ".join(f"{pair} {value:.4f}" for pair, value in recall.items())),
        "" if space.inherited else "not ",
    )
    return space
