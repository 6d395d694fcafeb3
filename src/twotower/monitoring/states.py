"""Whether a value is known, null, or was not seen in training.

Shape letters: R rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import TABLE_KINDS, Feature
from twotower.features.transforms import Categorical, Tags, as_lists
from twotower.features.vocabulary import Vocabulary, as_key

Array = npt.NDArray[Any]
States = npt.NDArray[np.int8]

KNOWN, NULL, UNSEEN, ABSENT = range(4)  # absent: of a user or item that the bundle does not know


def states(feature: Feature, encoded: Array, raw: pa.ChunkedArray | None) -> States:
    """State of every row (R,).

    Tags are unseen where one of them is.

    Args:
        feature: Which feature.
        encoded: (R, ...) its encoded values.
        raw: The same rows as they came; None where only the encoded values are kept, and then what
            is unseen counts as null.
    """
    if feature.kind == "numeric":
        missing = encoded[:, 1] != 0
    elif feature.kind in ("vector", "time", "tags"):
        missing = ~np.any(encoded, axis=1)
    else:
        missing = encoded == 0
    found = np.where(missing, NULL, KNOWN).astype(np.int8)
    if raw is None or feature.kind not in TABLE_KINDS:
        return found
    if feature.kind == "tags":
        return found  # told apart by `unseen_tags`, which needs the vocabulary
    given = as_key(raw).is_valid().to_numpy(zero_copy_only=False)
    found[missing & given] = UNSEEN
    return found


def unseen_values(
    pipeline: FeaturePipeline, feature: Feature, raw: pa.ChunkedArray, found: States
) -> pa.Array:
    """The values that training did not see, as text; `found` is set to unseen where tags are.

    Args:
        pipeline: The fitted features.
        feature: One with a vocabulary.
        raw: (R,) values as they came.
        found: (R,) states of the rows.
    """
    transform = pipeline.transforms[feature.name]
    if isinstance(transform, Tags):
        lists = as_lists(raw, transform.separator)
        owners = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        tags = pc.list_flatten(lists)
        unseen = _unseen_keys(transform.vocabulary, tags)
        found[owners[unseen]] = UNSEEN
        return tags.filter(pa.array(unseen)).cast(pa.string())
    if isinstance(transform, Categorical):
        values = raw.filter(pa.array(found == UNSEEN))
        return as_key(values).cast(pa.string())
    return pa.array([], pa.string())


def _unseen_keys(vocabulary: Vocabulary, values: pa.Array) -> npt.NDArray[np.bool_]:
    keys = as_key(values)
    given = keys.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_string(keys.type):
        given &= pc.fill_null(pc.not_equal(keys, ""), False).to_numpy(zero_copy_only=False)
    return np.asarray(given & (vocabulary.rows(values) == 0))
