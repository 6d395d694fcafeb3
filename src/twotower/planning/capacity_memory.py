"""How many bytes: tables and optimiser, columns, a step, the prepared data set, the store.

Every formula is a count of what the code keeps, and stands beside a run of two sizes in
``tests/unit/planning/test_capacity_memory.py``. Models are those of the default configs on a log
with ids and times alone; a further feature of an item adds its own bytes an item to tables, columns
and disk.

Letters: U users, N items, R interactions, E positives among them, L events of a history, B batch,
e width of a table, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# Bytes of a number in a table; `trainer.table_precision` of training.
PRECISIONS: Final = {"float32": 4, "bfloat16": 2}
# Accumulators of a row, by optimiser of the tables: one number, or two of the table's own shape.
OPTIMIZERS: Final = ("rowwise_adagrad", "lazy_adam")

FLOAT: Final = 4
NPY_HEADER: Final = 128
# Peak of preparing: blocks and buckets in work, however long the log; measured with integer ids at
# 20M and 100M interactions, 0.61 and 0.75 GiB with the libraries (benchmarks/speed/prepare.py).
PREPARING_BYTES, PREPARING_BYTES_EACH = 600 * 2**20, 2
# Copies of an embedded row where gradients of tables are made; of a layer's output before that.
ROW_COPIES, DENSE_COPIES = 3.8, 1.3


def table_bytes(num_values: int, width: int, precision: str) -> int:
    """Bytes of an embedding table; row 0 is for what was never seen.

    Args:
        num_values: Users or items.
        width: Width of a row.
        precision: One of `PRECISIONS`.

    Example:
        >>> table_bytes(999, 64, "float32")
        256000
    """
    return (num_values + 1) * width * PRECISIONS[precision]


def optimizer_bytes(num_values: int, width: int, optimizer: str) -> int:
    """Bytes that the optimiser of a table keeps, float32 whatever the table is.

    Row-wise Adagrad has one float32 a row (Mudigere et al. 2022, "Software-Hardware Co-design
    for Fast and Scalable Training of Deep Learning Recommendation Models"), Adam two
    tables of moments (Kingma and Ba 2015).

    Args:
        num_values: Users or items.
        width: Width of a row.
        optimizer: One of `OPTIMIZERS`.

    Example:
        >>> optimizer_bytes(999, 64, "rowwise_adagrad")
        4000
    """
    if optimizer == "rowwise_adagrad":
        return (num_values + 1) * FLOAT
    return 2 * table_bytes(num_values, width, "float32")


def checkpoint_bytes(tables: int, optimizer: int) -> int:
    """Bytes of a stage's two checkpoints: the best weights; the last with the optimiser's state.

    Args:
        tables: Bytes of the tables.
        optimizer: Bytes of their optimiser.
    """
    return 2 * tables + optimizer


def column_bytes(num_users: int, num_items: int, num_interactions: int, num_events: int) -> int:
    """Bytes of the columns that live where a model is trained.

    `twotower.data.batches.Columns`: the item of every event (int32), beginning and end of the
    training events of a user (int64), the id rows of users and items (int32), and the time of every
    interaction as four float32.

    Args:
        num_users: U.
        num_items: N.
        num_interactions: R.
        num_events: E.
    """
    return 4 * num_events + (8 + 8 + 4) * num_users + 8 + 4 * num_items + 16 * num_interactions


def step_bytes(
    batch: int,
    history: int,
    width: int,
    *,
    dense: Sequence[int],
    hidden: Sequence[int],
    weights: int,
) -> int:
    """Bytes that a training step takes at its peak, beside tables and columns.

    Either at the end, when the gradient of the embedded rows is sorted, or between forward and
    backward pass, when the rows, what every layer gave, and what a ReLU and a dropout keep are all
    there. Every dense weight has a gradient and AdamW's two moments.

    Args:
        batch: B.
        history: L.
        width: e.
        dense: Widths of everything that a layer reads or gives, for one example.
        hidden: Widths of the hidden layers.
        weights: Number of dense weights.
    """
    rows = (history + 2) * width
    peak = max(ROW_COPIES * rows, rows + DENSE_COPIES * sum(dense) + sum(hidden))
    return round(FLOAT * (batch * peak + 3 * weights))


def prepared_bytes(
    *,
    num_interactions: int,
    num_events: int,
    num_users: int,
    num_items: int,
    user_bytes: int = 20,
    item_bytes: int = 20,
    context_bytes: int = 16,
) -> int:
    """Bytes on disk of a prepared data set; see `twotower.data.prepared`.

    An interaction is its row in the table, end of history and time (8 each), user, item, label and
    weight (4 each), part and success (1 each); a positive is its item, its interaction and its
    part; a user also has an offset.

    Args:
        num_interactions: R.
        num_events: E.
        num_users: U.
        num_items: N.
        user_bytes: Of a user: the id in the table and in the fitted vocabulary (8 each, if it is a
            number) and its row (4), and what else is known.
        item_bytes: The same of an item.
        context_bytes: Encoded context of an interaction; the time is four float32.
    """
    interactions = (3 * 8 + 4 * 4 + 2 * 1 + context_bytes) * num_interactions
    events = (4 + 8 + 1) * num_events
    return interactions + events + (8 + user_bytes) * num_users + item_bytes * num_items


def preparing_bytes(num_interactions: int) -> int:
    """Memory that `twotower prepare` takes at most, beside the libraries.

    Args:
        num_interactions: R.
    """
    return PREPARING_BYTES + PREPARING_BYTES_EACH * num_interactions


def vector_bytes(num_items: int, dim: int) -> int:
    """Bytes of ``item_vectors.npy`` in a bundle: float32 and a header.

    Args:
        num_items: N.
        dim: D.
    """
    return NPY_HEADER + FLOAT * num_items * dim


def store_bytes(num_users: int, num_stored: int) -> int:
    """Bytes of a key-value store with a list of items for every user.

    A value is an item id of 8 bytes and a score of 4 for each item, after a header of 16; a key is
    8 bytes. LMDB (its ``mdb.c``) adds a node header of 8 and an index entry of 2; pages of 4,096
    bytes that are filled in key order hold as many such nodes as fit after 16 bytes, and a value
    that is larger than half a page has pages of its own.

    Args:
        num_users: U.
        num_stored: Items of a list.
    """
    node = 8 + 2 + 8 + 16 + 12 * num_stored
    page, room = 4096, 4096 - 16
    if node > room // 2:  # on pages of its own, behind a node that points there
        pages = -(-(16 + 16 + 12 * num_stored) // page)
        return num_users * (pages * page + 8 + 2 + 8 + 8)
    return -(-num_users // (room // node)) * page
