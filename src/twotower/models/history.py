"""A user's earlier events to one vector.

Events are ordered oldest first and padded on the left: the latest stands in the last column.

Shapes: B queries, L events, W width of one embedded event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from twotower.features.spec import HISTORY_MASK, HISTORY_TIME, ModelInputs


class HistoryEncoder(Protocol):
    """What a tower expects of an encoder of histories; a `torch.nn.Module`.

    It is built when the width W of an embedded event is known, as ``encoder(input_width=W)``; in
    YAML it stands with ``_partial_: true``. An empty history becomes zeros.

    One that has the attribute `reads_times`, and it is true, is given the times of the events as a
    third argument: ``(B, L)`` int64, seconds since 1970.
    """

    @property
    def width(self) -> int:
        """Width of the output."""

    def __call__(self, events: Tensor, mask: Tensor, *times: Tensor) -> Tensor:
        """Encode embedded events ``(B, L, W)`` with a bool mask ``(B, L)``, True = event."""


@runtime_checkable
class SequenceEncoder(HistoryEncoder, Protocol):
    """An encoder that reads events in order and has an answer after each of them.

    What it says after an event depends on that event and the earlier ones alone, and does not
    change when the history is cut there: ``every(events, mask)[:, l]`` is what the encoder gives
    for ``events[:, : l + 1]``. So one window of events holds a query at every position.
    """

    def every(self, events: Tensor, mask: Tensor, *times: Tensor) -> Tensor:
        """States ``(B, L, width)`` after every event; zeros at the padding."""


@runtime_checkable
class TargetEncoder(Protocol):
    """An encoder that is also shown the candidate; only a ranker has one. A `torch.nn.Module`.

    It is built as a `HistoryEncoder` is.
    """

    @property
    def width(self) -> int:
        """Width of the output."""

    def attend(self, events: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        """Encode events ``(B, L, W)`` for candidates ``(B, W)`` with a bool mask ``(B, L)``.

        A candidate is embedded by the features that an event is embedded by.
        """


def build_history(
    history: Callable[..., HistoryEncoder | TargetEncoder], inputs: ModelInputs, input_width: int
) -> HistoryEncoder | TargetEncoder:
    """The encoder of a model.

    Args:
        history: Builds it from an `input_width`.
        inputs: What the model is given.
        input_width: Width W of an embedded event.

    Raises:
        ValueError: When it reads times and the log has none.
    """
    encoder = history(input_width=input_width)
    if _reads_times(encoder) and not inputs.history_times:
        raise ValueError(
            f"{type(encoder).__name__} reads the times of events, but the interactions have no "
            "`timestamp`; say `time_bias: false` of the history"
        )
    return encoder


def read_of(encoder: HistoryEncoder | TargetEncoder) -> tuple[str, ...]:
    """Columns that an encoder is given beside the events: the mask, and times if it reads them."""
    return (HISTORY_MASK, HISTORY_TIME) if _reads_times(encoder) else (HISTORY_MASK,)


def _reads_times(encoder: HistoryEncoder | TargetEncoder) -> bool:
    return bool(getattr(encoder, "reads_times", False))


def masked_mean(events: Tensor, mask: Tensor) -> Tensor:
    """Mean of the events that are there.

    Args:
        events: ``(B, L, W)``.
        mask: ``(B, L)`` bool, True where there is an event.

    Returns:
        ``(B, W)``; zeros for an empty history.
    """
    present = mask.unsqueeze(-1).to(events.dtype)  # (B, L, 1)
    return (events * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)  # (B, W)


class MeanPooling(nn.Module):
    """The mean of all events; zeros for an empty history.

    A model that is given histories without padding takes the means of their features instead; see
    `twotower.models.embedding.FeatureEmbedder.means`.

    Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations".

    Args:
        input_width: Width W of an embedded event.
    """

    def __init__(self, *, input_width: int) -> None:
        super().__init__()
        self.width = input_width

    def forward(self, events: Tensor, mask: Tensor) -> Tensor:
        """Encode ``(B, L, W)`` events with a ``(B, L)`` mask to ``(B, W)``."""
        return masked_mean(events, mask)


class RecentAndMean(nn.Module):
    """The latest events one by one, and the mean of all.

    The order of the latest events is kept, which a mean loses. Where a history is shorter, zeros
    stand in place of the missing events.

    Args:
        input_width: Width W of an embedded event.
        num_recent: How many of the latest events are kept apart; at least 1.

    Raises:
        ValueError: When `num_recent` is below 1.
    """

    def __init__(self, *, input_width: int, num_recent: int) -> None:
        super().__init__()
        if num_recent < 1:
            raise ValueError(f"`num_recent` must be at least 1, got {num_recent}")
        self.num_recent = num_recent
        self.width = (num_recent + 1) * input_width

    def forward(self, events: Tensor, mask: Tensor) -> Tensor:
        """Encode histories.

        Args:
            events: ``(B, L, W)``, oldest first, padded on the left.
            mask: ``(B, L)`` bool, True where there is an event.

        Returns:
            ``(B, (num_recent + 1) * W)``: oldest to latest of the recent events, then the mean.

        Raises:
            ValueError: When histories hold fewer than `num_recent` columns.
        """
        if events.shape[1] < self.num_recent:
            raise ValueError(
                f"`num_recent` is {self.num_recent} but histories are {events.shape[1]} events "
                "long; lower `num_recent` or raise the length of the history"
            )
        recent = events[:, -self.num_recent :] * mask[:, -self.num_recent :].unsqueeze(-1)
        return torch.cat([recent.flatten(start_dim=1), masked_mean(events, mask)], dim=1)
