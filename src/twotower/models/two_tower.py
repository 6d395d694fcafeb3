"""Two towers: a query and an item become vectors whose dot product says how well they fit.

The query tower sees the user's and the request's features and the user's history, the item tower
the item's features. Events of the history are embedded with the item tower's tables, so what is
learnt of an item as a target is known of it as history (Covington et al. 2016, "Deep Neural
Networks for YouTube Recommendations"; Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling
for Large Corpus Item Recommendations").

Shapes: B queries or items, L events of a history, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from twotower.data.schema import HISTORY_OFFSETS
from twotower.data.windows import PLACE, WINDOW
from twotower.features.spec import HISTORY_PREFIX, ModelInputs
from twotower.models.embedding import FeatureEmbedder
from twotower.models.history import (
    HistoryEncoder,
    MeanPooling,
    SequenceEncoder,
    TargetEncoder,
    build_history,
    read_of,
)
from twotower.models.mlp import MLP
from twotower.models.sequence import every_by_length
from twotower.models.unit_vectors import unit_vectors


class Similarity(Protocol):
    """How vectors are compared: what is done to them before the dot product."""

    metric: str

    def __call__(self, vectors: Tensor) -> Tensor:
        """Map ``(..., D)`` to the vectors whose dot product is the score."""


class Cosine(nn.Module):
    """Scale vectors to unit length, so that the dot product is the cosine, in [-1, 1]."""

    metric = "cosine"

    def forward(self, vectors: Tensor) -> Tensor:
        """Scale ``(..., D)`` vectors to unit length."""
        return unit_vectors(vectors)


class Dot(nn.Module):
    """Leave vectors as they are; their length carries popularity."""

    metric = "dot"

    def forward(self, vectors: Tensor) -> Tensor:
        """Return ``(..., D)`` vectors as they are."""
        return vectors


class TwoTower(nn.Module):
    """The retrieval model.

    Args:
        inputs: The features and the history that the model is given.
        dim: Width D of the query and item vectors; None ends both towers with their last hidden
            layer, or without any with their features, whose widths must then be equal.
        embedding_dim: Width of a feature's embedding where the feature does not ask for one.
        hidden: Widths of the hidden layers, the same for both towers.
        history: Builds the encoder of the history from an `input_width`; not called when `inputs`
            has none.
        similarity: `Cosine` or `Dot`.
        dropout: Share of the hidden outputs that is dropped in training.
        id_dropout: Probability that an item's id counts as never seen, in training alone, for the
            item tower and the events of histories; lets content carry items without a row.

    Raises:
        ValueError: When one of the towers would have nothing to look at, the encoder of the history
            asks for the candidate, the vectors of the towers would not be equally wide, or
            `id_dropout` is not a probability below 1.
    """

    def __init__(
        self,
        *,
        inputs: ModelInputs,
        dim: int | None,
        embedding_dim: int,
        hidden: Sequence[int],
        history: Callable[..., HistoryEncoder],
        similarity: Similarity,
        dropout: float = 0.0,
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_inputs(inputs)
        query_features, item_features = inputs.of("user", "context"), inputs.of("item")
        self.history_names = history_names(inputs)
        self.query_embedder = FeatureEmbedder(
            features=query_features,
            default_dim=embedding_dim,
            vector_dim=embedding_dim,
            sparse=True,
        )
        self.item_embedder = FeatureEmbedder(
            features=item_features,
            default_dim=embedding_dim,
            vector_dim=embedding_dim,
            sparse=True,
            id_dropout=id_dropout,
        )
        query_width = self.query_embedder.width
        if self.history_names:
            event_width = self.item_embedder.width_of(self.history_names)
            encoder = build_history(history, inputs, event_width)
            if isinstance(encoder, TargetEncoder):
                raise ValueError(
                    f"{type(encoder).__name__} looks at the candidate, which a query tower does "
                    "not know; use it in models.ranking, or another encoder here"
                )
            self.history = encoder
            query_width += self.history.width
        self.query_mlp = MLP(
            input_width=query_width, hidden=hidden, dropout=dropout, output_width=dim
        )
        self.item_mlp = MLP(
            input_width=self.item_embedder.width, hidden=hidden, dropout=dropout, output_width=dim
        )
        if self.query_mlp.width != self.item_mlp.width:
            raise ValueError(
                "without `dim` and hidden layers the towers end with their features, which must be "
                f"equally wide: those of the query are {query_width} wide, those of the item "
                f"{self.item_embedder.width}; give `dim`"
            )
        self.similarity = similarity

    @property
    def metric(self) -> str:
        """``cosine`` or ``dot``: what the index must rank by."""
        return self.similarity.metric

    @property
    def dense_parts(self) -> Sequence[nn.Module]:
        """What only multiplies and adds, and gains by being compiled."""
        return self.query_mlp, self.item_mlp

    def embed_queries(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors of queries.

        Args:
            batch: User and context columns ``(B, ...)`` and, where the model looks at the
                history, ``history.<item feature>`` ``(B, L, ...)``, ``history.mask`` ``(B, L)``
                and, where the encoder reads it, ``history.time`` ``(B, L)``. Where the history is
                the mean of its events, they may also stand one history behind the other:
                ``history.<item feature>`` ``(E, ...)``, ``history.offsets`` ``(B + 1,)``.

        Returns:
            ``(B, D)``; the dot product with an item's vector is the score.
        """
        states = []
        if HISTORY_OFFSETS in batch:
            self.check_means()
            offsets = batch[HISTORY_OFFSETS]
            states.append(
                self.item_embedder.means(batch, HISTORY_PREFIX, self.history_names, offsets)
            )
        elif self.history_names:
            states.append(self.history(*self._events(batch)))  # (B, history)
        return self._queries(batch, states)

    def embed_windows(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors of the queries within windows of events; see `twotower.data.windows`.

        Args:
            batch: User and context columns of the queries ``(N, ...)``, histories ``(B, L, ...)``,
                and where in them each query stands: ``window`` and ``place`` ``(N,)``.

        Returns:
            ``(N, D)``.

        Raises:
            ValueError: When the encoder of the history does not read in order.
        """
        encoder = self.sequence_encoder()
        states = every_by_length(encoder, *self._events(batch))  # (B, L, history)
        return self._queries(batch, [states[batch[WINDOW], batch[PLACE]]])

    @property
    def averages(self) -> bool:
        """Whether the history is the mean of its events."""
        return bool(self.history_names) and isinstance(self.history, MeanPooling)

    def check_means(self) -> None:
        """Refuse histories without an order, one behind the other.

        Raises:
            ValueError: When the history is more than the mean of its events.
        """
        if not self.averages:
            raise ValueError(
                "user batches need an encoder of the history that does not look at its order, such "
                "as MeanPooling (models/retrieval=two_tower or two_tower_pooled); "
                f"got {type(self.history).__name__ if self.history_names else 'no history'}"
            )

    @property
    def any_length(self) -> bool:
        """Whether vectors of queries do not depend on the padding of their histories."""
        return self.averages or (
            bool(self.history_names) and isinstance(self.history, SequenceEncoder)
        )

    def sequence_encoder(self) -> SequenceEncoder:
        """The encoder of the history, which reads in order.

        Raises:
            ValueError: When it does not.
        """
        if not self.history_names or not isinstance(self.history, SequenceEncoder):
            raise ValueError(
                "sequence batches need an encoder of the history that reads in order, such as "
                "models/retrieval=two_tower_transformer or two_tower_gru; "
                f"got {type(self.history).__name__ if self.history_names else 'no history'}"
            )
        return self.history

    def _events(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Events ``(B, L, W)`` with their mask, and their times where the encoder reads them."""
        events = self.item_embedder(batch, HISTORY_PREFIX, self.history_names)
        return events, *(batch[name] for name in read_of(self.history))

    def _queries(self, batch: Mapping[str, Tensor], states: list[Tensor]) -> Tensor:
        """Vectors of queries with these states of their histories, if they have any."""
        features = [self.query_embedder(batch)] if self.query_embedder.features else []
        vectors: Tensor = self.query_mlp(torch.cat([*features, *states], dim=-1))
        return self.similarity(vectors)

    def embed_items(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Vectors of items.

        Args:
            batch: Item columns ``(B, ...)``.

        Returns:
            ``(B, D)``.
        """
        vectors: Tensor = self.item_mlp(self.item_embedder(batch))  # (B, D)
        return self.similarity(vectors)


def history_names(inputs: ModelInputs) -> tuple[str, ...]:
    """Names of the item features that describe an event; empty when there is no history."""
    return tuple(f.name for f in inputs.history()) if inputs.history_length else ()


def _check_inputs(inputs: ModelInputs) -> None:
    problems = []
    if not inputs.of("user", "context") and not history_names(inputs):
        problems.append("the query tower has no user or context feature and no history")
    if not inputs.of("item"):
        problems.append("the item tower has no item feature")
    if problems:
        given = ", ".join(f"{f.name} ({f.side})" for f in inputs.features) or "none"
        raise ValueError("\n".join(f"{problem}; features given: {given}" for problem in problems))
