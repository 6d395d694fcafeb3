"""What encoders that read histories in order share.

Shapes: B queries, L events, H width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twotower.models.history import SequenceEncoder

ROWS_OF_A_BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where events go when the padding is moved from the left to the right.

    Args:
        order: ``(B, L)`` column of the event that comes to stand in each column.
        inverse: ``(B, L)`` column that each event has gone to.
    """

    order: Tensor
    inverse: Tensor

    def aligned(self, events: Tensor) -> Tensor:
        """Events ``(B, L, W)`` with the padding behind them."""
        return _taken(events, self.order)

    def back(self, states: Tensor) -> Tensor:
        """States ``(B, L, H)`` of aligned events in the places where these stood."""
        return _taken(states, self.inverse)


def left_aligned(mask: Tensor) -> Places:
    """Move the padding behind the events.

    Args:
        mask: ``(B, L)`` bool, True where there is an event; padding stands on the left.
    """
    length = mask.shape[1]
    columns = torch.arange(length, device=mask.device)  # (L,)
    padding = length - mask.sum(dim=1, keepdim=True)  # (B, 1)
    return Places(order=(columns + padding) % length, inverse=(columns - padding) % length)


def every_by_length(
    encoder: SequenceEncoder, events: Tensor, mask: Tensor, *times: Tensor
) -> Tensor:
    """States ``(B, L, width)`` after every event, zeros at the padding, with less work on padding.

    On a CPU histories of similar length are encoded together, in blocks that are as wide as the
    longest history of the block. A device that runs many rows at once takes them all.

    Args:
        encoder: Reads events in order.
        events: ``(B, L, W)``.
        mask: ``(B, L)`` bool, True where there is an event.
        times: ``(B, L)`` int64 seconds, where the encoder reads them.
    """
    if events.device.type != "cpu":
        return encoder.every(events, mask, *times)
    counts = mask.sum(dim=1)  # (B,)
    length, order = mask.shape[1], counts.argsort()
    parts = []
    for start in range(0, len(order), ROWS_OF_A_BLOCK):
        rows = order[start : start + ROWS_OF_A_BLOCK]
        first = length - max(1, int(counts[rows[-1]]))  # column of the oldest event of the block
        given = (values[rows, first:] for values in (events, mask, *times))
        states = encoder.every(*given)
        parts.append(functional.pad(states, (0, 0, first, 0)))  # (b, L, width)
    return torch.cat(parts)[order.argsort()]


def latest(states: Tensor) -> Tensor:
    """State ``(B, H)`` after the latest event, which stands in the last column of ``(B, L, H)``."""
    return states[:, -1]


def _taken(values: Tensor, columns: Tensor) -> Tensor:
    """``(B, L, W)`` values out of other columns ``(B, L)`` of the same row."""
    return values.gather(1, columns.unsqueeze(-1).expand_as(values))


def check_sizes(name: str, sizes: Mapping[str, int]) -> None:
    """Refuse sizes of an encoder that it cannot have.

    Args:
        name: Of the encoder, for the message.
        sizes: By argument, `hidden` and `num_heads` among them.

    Raises:
        ValueError: When one is below 1 or the heads do not divide the width.
    """
    problems = [f"`{n}` must be at least 1, got {v}" for n, v in sizes.items() if v < 1]
    hidden, num_heads = sizes["hidden"], sizes["num_heads"]
    if not problems and hidden % num_heads:
        problems = [f"`num_heads`={num_heads} does not divide `hidden`={hidden}"]
    if problems:
        raise ValueError("\n".join(f"{name}: {problem}" for problem in problems))


def check_length(name: str, length: int, max_length: int) -> None:
    """Refuse histories that there are no positions for.

    Raises:
        ValueError: When they are longer than `max_length`.
    """
    if length > max_length:
        raise ValueError(
            f"{name}: histories are {length} events long but `max_length` is {max_length}; "
            "raise it or shorten the history"
        )


def split_heads(part: Tensor, num_heads: int) -> Tensor:
    """Split states ``(B, L, H)`` among the heads of an attention, ``(B, A, L, H / A)``."""
    num_rows, length, width = part.shape
    return part.view(num_rows, length, num_heads, width // num_heads).transpose(1, 2)
