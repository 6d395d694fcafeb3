"""External ids to rows of a bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

ItemId = int | str

MAX_INT64 = 2**63 - 1
WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")


def find_rows(ids: pa.Array, wanted: Sequence[ItemId]) -> npt.NDArray[np.int64]:
    """Rows of external ids, -1 where unknown; an id given as text finds a number and vice versa."""
    texts = [str(item) for item in wanted]
    keys = [_whole(text) for text in texts] if pa.types.is_integer(ids.type) else texts
    found = pc.index_in(pa.array(keys, ids.type), value_set=ids)
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)


def _whole(text: str) -> int | None:
    """The 64-bit integer that is spelled out, or None."""
    number = int(text) if WHOLE_NUMBER.fullmatch(text) else MAX_INT64 + 1
    return number if -MAX_INT64 <= number <= MAX_INT64 else None
