"""How hard an approximate index must look for a recall, measured on vectors that are hard.

Neither kind of vectors has clusters. The vectors of a trained model are easier, so that what is
planned here is more than enough; ``index=auto`` of the export measures them. For an inverted file a
larger corpus is easier: the same share of its cells finds more. For a graph it is harder: over 16
times as many items the beam had to grow with the power 0.4 of their number, and what is said of
more is that law continued.

Letters: N items, k items a query wants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# Share of the cells that are probed, and recall@100: 1,000,000 x 64, cosine, 1,024 cells.
RECALL_BY_SHARE: Final = (
    *((1 / 128, 0.445), (1 / 64, 0.623), (1 / 32, 0.790), (1 / 16, 0.911)),
    *((1 / 8, 0.973), (1 / 4, 0.990), (1 / 2, 0.999), (1.0, 1.0)),
)
# Beam of HNSW, and recall@100: a normal cloud whose i-th axis is i ** -0.5 long, cosine,
# 320,000 x 64, 32 links.
RECALL_BY_BEAM: Final = (
    *((128, 0.904), (192, 0.944), (256, 0.963), (384, 0.981)),
    *((512, 0.989), (768, 0.995), (1024, 0.997)),
)
MEASURED_ITEMS, MEASURED_K, GROWTH = 320_000, 100, 0.4


def share_for(recall: float) -> float:
    """Share of the cells of an inverted file that is probed for a recall.

    Example:
        >>> round(1 / share_for(0.95))
        10
    """
    return _effort(recall, RECALL_BY_SHARE)


def recall_of_share(share: float) -> float:
    """Recall of a share of the cells; the inverse of `share_for`."""
    return _recall(share, RECALL_BY_SHARE)


def beam_for(recall: float, num_items: int, k: int) -> int:
    """Beam of a graph search for a recall; at least k, at most all items.

    Args:
        recall: Share of the exact best k.
        num_items: N.
        k: Items a query wants.

    Example:
        >>> beam_for(0.963, 320_000, 100), beam_for(0.963, 10_000_000, 200)
        (256, 2029)
    """
    beam = math.ceil(round(_effort(recall, RECALL_BY_BEAM) * _harder(num_items, k), 6))
    return min(max(beam, k), num_items)


def recall_of_beam(beam: int, num_items: int, k: int) -> float:
    """Recall of a beam; the inverse of `beam_for`."""
    return _recall(beam / _harder(num_items, k), RECALL_BY_BEAM)


def _harder(num_items: int, k: int) -> float:
    """How much wider a beam must be than where it was measured."""
    growth = math.exp(GROWTH * math.log(num_items / MEASURED_ITEMS))
    return max(1.0, k / MEASURED_K) * growth


def _effort(recall: float, measured: Sequence[tuple[float, float]]) -> float:
    """Between two measured efforts in proportion of their logarithms; the largest beyond them."""
    low, least = measured[0]
    for high, most in measured:
        if recall <= most:
            share = (recall - least) / (most - least) if recall > least else 0.0
            return low * math.exp(share * math.log(high / low))
        low, least = high, most
    return low


def _recall(effort: float, measured: Sequence[tuple[float, float]]) -> float:
    low, least = measured[0]
    for high, most in measured:
        if effort <= high:
            share = math.log(effort / low) / math.log(high / low) if effort > low else 0.0
            return least + share * (most - least)
        low, least = high, most
    return least
