"""The catalogue through the item tower, block by block.

Shapes: C items of the catalogue, D width of the vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from twotower.data.batches import Columns
from twotower.models.two_tower import TwoTower

BLOCK = 8192


@torch.no_grad()
def item_vectors(
    model: TwoTower, columns: Columns, num_items: int, *, progress: bool = False
) -> npt.NDArray[np.float32]:
    """Vectors of the items 0 to `num_items` - 1.

    Args:
        model: The towers, in evaluation mode.
        columns: Features of the retrieval stage, on the model's device.
        num_items: Number of items, C.
        progress: Whether to show a progress bar.

    Returns:
        (C, D) float32.
    """
    vectors: npt.NDArray[np.float32] | None = None
    starts = tqdm(range(0, num_items, BLOCK), desc="item vectors", disable=not progress)
    for start in starts:
        rows = torch.arange(start, min(start + BLOCK, num_items), device=columns.device)
        block = model.embed_items(columns.items(rows)).float().cpu().numpy()  # (B, D)
        if vectors is None:
            vectors = np.empty((num_items, block.shape[1]), np.float32)
        vectors[start : start + len(block)] = block
    if vectors is None:
        raise ValueError("the catalogue is empty: there is no item to recommend")
    return vectors
