"""What the training of a stage takes over from an earlier run besides the weights of its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from twotower.training.optimizers import JointOptimizer


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What a stage takes over from an earlier run besides the weights.

    Args:
        weights: State of the earlier task by name, such as what its objective remembers.
        optimizers: State of every optimizer by the name of its rate; empty where it is lost.
        sources: Of every table parameter by name (V,): the earlier row that a row goes on from, -1
            where it is new.
    """

    weights: Mapping[str, Tensor]
    optimizers: Mapping[str, Mapping[int, Any]]
    sources: Mapping[str, Tensor]

    def restore(self, optimizer: JointOptimizer, model: nn.Module) -> None:
        """Give an optimizer what the earlier one knew.

        Args:
            optimizer: Fresh, of the model.
            model: The model of the stage.
        """
        names = {id(p): name for name, p in model.named_parameters()}
        for member in optimizer.members:
            saved = self.optimizers.get(member.param_groups[0]["name"])
            if saved is None:
                continue
            params = [p for group in member.param_groups for p in group["params"]]
            for place, param in enumerate(params):
                source = self.sources.get(names.get(id(param), ""))
                _restore(member.state[param], saved.get(place, {}), param, source)


def _restore(
    own: dict[str, Any], saved: Mapping[str, Any], param: Tensor, source: Tensor | None
) -> None:
    """State of one parameter; of a table, row by row."""
    for name, value in saved.items():
        if source is None:
            own[name] = value.to(param.device) if value.dim() else value.clone()
            if not value.dim() and param.device.type == "cuda":
                own[name] = own[name].to(param.device)  # of a fused optimizer
        elif name in own and value.dim() == 0:
            own[name] = value.clone()
        elif name in own:
            known = (source >= 0).nonzero().flatten()
            own[name][known.to(param.device)] = value[source[known]].to(own[name])
