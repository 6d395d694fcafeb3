"""Hierarchical sequential transduction units: attention without a softmax, gated, with time.

Of n events with states x, in every block,

    u, v, q, k = split(SiLU(W1 LN(x))),
    a_ij = SiLU(q_i . k_j + p_{i-j} + b_{bucket(t_i - t_j)}) / (i + 1)     for j <= i, else 0,
    y_i = W2 (LN(sum_j a_ij v_j) * u_i) + x_i,

with a bias p learned for every distance and b for every bucket of time, that is
floor(ln(max(1, seconds)) / 0.301). Zhai et al. 2024, "Actions speak louder than words:
trillion-parameter sequential transducers for generative recommendations", section 3.

Where this differs from the authors' code: there the time of a row is that of the event which comes
next, the moment of the query, here it is that of the row's own event, so that a state depends on
nothing after it and a window of events says the same as histories that end at each of them. There
the sum is divided by the longest length, here by the number of events that are looked at, so
that short histories are not faint before they are normalised. States are normalised at the end.

Shapes: B queries, L events, W width of one embedded event, H width of a state, A heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from twotower.models.sequence import (
    check_length,
    check_sizes,
    latest,
    left_aligned,
    split_heads,
)

BUCKET_WIDTH = 0.301  # of the natural logarithm of seconds
BIAS_STD = 0.02


class HSTU(nn.Module):
    """State of HSTU blocks at the latest event; zeros for an empty history.

    Args:
        input_width: Width W of an embedded event.
        hidden: Width H of the states.
        max_length: Events that there are positions for.
        num_blocks: Blocks on top of each other.
        num_heads: Heads of the attention; must divide `hidden`.
        time_bias: Whether attention depends on the time between events; needs a log with times.
        num_buckets: Buckets of that time; what is longer counts as the longest. A bucket ends 1.35
            times as late as the one before: 64 of them reach to seven years.
        dropout: Share of the inputs, and of what a block adds, dropped in training.

    Raises:
        ValueError: When a number is below 1 or the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        input_width: int,
        hidden: int = 64,
        max_length: int = 200,
        num_blocks: int = 2,
        num_heads: int = 1,
        time_bias: bool = True,
        num_buckets: int = 64,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        numbers = {
            "hidden": hidden,
            "max_length": max_length,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
            "num_buckets": num_buckets,
        }
        check_sizes("HSTU", numbers)
        self.width = hidden
        self.max_length = max_length
        self.reads_times = time_bias
        self.num_buckets = num_buckets
        self.project = (
            nn.Identity() if input_width == hidden else nn.Linear(input_width, hidden, bias=False)
        )
        self.positions = nn.Parameter(torch.randn(max_length, hidden) * BIAS_STD)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                hidden,
                num_heads=num_heads,
                num_distances=max_length,
                num_buckets=num_buckets if time_bias else 0,
                dropout=dropout,
            )
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(hidden)

    def every(self, events: Tensor, mask: Tensor, *times: Tensor) -> Tensor:
        """States ``(B, L, H)`` after every event; zeros at the padding.

        Args:
            events: ``(B, L, W)``, oldest first, padded on the left.
            mask: ``(B, L)`` bool, True where there is an event.
            times: With `time_bias`, and only then, ``(B, L)`` int64 seconds.

        Raises:
            ValueError: When histories are longer than `max_length`, or times are missing or given
                without being read.
        """
        check_length("HSTU", events.shape[1], self.max_length)
        if len(times) != int(self.reads_times):
            raise ValueError(
                f"HSTU: times of the events are given {len(times)} times, `time_bias` is "
                f"{self.reads_times}"
            )
        length = events.shape[1]
        places = left_aligned(mask)  # padding comes last, so what is causal does not look at it
        states = self.project(places.aligned(events)) * math.sqrt(self.width)  # (B, L, H)
        states = self.dropout(states + self.positions[:length])
        buckets = [time_buckets(one.gather(1, places.order), self.num_buckets) for one in times]
        for block in self.blocks:
            states = block(states, *buckets)
        normed: Tensor = self.norm(states)
        return places.back(normed) * mask.unsqueeze(-1)

    def forward(self, events: Tensor, mask: Tensor, *times: Tensor) -> Tensor:
        """Encode ``(B, L, W)`` events with a ``(B, L)`` mask, and times, to ``(B, H)``."""
        return latest(self.every(events, mask, *times))


class Block(nn.Module):
    """Pointwise attention of every event to itself and earlier ones, gated, added to what came in.

    Args:
        width: Width H of the states.
        num_heads: Heads A of the attention; they share the biases.
        num_distances: How many distances between events have a bias, at least L.
        num_buckets: How many buckets of time have a bias; 0 for no bias by time.
        dropout: Share dropped in training.
    """

    def __init__(
        self, width: int, *, num_heads: int, num_distances: int, num_buckets: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.parts = nn.Linear(width, 4 * width, bias=False)
        self.distance_bias = nn.Parameter(torch.randn(num_distances) * BIAS_STD)
        self.time_bias = nn.Parameter(torch.randn(num_buckets) * BIAS_STD) if num_buckets else None
        self.mixed_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, width)

    def forward(self, states: Tensor, *buckets: Tensor) -> Tensor:
        """Map states ``(B, L, H)`` to ``(B, L, H)``; buckets of time are ``(B, L, L)``."""
        length = states.shape[1]
        gate, *others = functional.silu(self.parts(self.norm(states))).chunk(4, dim=-1)
        value, query, key = (
            split_heads(part, self.num_heads) for part in others
        )  # (B, A, L, H / A)
        columns = torch.arange(length, device=states.device)
        distance = columns.unsqueeze(1) - columns  # (L, L)
        scores = query @ key.transpose(-1, -2)  # (B, A, L, L)
        scores = scores + self.distance_bias[distance.clamp(min=0)]
        if self.time_bias is not None:
            # Not an embedding: its gradient is 20 times as slow on a CPU, for rows of one number.
            by_time = self.time_bias.index_select(0, buckets[0].flatten()).view_as(buckets[0])
            scores = scores + by_time.unsqueeze(1)
        share = (distance >= 0) / (columns + 1).unsqueeze(1)  # (L, L)
        mixed = (functional.silu(scores) * share.to(scores.dtype)) @ value  # (B, A, L, H / A)
        mixed = self.mixed_norm(mixed.transpose(1, 2).flatten(start_dim=2))  # (B, L, H)
        added: Tensor = self.output(self.dropout(mixed * gate))
        return states + added


def time_buckets(times: Tensor, num_buckets: int) -> Tensor:
    """Buckets ``(B, L, L)`` of the time from the event of a column to that of a row.

    In double precision: rounding must not put a pair into another bucket when the model is served.

    Args:
        times: ``(B, L)`` int64 seconds.
        num_buckets: How many there are; the last one is open.
    """
    seconds = (times.unsqueeze(2) - times.unsqueeze(1)).clamp(min=1)  # (B, L, L)
    buckets = (seconds.double().log() / BUCKET_WIDTH).int()
    return buckets.clamp(max=num_buckets - 1)
