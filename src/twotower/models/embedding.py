"""Encoded features to one vector: tables for ids, a projection for vectors, numbers as they are.

Every feature of one side is turned into a few numbers and these are concatenated:

* ``id``, ``categorical``: a row of a trained table; row 0 ("missing or never seen") is trained too;
* ``tags``: the mean of the rows of the tags that are there, zeros without tags;
* ``numeric``, ``time``: passed on, they are standardised already;
* ``vector``: a trained linear projection.

What is new has no row of its own, so its id must not be all that a model looks at. With ID dropout
an id counts as never seen in some of the training examples, and row 0 beside the other features
learns to stand for it (Volkovs et al. 2017, "DropoutNet: Addressing Cold Start in Recommender
Systems").

Shapes: ``...`` any leading shape: (B,) for queries and candidates, (B, L) for the events of a
history; T tags, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from twotower.features.spec import TABLE_KINDS, FeatureInput

TABLE_STD = 0.05
# Below this many rows a dense gradient is cheaper than sorting the ids of a batch.
MIN_SPARSE_ROWS = 50_000


class FeatureEmbedder(nn.Module):
    """Embed the features of one side of a model.

    Args:
        features: What is to be embedded; one embedder may look at any of them alone.
        default_dim: Width of a table's rows where the feature does not ask for one.
        vector_dim: Width to which a vector is projected where the feature does not ask for one.
        sparse: Whether tables of at least `MIN_SPARSE_ROWS` rows have sparse gradients, so that a
            step costs the same for every size of the table.
        id_dropout: Probability that an ``id`` counts as never seen, in training alone; drawn for
            every place of a batch and of a history by itself.

    Raises:
        ValueError: When the probability is below 0, or 1 and more, which would train no id.
    """

    def __init__(
        self,
        *,
        features: Sequence[FeatureInput],
        default_dim: int,
        vector_dim: int,
        sparse: bool,
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= id_dropout < 1:
            raise ValueError(
                f"`id_dropout` must be at least 0 and below 1, got {id_dropout}; to do without an "
                "id, leave it out of the features"
            )
        self.id_dropout = id_dropout
        self.features = tuple(features)
        self._widths: dict[str, int] = {}
        self.layers = nn.ModuleDict()
        for feature in self.features:
            dim = feature.dim or (vector_dim if feature.kind == "vector" else default_dim)
            self._widths[feature.name] = feature.width if _is_passed_on(feature) else dim
            if not _is_passed_on(feature):
                self.layers[_layer_name(feature.name)] = _layer(feature, dim=dim, sparse=sparse)

    @property
    def width(self) -> int:
        """Width of the output when all features are asked for."""
        return self.width_of([feature.name for feature in self.features])

    def width_of(self, names: Sequence[str]) -> int:
        """Width of the output for some features."""
        return sum(self._widths[name] for name in names)

    def forward(
        self, inputs: Mapping[str, Tensor], prefix: str = "", names: Sequence[str] | None = None
    ) -> Tensor:
        """Embed and concatenate, in the order in which the features were declared.

        Args:
            inputs: Encoded columns by name, ``(...)``, ``(..., T)`` or ``(..., D)``.
            prefix: Put before a feature's name to find its column, as ``history.``.
            names: Features to embed; None for all.

        Returns:
            ``(..., width)`` float.
        """
        parts = [
            self._embed(feature, inputs[prefix + feature.name])
            for feature in self.features
            if names is None or feature.name in names
        ]
        return torch.cat(parts, dim=-1)  # (..., width)

    def _embed(self, feature: FeatureInput, column: Tensor) -> Tensor:
        if _is_passed_on(feature):
            return column
        if feature.kind == "id" and self.training and self.id_dropout > 0:
            is_new = torch.rand(column.shape, device=column.device) < self.id_dropout
            column = column.masked_fill(is_new, 0)
        embedded: Tensor = self.layers[_layer_name(feature.name)](column)
        if feature.kind == "tags":
            return mean_of_tags(embedded, column)
        return embedded


def mean_of_tags(rows: Tensor, tags: Tensor) -> Tensor:
    """Mean over the tags that are there.

    Args:
        rows: Embedded tags, ``(..., T, D)``.
        tags: Rows of the table, ``(..., T)``, 0 where there is no tag.

    Returns:
        ``(..., D)``; zeros where there is no tag at all.
    """
    present = (tags != 0).unsqueeze(-1).to(rows.dtype)  # (..., T, 1)
    return (rows * present).sum(dim=-2) / present.sum(dim=-2).clamp(min=1)  # (..., D)


def _is_passed_on(feature: FeatureInput) -> bool:
    return feature.kind not in TABLE_KINDS and feature.kind != "vector"


def _layer_name(feature_name: str) -> str:
    # A module may not be called as a method of nn.Module ("type") nor have a dot in its name.
    return "feature_" + feature_name.replace(".", "/")


def _layer(feature: FeatureInput, *, dim: int, sparse: bool) -> nn.Module:
    if feature.kind == "vector":
        return nn.Linear(feature.width, dim)
    padding = 0 if feature.kind == "tags" else None
    sparse = sparse and feature.num_rows >= MIN_SPARSE_ROWS
    table = nn.Embedding(feature.num_rows, dim, padding_idx=padding, sparse=sparse)
    nn.init.normal_(table.weight, std=TABLE_STD)
    return table
