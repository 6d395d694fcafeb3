"""Targets that share a query lose what they would lose with a query of their own each."""

from __future__ import annotations

import pytest
import torch

from twotower.losses.cosine_contrastive import CosineContrastive
from twotower.losses.gbce import GBCE
from twotower.losses.negatives import Pool
from twotower.losses.pairwise import BPR
from twotower.losses.pool_loss import PoolLoss
from twotower.losses.sampled_softmax import SampledSoftmax

OWNERS = torch.tensor([0, 0, 0, 2, 1, 2])


@pytest.mark.parametrize(
    "loss",
    [
        SampledSoftmax(temperature=0.3),
        BPR(temperature=0.3),
        CosineContrastive(weight=3.0, margin=0.1),
        GBCE(calibration=0.7, temperature=0.3),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_shared_queries_against_a_query_for_every_target(loss: PoolLoss) -> None:
    state = torch.Generator().manual_seed(0)

    def vectors(number: int) -> torch.Tensor:
        drawn = torch.randn(number, 4, dtype=torch.float64, generator=state)
        return torch.nn.functional.normalize(drawn, dim=1).requires_grad_()

    queries, targets, candidates = vectors(3), vectors(6), vectors(5)
    pool = Pool(
        vectors=candidates,
        rows=torch.arange(5),
        log_expected_count=torch.full((5,), 0.2, dtype=torch.float64),
    )
    masked = torch.rand(3, 5, generator=state) < 0.4
    masked[1] = True  # nothing stands against this query
    weights = torch.rand(6, generator=state)

    shared = loss(queries, targets, pool, masked, weights, OWNERS)
    own = loss(queries[OWNERS], targets, pool, masked[OWNERS], weights)
    torch.testing.assert_close(shared, own)
    leaves = (queries, targets, candidates)
    for one, other in zip(
        torch.autograd.grad(shared, leaves), torch.autograd.grad(own, leaves), strict=True
    ):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)
