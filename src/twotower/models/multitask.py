"""From what a ranker made of its inputs to one logit a task, the task that is ranked by first.

* shared bottom: a linear layer a task on the same input (Caruana 1997, "Multitask Learning");
* mixture of experts: a task looks at its own mean of K small networks,

      f_t = sum_k softmax(G_t x)_k relu(E_k x + e_k),    logit_t = v_t . f_t + b_t,

  so that tasks that have little in common can use different ones (Ma et al. 2018, "Modeling Task
  Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts").

Shapes: B rows, W width of the input, T tasks, K experts, E width of an expert.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Heads(Protocol):
    """What gives a logit a task; a `torch.nn.Module`, built as ``heads(input_width=, num_tasks=)``.

    In YAML it stands with ``_partial_: true``.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Map ``(B, W)`` to logits ``(B, T)``."""


class SharedBottom(nn.Module):
    """A linear layer a task: (W + 1) T parameters.

    Args:
        input_width: Width W of the input.
        num_tasks: How many tasks T.
    """

    def __init__(self, *, input_width: int, num_tasks: int) -> None:
        super().__init__()
        self.logits = nn.Linear(input_width, num_tasks)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, W)`` to logits ``(B, T)``."""
        logits: Tensor = self.logits(x)
        return logits


class MMoE(nn.Module):
    """A gated mixture of experts a task: (W + 1) K E + W K T + (E + 1) T parameters.

    Args:
        input_width: Width W of the input.
        num_tasks: How many tasks T.
        num_experts: How many experts K.
        expert_width: Width E of an expert.

    Raises:
        ValueError: When there is no expert, or it has no width.
    """

    def __init__(
        self, *, input_width: int, num_tasks: int, num_experts: int = 4, expert_width: int = 32
    ) -> None:
        super().__init__()
        problems = [
            f"mixture of experts: `{name}` must be at least 1, got {value}"
            for name, value in (("num_experts", num_experts), ("expert_width", expert_width))
            if value < 1
        ]
        if problems:
            raise ValueError("\n".join(problems))
        self.experts = nn.Linear(input_width, num_experts * expert_width)
        self.gates = nn.Linear(input_width, num_tasks * num_experts, bias=False)
        self.towers = nn.ModuleList(nn.Linear(expert_width, 1) for _ in range(num_tasks))
        self.num_experts = num_experts

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, W)`` to logits ``(B, T)``."""
        experts = self.experts(x).relu().unflatten(-1, (self.num_experts, -1))  # (B, K, E)
        gates = self.gates(x).unflatten(-1, (-1, self.num_experts)).softmax(dim=-1)  # (B, T, K)
        mixed = gates @ experts  # (B, T, E)
        return torch.cat([tower(mixed[:, task]) for task, tower in enumerate(self.towers)], dim=-1)
