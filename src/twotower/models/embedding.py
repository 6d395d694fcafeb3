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

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from twotower.features.spec import TABLE_KINDS, FeatureInput
from twotower.models.tables import TableGroup, mean_of_sets

# Below this many rows a dense gradient is cheaper than sorting the ids of a batch.
MIN_SPARSE_ROWS = 50_000


class FeatureEmbedder(nn.Module):
    """Embed the features of one side of a model.

    Tables of equal width are one parameter, and neighbouring features of them are looked up at
    once.

    Args:
        features: What is to be embedded; one embedder may look at any of them alone.
        default_dim: Width of a table's rows where the feature does not ask for one.
        vector_dim: Width to which a vector is projected where the feature does not ask for one.
        sparse: Whether tables of equal width that have at least `MIN_SPARSE_ROWS` rows together
            have sparse gradients, so that a step costs the same for every length of theirs.
        id_dropout: Probability that an ``id`` counts as never seen, in training alone; drawn for
            every place of a batch and of a history by itself.

    Raises:
        ValueError: When the probability is below 0, or 1 and more, which would train no id, or a
            table would have no width.
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
        if min(default_dim, vector_dim) < 1:
            raise ValueError(
                f"`embedding_dim` must be at least 1, got {min(default_dim, vector_dim)}"
            )
        self.id_dropout = id_dropout
        self.features = tuple(features)
        self._widths: dict[str, int] = {}
        num_rows: dict[int, dict[str, int]] = {}
        self.tables = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        for feature in self.features:
            dim = feature.dim or (vector_dim if feature.kind == "vector" else default_dim)
            if feature.kind in TABLE_KINDS:
                num_rows.setdefault(dim, {})[feature.name] = feature.num_rows
            elif feature.kind == "vector":
                self.projections[_layer_name(feature.name)] = nn.Linear(feature.width, dim)
            passed_on = feature.width if feature.has_missing else 1
            self._widths[feature.name] = passed_on if _is_passed_on(feature) else dim
        self._group_of: dict[str, TableGroup] = {}
        for dim, of_dim in num_rows.items():
            is_long = sum(of_dim.values()) >= MIN_SPARSE_ROWS
            group = TableGroup(num_rows=of_dim, dim=dim, sparse=sparse and is_long)
            self.tables[str(dim)] = group
            self._group_of |= dict.fromkeys(of_dim, group)

    @property
    def width(self) -> int:
        """Width of the output when all features are asked for."""
        return self.width_of([feature.name for feature in self.features])

    def width_of(self, names: Sequence[str]) -> int:
        """Width of the output for some features."""
        return sum(self._widths[name] for name in names)

    def learned(self) -> dict[str, list[Tensor]]:
        """What is learned of a feature alone: its table ``(V, D)``, a view, or its projection."""
        tables = {name: [group.table(name)] for name, group in self._group_of.items()}
        named = {feature.name: _layer_name(feature.name) for feature in self.features}
        return tables | {
            name: list(self.projections[layer].parameters())
            for name, layer in named.items()
            if layer in self.projections
        }

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
        parts = []
        for features in self._runs(names):
            columns = [self._kept(feature, inputs[prefix + feature.name]) for feature in features]
            first, group = features[0], self._group_of.get(features[0].name)
            if group is None:
                parts.append(self._projected(first, columns[0]))
            elif first.kind == "tags":
                rows = group.lookup(group.place(first.name), columns[0].unsqueeze(-1)).squeeze(-2)
                parts.append(mean_of_tags(rows, columns[0]))
            else:
                rows = group.lookup(group.place(first.name), torch.stack(columns, dim=-1))
                parts.append(rows.flatten(start_dim=-2))  # (..., F D)
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]  # (..., width)

    def means(
        self, inputs: Mapping[str, Tensor], prefix: str, names: Sequence[str], offsets: Tensor
    ) -> Tensor:
        """Means of embedded features over sets, without the embedded members.

        Args:
            inputs: Encoded columns ``(E, ...)`` of the members of all sets, one set behind the
                other.
            prefix: Put before a feature's name to find its column.
            names: Features to embed.
            offsets: ``(B + 1,)`` where each set begins, and E.

        Returns:
            ``(B, width)``; zeros for an empty set. What is embedded alone and then averaged.
        """
        parts = []
        for feature in (feature for feature in self.features if feature.name in names):
            if feature.name in self._group_of and feature.kind != "tags":
                column = self._kept(feature, inputs[prefix + feature.name])
                parts.append(self._group_of[feature.name].means(feature.name, column, offsets))
            else:
                parts.append(mean_of_sets(self(inputs, prefix, [feature.name]), offsets))
        return torch.cat(parts, dim=-1)  # (B, width)

    def _runs(self, names: Sequence[str] | None) -> Iterator[list[FeatureInput]]:
        """Features to be looked up at once: neighbours, also in their group; others alone."""
        wanted = [feature for feature in self.features if names is None or feature.name in names]

        def run(placed: tuple[int, FeatureInput]) -> tuple[int, int, bool]:
            number, feature = placed
            group = self._group_of.get(feature.name)
            if group is None or feature.kind == "tags":
                return number, -1, False
            return number - group.place(feature.name), group.dim, True

        for _, members in groupby(enumerate(wanted), run):
            yield [feature for _, feature in members]

    def _kept(self, feature: FeatureInput, column: Tensor) -> Tensor:
        """The column, with some ids as if they had never been seen."""
        if feature.kind == "id" and self.training and self.id_dropout > 0:
            is_new = torch.rand(column.shape, device=column.device) < self.id_dropout
            return column.masked_fill(is_new, 0)
        return column

    def _projected(self, feature: FeatureInput, column: Tensor) -> Tensor:
        if _is_passed_on(feature):
            return column if feature.has_missing else column[..., :1].contiguous()
        projected: Tensor = self.projections[_layer_name(feature.name)](column)
        return projected


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
