"""DCN-v2: the ranker that says how likely a user takes a candidate.

All features of user, request and candidate, the history, the score of the retrieval and the
logarithm of the candidate's rank there stand in one vector x_0, which goes through a cross network
and a multi-layer perceptron, one after the other (`Stacked`) or side by side (`Parallel`), and a
head a task to the logits: that of the outcome that is ranked by and, where there are any, those of
further outcomes.

Wang et al. 2021, "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale
Learning to Rank Systems".

Shapes: B pairs of a query and a candidate, Q queries, L events of a history, W width of x_0, T
tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from twotower.data.schema import OWNER
from twotower.features.spec import (
    HISTORY_MASK,
    HISTORY_PREFIX,
    RETRIEVAL_RANK,
    RETRIEVAL_SCORE,
    ModelInputs,
)
from twotower.models.cross import CrossNetwork
from twotower.models.embedding import FeatureEmbedder
from twotower.models.history import HistoryEncoder, TargetEncoder, build_history, read_of
from twotower.models.mlp import MLP
from twotower.models.multitask import Heads, SharedBottom
from twotower.models.two_tower import history_names

RANK_SCALE = -0.2  # at first; takes the log of ranks up to some hundreds to 0 .. -1


class Body(Protocol):
    """What stands between the features and the logits; a `torch.nn.Module`.

    Rows do not look at one another, but for batch norm in training. It is built from `input_width`,
    `num_tasks`, `cross` and `deep`.
    """

    def __call__(self, x0: Tensor) -> Tensor:
        """Map ``(B, W)`` to logits ``(B, T)``."""


class Stacked(nn.Module):
    """The perceptron on top of the cross network.

    Args:
        input_width: Width W of the input.
        num_tasks: How many logits T.
        cross: Cross network for inputs of width W.
        deep: Perceptron for inputs of width W.
        heads: Builds what gives the logits, from an `input_width` and `num_tasks`.
    """

    def __init__(
        self,
        *,
        input_width: int,
        num_tasks: int,
        cross: CrossNetwork,
        deep: MLP,
        heads: Callable[..., Heads] = SharedBottom,
    ) -> None:
        super().__init__()
        self.cross = cross
        self.deep = deep
        self.heads = heads(input_width=deep.width, num_tasks=num_tasks)

    def forward(self, x0: Tensor) -> Tensor:
        """Map ``(B, W)`` to logits ``(B, T)``."""
        return self.heads(self.deep(self.cross(x0)))


class Parallel(nn.Module):
    """The cross network beside the perceptron, their outputs concatenated.

    Args:
        input_width: Width W of the input.
        num_tasks: How many logits T.
        cross: Cross network for inputs of width W.
        deep: Perceptron for inputs of width W.
        heads: Builds what gives the logits, from an `input_width` and `num_tasks`.
    """

    def __init__(
        self,
        *,
        input_width: int,
        num_tasks: int,
        cross: CrossNetwork,
        deep: MLP,
        heads: Callable[..., Heads] = SharedBottom,
    ) -> None:
        super().__init__()
        self.cross = cross
        self.deep = deep
        self.heads = heads(input_width=input_width + deep.width, num_tasks=num_tasks)

    def forward(self, x0: Tensor) -> Tensor:
        """Map ``(B, W)`` to logits ``(B, T)``."""
        return self.heads(torch.cat([self.cross(x0), self.deep(x0)], dim=-1))


class DCNv2(nn.Module):
    """The ranking model.

    Args:
        inputs: The features and the history that the model is given, and the further tasks.
        embedding_dim: Width of a feature's embedding where the feature does not ask for one.
        structure: Builds the body: `Stacked` or `Parallel`.
        cross: Builds the cross network from a width.
        deep: Builds the perceptron from an `input_width`.
        history: Builds the encoder of the history, which may see the candidate, from an
            `input_width`; not called when `inputs` has none.
        retrieval_score: Whether the batch carries the retrieval's score of the candidate.
        retrieval_rank: Whether it carries the candidate's rank, how many of the items that the user
            has not seen score at least as high; from 1.

    Raises:
        ValueError: When the model would have nothing to look at.
    """

    def __init__(
        self,
        *,
        inputs: ModelInputs,
        embedding_dim: int,
        structure: Callable[..., Body],
        cross: Callable[[int], CrossNetwork],
        deep: Callable[..., MLP],
        history: Callable[..., HistoryEncoder | TargetEncoder],
        retrieval_score: bool,
        retrieval_rank: bool = False,
    ) -> None:
        super().__init__()
        if not inputs.features:
            raise ValueError("the ranker has no feature; at least one is needed")
        self.history_names = history_names(inputs)
        self.query_embedder = FeatureEmbedder(
            features=inputs.of("user", "context"),
            default_dim=embedding_dim,
            vector_dim=embedding_dim,
            sparse=True,
        )
        self.item_embedder = FeatureEmbedder(
            features=inputs.of("item"),
            default_dim=embedding_dim,
            vector_dim=embedding_dim,
            sparse=True,
        )
        width = self.query_embedder.width + self.item_embedder.width
        if self.history_names:
            event_width = self.item_embedder.width_of(self.history_names)
            self.history = build_history(history, inputs, event_width)
            width += self.history.width
        self.score_scale = _times(1.0) if retrieval_score else None
        self.rank_scale = _times(RANK_SCALE) if retrieval_rank else None
        self.width = width + int(retrieval_score) + int(retrieval_rank)
        self.tasks = inputs.tasks
        self.body = structure(
            input_width=self.width,
            num_tasks=1 + len(self.tasks),
            cross=cross(self.width),
            deep=deep(input_width=self.width),
        )

    @property
    def takes_retrieval(self) -> bool:
        """Whether it is shown what the retrieval says of the candidate."""
        return self.score_scale is not None or self.rank_scale is not None

    @property
    def dense_parts(self) -> Sequence[nn.Module]:
        """What only multiplies and adds, and gains by being compiled."""
        return (self.get_submodule("body"),)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits ``(B,)`` of the task that is ranked by; the sigmoid is the probability."""
        return self.logits(batch)[:, 0]

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits of query-candidate pairs, all tasks.

        Args:
            batch: User, context and item columns ``(B, ...)``; where the model looks at them,
                ``history.<item feature>`` ``(B, L, ...)``, ``history.mask`` ``(B, L)``,
                ``history.time`` ``(B, L)``, ``retrieval_score`` and ``retrieval_rank`` ``(B,)``.
                With ``owner`` ``(B,)`` the columns of user, context and history are those of
                ``Q`` queries, and every pair says which query is its own.

        Returns:
            ``(B, T)``: of the task that is ranked by, then of `tasks`.
        """
        found: Tensor = self.body(self._features(batch))
        return found

    def _features(self, batch: Mapping[str, Tensor]) -> Tensor:
        parts = []
        if self.query_embedder.features:
            parts.append(_of_pairs(self.query_embedder(batch), batch))
        if self.item_embedder.features:
            parts.append(self.item_embedder(batch))
        if self.history_names:
            parts.append(self._history(batch))
        if self.score_scale is not None:
            parts.append(self.score_scale(batch[RETRIEVAL_SCORE].unsqueeze(-1)))  # (B, 1)
        if self.rank_scale is not None:
            parts.append(self.rank_scale(batch[RETRIEVAL_RANK].log().unsqueeze(-1)))  # (B, 1)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)  # (B, W)

    def _history(self, batch: Mapping[str, Tensor]) -> Tensor:
        events = self.item_embedder(batch, HISTORY_PREFIX, self.history_names)  # (B, L, E)
        if isinstance(self.history, TargetEncoder):
            target = self.item_embedder(batch, names=self.history_names)  # (B, E)
            events, mask = (_of_pairs(part, batch) for part in (events, batch[HISTORY_MASK]))
            return self.history.attend(events, mask, target)
        encoded = self.history(events, *(batch[name] for name in read_of(self.history)))
        return _of_pairs(encoded, batch)


def _of_pairs(values: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Values of queries ``(Q, ...)`` as those of pairs ``(B, ...)``."""
    return values.index_select(0, batch[OWNER]) if OWNER in batch else values


def _times(factor: float) -> nn.Linear:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, factor)
    nn.init.zeros_(layer.bias)
    return layer
