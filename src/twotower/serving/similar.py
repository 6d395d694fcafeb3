"""Items that are like an item, or like a picture or text: the nearest item vectors of a bundle.

An item asks with its own vector. What is no item yet asks with a content vector, such as
`twotower embed` makes: the item tower turns it into an item vector as it does for an item that is
new, of which nothing but this is known. Nearest is by the similarity that the towers were trained
with.

Shape letters: D width of a content vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.item_lists import ItemLists
from twotower.index.base import NO_ITEM, SearchResult, check_k
from twotower.serving.filters import search_filtered
from twotower.serving.ids import ItemId
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Filter, Recommendation

Array = npt.NDArray[Any]


def similar_to_item(
    recommender: Recommender, item: ItemId, *, k: int, filters: Sequence[Filter] = ()
) -> list[Recommendation]:
    """The items most like an item, without the item itself.

    Args:
        recommender: Of the bundle.
        item: External id.
        k: How many items.
        filters: All of them must let an item pass.

    Raises:
        ValueError: When the bundle does not know the item or what a filter asks for, or `k` is
            below 1.
    """
    check_k(k)
    items = recommender.items
    rows = items.find([item])
    (row,) = rows
    if row < 0:
        some = ", ".join(map(str, items.ids[:3].to_pylist()))
        raise ValueError(f"unknown item {item!r}; known are {len(items)} items such as {some}")
    itself = ItemLists(offsets=np.array([0, 1]), item_rows=rows)
    allowed = [items.allowed(filters)]
    found = search_filtered(recommender.index, items.vectors[rows], k, itself, allowed)
    return _describe(recommender, found, f"like {recommender.title(int(row))}")


def similar_to_vector(
    recommender: Recommender,
    vector: Array,
    *,
    k: int,
    feature: str | None = None,
    filters: Sequence[Filter] = (),
) -> list[Recommendation]:
    """The items most like something new of which a content vector is known.

    Args:
        recommender: Of the bundle.
        vector: (D,) content vector; its length does not matter.
        k: How many items.
        feature: Which ``vector`` feature of the items it is; None where there is just one.
        filters: All of them must let an item pass.

    Raises:
        ValueError: When the towers do not look at such a feature, the vector is not of its width
            or not finite, the bundle does not know what a filter asks for, or `k` is below 1.
    """
    check_k(k)
    pipeline = recommender.bundle.pipeline
    known = {f.name: f for f in pipeline.inputs("retrieval").of("item") if f.kind == "vector"}
    allowed = ", ".join(known) or "none, it was trained without vectors"
    name = next(iter(known)) if feature is None and len(known) == 1 else feature
    if name not in known:
        raise ValueError(
            f"vector_feature: got {'null' if feature is None else feature}; vector features of the "
            f"items in this bundle: {allowed}"
        )
    width = known[name].width
    if vector.shape != (width,) or not np.issubdtype(vector.dtype, np.floating):
        raise ValueError(
            f"a vector of `{name}` must be {width} floating point numbers, got {vector.dtype} of "
            f"shape {vector.shape}"
        )
    if not np.isfinite(vector).all() or not vector.any():
        raise ValueError(f"a vector of `{name}` must be finite and not all zeros")
    column = next(f.source_column for f in pipeline.spec.features if f.name == name)
    encoded = pipeline.encode("item", pa.table({column: [vector.astype(np.float32)]}))
    query = np.asarray(recommender.item_tower.run(encoded), np.float32)  # (1, width of an item's)
    among = [recommender.items.allowed(filters)]
    found = search_filtered(recommender.index, query, k, None, among)
    return _describe(recommender, found, "like the vector")


def read_vector(path: Path) -> Array:
    """One vector (D,) out of a ``.npy`` file, of shape (D,) or (1, D).

    Raises:
        ValueError: When the file holds anything else.
        FileNotFoundError: When there is no such file.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # whatever NumPy, zip and the parser of a header make of it
        raise ValueError(
            f"{path}: no array of numbers in NumPy's format; np.save writes one"
        ) from error
    if not isinstance(array, np.ndarray) or array.size != max(array.shape, default=0):
        shape = getattr(array, "shape", "several arrays")
        raise ValueError(f"{path}: must hold one vector, of shape (D,) or (1, D), got {shape}")
    return array.reshape(-1)


def _describe(recommender: Recommender, found: SearchResult, what: str) -> list[Recommendation]:
    return [
        Recommendation(
            item_id=recommender.items.ids[int(row)].as_py(),
            title=recommender.title(int(row)),
            probability=None,
            retrieval_score=float(score),
            retrieval_rank=place,
            reason=what,
        )
        for place, (row, score) in enumerate(zip(found.rows[0], found.scores[0], strict=True), 1)
        if row != NO_ITEM
    ]
