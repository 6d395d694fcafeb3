"""The sampled softmax and its gradient in one pass, a block of queries at a time.

The loss is that of `twotower.losses.sampled_softmax`. With o_b the logarithm of the sum over the
candidates of query b, and w_n the weight of a target n,

    loss = sum_n w_n (log(exp(t_n) + exp(o_b)) - t_n),    t_n = s_n / T,
    dloss/do_b = g_b = sum over the targets n of b of w_n sigmoid(o_b - t_n),
    dloss/d(logit of b and c) = g_b exp(logit - o_b).

All of it is known as soon as the logits of a query are, so the block of logits that gave the sum is
turned into its own gradient in place and multiplied out, and then forgotten. The matrix (B, C) is
never there, nothing is recomputed, and on a CPU a block stays in the cache: most of the time of the
plain form goes into carrying matrices to memory and back. Three matrix products are left. The
idea of taking the gradient in the forward pass is that of the fused linear cross-entropy in Hsu et
al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training".

In half precision the loss stays in float32 and the products narrow. On a CPU those of the gradient
do: weights of candidates, between 0 and 1, times vectors in bfloat16, added up in float32; a logit
is never rounded, for an exponential would make much of it. On a GPU the sums over candidates come
from `twotower.losses.triton_softmax`: products of bfloat16 vectors, added up in float32, logits
among them. Scores of targets, weights and further sums stay in float32.

Shapes: B queries, N targets, C candidates, D width of the vectors, b queries of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from twotower.losses.exponentials import Exponentials
from twotower.losses.logits import Logits
from twotower.losses.scores import target_scores, widened
from twotower.losses.softmax_kernels import Kernels, cpu_precision, kernel_precision

Places: TypeAlias = slice | Tensor

# Rows of a block stand a cache line further apart than they are long: a power of two apart, they
# share the few places of a cache that such addresses have, and their product takes twice as long.
APART = 16


def fused_softmax(
    queries: Tensor,
    targets: Tensor,
    candidates: Tensor,
    logits: Logits,
    *,
    further: Tensor | None = None,
    weights: Tensor | None = None,
    owners: Tensor | None = None,
) -> Tensor:
    """Weighted mean of the sampled softmax over all targets.

    Args:
        queries: ``(B, D)``.
        targets: Vectors of the targets ``(N, D)``.
        candidates: ``(C, D)``, at least one.
        logits: Temperature, correction and mask.
        further: Logarithm of a further sum in that of each query, ``(B,)``, the lowest number where
            there is none; None for none at all.
        weights: ``(N,)`` non-negative, or None for equal weights.
        owners: Query of every target ``(N,)``; None where every query has the one of its place.

    Returns:
        A scalar, differentiable once in queries, targets, candidates and further sums.
    """
    kernels = logits.kernels(kernel_precision(queries, candidates))
    logits = replace(logits, products=cpu_precision(queries, candidates))
    queries, candidates = widened(queries), widened(candidates)
    own = target_scores(queries, targets, owners) / logits.temperature  # (N,)
    if weights is None:
        shares = own.new_full(own.shape, 1 / max(1, len(own)))
    else:
        shares = weights.to(own.dtype)
        shares = shares / shares.sum().clamp_min(torch.finfo(own.dtype).tiny)
    loss: Tensor = _FusedSoftmax.apply(  # type: ignore[no-untyped-call]
        queries, own, candidates, further, shares, owners, kernels or logits
    )
    return loss


class _FusedSoftmax(torch.autograd.Function):
    """Loss with its gradients, which the backward pass only scales."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context
        queries: Tensor,
        own: Tensor,
        candidates: Tensor,
        further: Tensor | None,
        shares: Tensor,
        owners: Tensor | None,
        logits: Logits | Kernels,
    ) -> Tensor:
        """Scalar loss of logits `own` (N,) with weights `shares` (N,) that sum to one."""
        with torch.autocast(device_type=queries.device.type, enabled=False):
            if isinstance(logits, Kernels):
                found = _by_kernels(queries, own, candidates, further, shares, owners, logits)
            else:
                found = _by_blocks(queries, own, candidates, further, shares, owners, logits)
        log_sums = found.log_sums
        log_sums = log_sums if owners is None else log_sums[owners]
        apart = log_sums - own  # (N,)
        rate = 1 / logits.temperature
        ctx.save_for_backward(
            found.of_queries.mul_(rate),
            -shares * torch.sigmoid(apart),
            found.of_candidates.mul_(rate),
            found.of_further,
        )
        return (shares * torch.logaddexp(apart, torch.zeros_like(apart))).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ANN401
        """Scale what was found.

        Raises:
            RuntimeError: When a graph is asked for, to differentiate what was found.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("the fused softmax can be differentiated only once (create_graph)")
        found = ctx.saved_tensors
        if gradient.device.type != "cpu" or float(gradient) != 1:
            found = (None if one is None else one * gradient for one in found)
        return *found, None, None, None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Sums of the candidates, and gradients.

    Args:
        log_sums: ``(B,)``, further sums among them.
        of_queries: Gradient by T ``(B, D)``.
        of_candidates: Gradient by T ``(C, D)``.
        of_further: ``(B,)``, or None where there is no further sum.
    """

    log_sums: Tensor
    of_queries: Tensor
    of_candidates: Tensor
    of_further: Tensor | None


def _by_blocks(
    queries: Tensor,
    own: Tensor,
    candidates: Tensor,
    further: Tensor | None,
    shares: Tensor,
    owners: Tensor | None,
    logits: Logits,
) -> _Found:
    """Block of queries by block, the logits of each in its gradient's place."""
    narrow = logits.products or queries.dtype
    narrowed = candidates.to(narrow)
    exponentials = Exponentials(logits, queries, candidates)
    of_queries = torch.empty_like(queries)
    of_candidates = _matrix(queries, queries.shape[1], len(candidates)).zero_()  # (D, C)
    log_sums = torch.empty_like(queries[:, 0])  # (B,)
    of_further = None if further is None else torch.empty_like(further)  # (B,)
    starts = logits.starts(queries, candidates)
    blocks = _targets_by_block(owners, starts, len(own))
    room = _matrix(queries, min(starts.step, len(queries)), len(candidates))
    for start, mine in zip(starts, blocks, strict=True):
        block = queries[start : start + starts.step]  # (b, D)
        stop = start + len(block)
        values = room[: len(block)]
        sums, own_sums = exponentials.of(start, values)
        others = own_sums if further is None else torch.logaddexp(own_sums, further[start:stop])
        log_sums[start:stop] = others
        pull = _pull(shares[mine], own[mine], others, owners, start, mine)  # (b,) g
        if further is not None and of_further is not None:
            of_further[start:stop] = pull * (further[start:stop] - others).exp()
            pull = pull * (own_sums - others).exp()
        # The factor of a query goes to the narrow side of both products.
        scale = (pull / sums).unsqueeze(1)  # (b, 1)
        values = values.to(narrow)
        torch.mul(torch.mm(values, narrowed), scale, out=of_queries[start:stop])
        factors = (block * scale).T.to(narrow)  # (D, b)
        if narrow == of_candidates.dtype:
            of_candidates.addmm_(factors, values)  # (D, C)
        else:
            of_candidates.add_(torch.mm(factors, values))
    return _Found(
        log_sums=log_sums,
        of_queries=of_queries,
        of_candidates=of_candidates.T,
        of_further=of_further,
    )


def _matrix(like: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix for products, whose rows are `APART`."""
    return like.new_empty(rows, columns + APART)[:, :columns]


def _by_kernels(
    queries: Tensor,
    own: Tensor,
    candidates: Tensor,
    further: Tensor | None,
    shares: Tensor,
    owners: Tensor | None,
    kernels: Kernels,
) -> _Found:
    """The same from two passes of a kernel.

    The gradient of the candidates is taken at once here too: for the backward pass to do it, as
    much would have to be kept.
    """
    problem = kernels.problem(queries, candidates)
    sums, means = problem.sums()  # (B,), (B, D)
    log_sums = sums if further is None else torch.logaddexp(sums, further)
    pull = _pull(shares, own, log_sums, owners, 0, slice(None))  # (B,) g
    shift = log_sums - pull.log()  # (B,), infinity where nothing pulls
    of_candidates, of_further = problem.of_candidates(shift), None
    if further is not None:
        of_further = pull * (further - log_sums).exp()
        pull = pull * (sums - log_sums).exp()
    return _Found(
        log_sums=log_sums,
        of_queries=means.mul_(pull.unsqueeze(1)),
        of_candidates=of_candidates,
        of_further=of_further,
    )


def _pull(
    shares: Tensor, own: Tensor, others: Tensor, owners: Tensor | None, start: int, mine: Places
) -> Tensor:
    """What the targets of a block (n,) let its queries (b,) push the candidates away with."""
    if owners is None:
        return shares * torch.sigmoid(others - own)
    at = owners[mine] - start  # (n,)
    share = shares * torch.sigmoid(others[at] - own)
    return torch.zeros_like(others).index_add_(0, at, share)


def _targets_by_block(owners: Tensor | None, starts: range, num_targets: int) -> Sequence[Places]:
    """The targets of each block of queries; `owners` ``(N,)`` is the query of every target."""
    if owners is None or not starts:
        return [slice(start, min(start + starts.step, num_targets)) for start in starts]
    ordered, places = owners.sort()
    later = torch.tensor(starts[1:], dtype=owners.dtype, device=owners.device)
    edges = torch.searchsorted(ordered, later)
    return places.tensor_split(edges.tolist())
