"""A causal transformer over the history, in the form of SASRec.

Every event attends to itself and to earlier events; the state at the latest one is the user's.
Layers are normalised before attention and perceptron (Xiong et al. 2020, "On layer normalization in
the transformer architecture"), and once at the end. Positions are learned and counted from the
oldest event that is given, so the state at an event is the same whether or not later ones follow.

Kang and McAuley 2018, "Self-attentive sequential recommendation"; with many negatives and softmax
it is the strongest plain sequence model on MovieLens-1M: Klenitskiy and Vasilev 2023, "Turning
dross into gold loss: is BERT4Rec really better than SASRec?".

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


class CausalTransformer(nn.Module):
    """State of a causal transformer at the latest event; zeros for an empty history.

    Args:
        input_width: Width W of an embedded event.
        hidden: Width H of the states.
        max_length: Events that there are positions for.
        num_blocks: Blocks of attention and perceptron.
        num_heads: Heads of the attention; must divide `hidden`.
        expansion: Width of the perceptron's inner layer as a multiple of H.
        dropout: Share of inputs and outputs of every layer dropped in training.
        attention_dropout: Share of attention weights dropped in training; None for `dropout`. On a
            CPU drawing these B L^2 numbers a block takes longer than the attention itself.

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
        expansion: int = 1,
        dropout: float = 0.1,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__()
        numbers = {
            "hidden": hidden,
            "max_length": max_length,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
            "expansion": expansion,
        }
        check_sizes("transformer", numbers)
        self.width = hidden
        self.max_length = max_length
        self.project = (
            nn.Identity() if input_width == hidden else nn.Linear(input_width, hidden, bias=False)
        )
        self.positions = nn.Parameter(torch.randn(max_length, hidden) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(
                hidden,
                num_heads=num_heads,
                expansion=expansion,
                dropout=dropout,
                attention_dropout=dropout if attention_dropout is None else attention_dropout,
            )
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(hidden)

    def every(self, events: Tensor, mask: Tensor) -> Tensor:
        """States ``(B, L, H)`` after every event; zeros at the padding.

        Raises:
            ValueError: When histories are longer than `max_length`.
        """
        check_length("transformer", events.shape[1], self.max_length)
        places = left_aligned(mask)  # padding comes last, so what is causal does not look at it
        states = self.project(places.aligned(events)) * math.sqrt(self.width)  # (B, L, H)
        states = self.dropout(states + self.positions[: events.shape[1]])
        for block in self.blocks:
            states = block(states)
        normed: Tensor = self.norm(states)
        return places.back(normed) * mask.unsqueeze(-1)

    def forward(self, events: Tensor, mask: Tensor) -> Tensor:
        """Encode ``(B, L, W)`` events with a ``(B, L)`` mask to ``(B, H)``."""
        return latest(self.every(events, mask))


class Block(nn.Module):
    """Attention and a perceptron, each normalised before and added to what came in.

    Args:
        width: Width H of the states.
        num_heads: Heads A of the attention.
        expansion: Width of the perceptron's inner layer as a multiple of H.
        dropout: Share of inner and outer layers dropped in training.
        attention_dropout: Share of attention weights dropped in training.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        expansion: int,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.share = attention_dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(expansion * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, states: Tensor) -> Tensor:
        """Map states ``(B, L, H)`` to ``(B, L, H)``; each looks at itself and at earlier ones."""
        split = self.query_key_value(self.attention_norm(states)).chunk(3, dim=-1)
        query, key, value = (
            split_heads(part, self.num_heads) for part in split
        )  # (B, A, L, H / A)
        share = self.share if self.training else 0.0
        seen = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=share
        )
        states = states + self.dropout(self.output(seen.transpose(1, 2).flatten(start_dim=2)))
        mapped: Tensor = self.perceptron(states)
        return states + mapped
