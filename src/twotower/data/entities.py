"""Users and items in their final order, and which items may be recommended.

Shape letters: N items, C items that may be recommended.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data.raw_table import NUM_EXAMPLES
from twotower.data.schema import ITEM_ID
from twotower.data.spill import Log

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Catalogue = Literal["all", "interacted"]


def recommendable(
    which: Catalogue, interactions: Log, in_training: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """(N,) bool: items that may be recommended.

    With ``interacted`` these are all items of the log; with ``all``, those of the items table and
    of the training rows: an item known only from held-out rows is not known to the model either.

    Args:
        which: The choice.
        interactions: The log.
        in_training: (N,) items of the training rows.
    """
    allowed = in_training.copy()
    if which == "interacted":
        for block in range(len(interactions.lengths)):
            allowed[interactions.entity_rows(block, ITEM_ID)] = True
    elif interactions.tables.items is not None:
        allowed[: interactions.tables.items.num_rows] = True
    return allowed


def catalogue_first(allowed: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Renumber items so that those that may be recommended are rows 0 to C - 1.

    Returns:
        (N,) the items in their new order, and (N,) int32 new row of every item.
    """
    order = np.argsort(~allowed, kind="stable")
    renumbered = np.empty(len(order), np.int32)
    renumbered[order] = np.arange(len(order))
    return order, renumbered


def align(key: str, ids: pa.Array | None, side: pa.Table | None) -> pa.Table | None:
    """One row an entity: the side table's row, or nulls and one warning where it has none."""
    if ids is None:
        return None
    if side is None:
        return pa.table({key: ids})
    rows = pc.index_in(ids, value_set=side.column(key).combine_chunks())
    missing = ids.filter(pc.is_null(rows))
    if len(missing):
        first = ", ".join(map(str, missing[:NUM_EXAMPLES].to_pylist()))
        log.warning(
            "%d of the %d values of `%s` are in the interactions alone, not in the table that "
            "describes them; they are kept and their features count as missing. First: %s",
            *(len(missing), len(ids), key, first),
        )
    aligned = side.take(rows)
    others = [name for name in side.column_names if name != key]
    return pa.table({key: ids} | {name: aligned.column(name).combine_chunks() for name in others})
