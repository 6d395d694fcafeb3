"""Targets that share a query lose what they would lose with a query of their own each."""

from __future__ import annotations

import pytest
import torch

from twotower.losses.blockwise_softmax import BlockwiseSoftmax
from twotower.losses.cosine_contrastive import CosineContrastive
from twotower.losses.gbce import GBCE
from twotower.losses.masks import PositiveMask
from twotower.losses.negatives import Pool
from twotower.losses.pairwise import BPR
from twotower.losses.pool_loss import PoolLoss
from twotower.losses.sampled_softmax import SampledSoftmax
from twotower.losses.step import Step

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


def test_blockwise_softmax_shares_queries_too() -> None:
    """Two users of two and one targets, five items, each user with its positives masked."""
    state = torch.Generator().manual_seed(1)
    queries = torch.randn(2, 3, dtype=torch.float64, generator=state)
    items = torch.randn(5, 3, dtype=torch.float64, generator=state)
    step = Step(
        target_rows=torch.tensor([0, 3, 3]),
        weights=torch.ones(3, dtype=torch.float64),
        mask=PositiveMask(
            target_rows=None,
            users=torch.arange(2),
            num_users=2,
            known_users=torch.tensor([0, 0, 1, 1]),
            known_rows=torch.tensor([0, 3, 3, 4]),
        ),
        item_probability=torch.full((5,), 0.2),
        embed_queries=lambda: queries,
        embed_items=lambda rows: items[rows],
        embed_catalogue=lambda: items,
        owners=torch.tensor([0, 0, 1]),
    )
    scores = (queries @ items.T / 0.5).exp()
    first, second = scores[0, [1, 2, 4]].sum(), scores[1, [0, 1, 2]].sum()
    terms = ((scores[0, 0], first), (scores[0, 3], first), (scores[1, 3], second))
    expected = sum(((own + others) / own).log() for own, others in terms) / 3
    torch.testing.assert_close(BlockwiseSoftmax(temperature=0.5, block=2)(step), expected)
