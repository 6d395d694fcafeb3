"""Tables of the ranker that start from what the retrieval has learnt."""

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
    learned = dict(retrieval.named_parameters())
    own = {name: table for name, table in model.named_parameters() if "_embedder.layers." in name}
    reused = [n for n, t in own.items() if n in learned and learned[n].shape == t.shape]
    with torch.no_grad():
        for name in reused:
            own[name].copy_(learned[name])
    return list(dict.fromkeys(name.split("feature_")[-1].rpartition(".")[0] for name in reused))
