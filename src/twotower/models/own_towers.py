"""Two towers whose layers are a module of yours, with our embeddings, history and similarity.

Shapes: B queries or items, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from twotower.features.spec import ModelInputs
from twotower.models.history import HistoryEncoder
from twotower.models.two_tower import Similarity, TwoTower


def own_towers(
    *,
    inputs: ModelInputs,
    dim: int,
    embedding_dim: int,
    tower: Callable[..., nn.Module],
    history: Callable[..., HistoryEncoder],
    similarity: Similarity,
    id_dropout: float = 0.0,
) -> TwoTower:
    """The retrieval model with other layers between its features and its vectors.

    Args:
        inputs: The features and the history that the model is given.
        dim: Width D of the query and item vectors.
        embedding_dim: Width of a feature's embedding where the feature does not ask for one.
        tower: Builds the layers of each tower, from an `input_width` and an `output_width`, which
            is `dim`: a module that maps ``(B, input_width)`` to ``(B, output_width)``, one row
            without looking at others, and that torch can export.
        history: Builds the encoder of the history from an `input_width`.
        similarity: `Cosine` or `Dot`.
        id_dropout: See `TwoTower`.

    Raises:
        ValueError: As `TwoTower`; and when `tower` builds no module.
    """
    model = TwoTower(
        inputs=inputs,
        dim=dim,
        embedding_dim=embedding_dim,
        hidden=[],
        history=history,
        similarity=similarity,
        id_dropout=id_dropout,
    )
    query_width = model.query_embedder.width
    query_width += model.history.width if model.history_names else 0
    for name, width in (("query_mlp", query_width), ("item_mlp", model.item_embedder.width)):
        layers = tower(input_width=width, output_width=dim)
        if not isinstance(layers, nn.Module):
            raise ValueError(
                f"`tower` must build a torch.nn.Module, got {type(layers).__qualname__}"
            )
        model.register_module(name, layers)
    return model
