"""Which pairs of features a cross network multiplies: its weights, block by block.

A full-rank layer adds x_0 * (W x_l + b), so the block W_ij of the rows of feature i and the columns
of feature j is what the product of the two is weighed with; in the first layer x_l is x_0, and the
products are those of pairs. Wang et al. 2021, "DCN V2", figure 6, show the Frobenius norm of every
block; here it is the root mean square, so that wide features do not look strong for being wide.

Shapes: W width of the input, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from twotower.models.cross import CrossNetwork, FullRankCross, LowRankCross
from twotower.models.dcn import DCNv2

HISTORY, SCORE, RANK = "history", "retrieval score", "retrieval rank"


def feature_blocks(model: DCNv2) -> dict[str, slice]:
    """Where each feature stands in the input of the ranker's body, in order.

    Args:
        model: The ranker.

    Returns:
        Columns of the ``(B, W)`` input, by name: those of user and context, those of the item, the
        encoded history, and what the retrieval says.
    """
    widths: dict[str, int] = {}
    for embedder in (model.query_embedder, model.item_embedder):
        widths |= {feature.name: embedder.width_of([feature.name]) for feature in embedder.features}
    if model.history_names:
        widths[HISTORY] = model.history.width
    if model.score_scale is not None:
        widths[SCORE] = 1
    if model.rank_scale is not None:
        widths[RANK] = 1
    blocks, start = {}, 0
    for name, width in widths.items():
        blocks[name] = slice(start, start + width)
        start += width
    return blocks


@torch.no_grad()
def interaction_strengths(
    cross: CrossNetwork, blocks: Mapping[str, slice], *, layer: int = 0
) -> Tensor:
    """How strongly a cross layer weighs the products of every pair of features.

    Args:
        cross: Cross network for inputs of width W.
        blocks: Columns of every feature, by name.
        layer: Which layer, from 0.

    Returns:
        ``(F, F)``: the root mean square of block W_ij over that of all W, so that 1 is as strong as
        the mean; row i is the feature that is multiplied, column j the one that is looked at.

    Raises:
        ValueError: When the layer has no such matrix: that of a mixture of experts is another one
            for every row.
    """
    chosen = cross.layers[layer]
    if isinstance(chosen, FullRankCross):
        weight = chosen.weight.detach()
    elif isinstance(chosen, LowRankCross):
        weight = chosen.u @ chosen.v.T  # (W, W)
    else:
        raise ValueError(
            f"layer {layer} is a {type(chosen).__name__}, whose weights depend on the row; "
            "allowed: layers of full rank and of low rank"
        )
    squares = weight.float().square()
    rows = [squares[block] for block in blocks.values()]
    means = [[part[:, block].mean() for block in blocks.values()] for part in rows]
    return (torch.tensor(means) / squares.mean()).sqrt()
