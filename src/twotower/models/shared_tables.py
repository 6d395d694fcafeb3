"""Tables that a ranker takes over from the towers."""

from __future__ import annotations

import torch

from twotower.models.dcn import DCNv2
from twotower.models.two_tower import TwoTower


def start_from_tables(model: DCNv2, retrieval: TwoTower) -> list[str]:
    """Let the ranker's tables start from those that the retrieval has learned.

    A table is taken where both models have it in the same width. The ranker sees far fewer examples
    than the retrieval, and crosses of vectors that mean nothing yet are slow to learn.

    Args:
        model: The ranker, changed in place.
        retrieval: The trained towers.

    Returns:
        Names of their features.
    """
    reused = []
    for ranker, tower in (
        (model.query_embedder, retrieval.query_embedder),
        (model.item_embedder, retrieval.item_embedder),
    ):
        learned = tower.learned()
        for name, own in ranker.learned().items():
            shapes = [weight.shape for weight in own]
            if [weight.shape for weight in learned.get(name, ())] != shapes:
                continue
            with torch.no_grad():
                for weight, start in zip(own, learned[name], strict=True):
                    weight.copy_(start)
            reused.append(name)
    return reused
