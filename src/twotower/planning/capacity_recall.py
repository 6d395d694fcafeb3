"""How hard an approximate index must look for a recall, as it was measured on vectors that are hard.

Inverted files on a million vectors without clusters, graphs on 80,000 without any structure. The
vectors of a trained model are easier, so that what is planned here is enough; ``index=auto`` of the
export measures them. A larger corpus needs a smaller share of its cells and a wider beam.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# Share of the cells that are probed, and recall@100: 1,000,000 x 64, cosine.
RECALL_BY_SHARE: Final = (
    *((1 / 128, 0.445), (1 / 64, 0.623), (1 / 32, 0.790), (1 / 16, 0.911)),
    *((1 / 8, 0.973), (1 / 4, 0.990), (1 / 2, 0.999), (1.0, 1.0)),
)
# Beam over k, and recall@100 of a graph with 32 links: 80,000 x 64, even on the sphere.
RECALL_BY_BEAM: Final = ((1.28, 0.799), (2.56, 0.937), (5.12, 0.990), (10.24, 0.999))


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


def beam_for(recall: float) -> float:
    """Beam of a graph search for a recall, over the number of wanted items."""
    return _effort(recall, RECALL_BY_BEAM)


def recall_of_beam(beam: float) -> float:
    """Recall of a beam over the number of wanted items; the inverse of `beam_for`."""
    return _recall(beam, RECALL_BY_BEAM)


def _effort(recall: float, measured: Sequence[tuple[float, float]]) -> float:
    """Between two measured efforts in proportion of their logarithms; the largest beyond them."""
    low, least = measured[0]
    for high, most in measured:
        if recall <= most:
            share = (recall - least) / (most - least) if recall > least else 0.0
            return low * (high / low) ** share
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
