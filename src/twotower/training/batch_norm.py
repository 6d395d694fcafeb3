"""Batch normalisation over the shares of several processes.

Every process gathers the mean m_r and the sum of squares about it, S_r, of the n_r rows of each:

    m = sum_r n_r m_r / N,    variance = sum_r (S_r + n_r (m_r - m)^2) / N.

Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances". Gathering is differentiable, so the gradient is that of one process with the whole
batch. `torch.nn.SyncBatchNorm` does the same on GPUs alone.

Shapes: n rows of this process, N of all, R processes, H features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from twotower.losses.ranks import Ranks


class SynchronisedBatchNorm(nn.BatchNorm1d):
    """A batch norm with the weights and running statistics of another one.

    Args:
        norm: The other one, which sees a share alone.
        ranks: The processes.
    """

    def __init__(self, norm: nn.BatchNorm1d, ranks: Ranks) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.ranks = ranks
        self.has_share = True

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(n, H)`` to ``(n, H)``; one row of all is normalised as in evaluation."""
        if not self.training:
            return super().forward(inputs)
        rows = inputs.float()
        own = rows if self.has_share else rows[:0]
        counts = self.ranks.counts(len(own))
        total = sum(counts)
        if total == 1:
            return functional.batch_norm(
                inputs, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        mean = own.sum(dim=0) / max(len(own), 1)  # (H,)
        squares = (own - mean).square().sum(dim=0)  # (H,)
        gathered = self.ranks.gather(torch.stack([mean, squares]).unsqueeze(0))  # (R, 2, H)
        means, squares = gathered[:, 0], gathered[:, 1]
        weights = torch.tensor(counts, dtype=rows.dtype, device=rows.device).unsqueeze(1)  # (R, 1)
        mean = (weights * means).sum(dim=0) / total
        variance = (squares + weights * (means - mean).square()).sum(dim=0) / total
        self._remember(mean.detach(), variance.detach() * total / (total - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((rows - mean) * scale + self.bias).to(inputs.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1


def synchronise(model: nn.Module, ranks: Ranks) -> None:
    """Put synchronised batch norms into a model, in the places of those it has."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(module, name, SynchronisedBatchNorm(child, ranks).to(child.weight.device))


def hold_share(model: nn.Module, has_share: bool) -> None:
    """Say whether the rows of the next batch belong to this process, or are another one's."""
    for module in model.modules():
        if isinstance(module, SynchronisedBatchNorm):
            module.has_share = has_share
