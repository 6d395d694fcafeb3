"""The fused softmax against the plain formula, differentiated by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from twotower.losses.fused_softmax import fused_softmax
from twotower.losses.logits import Logits
from twotower.losses.masks import PositiveMask
from twotower.losses.reduction import weighted_mean
from twotower.losses.sampled_softmax import sampled_softmax
from twotower.losses.scores import Scores, dot_products

QUERIES, CANDIDATES, DIM, TEMPERATURE = 11, 7, 3, 0.3
# Targets of the queries in any order; query 4 has none, query 2 has three.
OWNERS = torch.tensor([2, 0, 1, 2, 3, 5, 6, 10, 9, 8, 7, 2, 0])


def draw(*shape: int, seed: int = 0) -> Tensor:
    state = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=state)


def inputs(num_targets: int, longest: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (QUERIES, num_targets, CANDIDATES)
    drawn = [draw(n, DIM, seed=k) for k, n in enumerate(shapes)]
    queries, targets, candidates = (one * longest / one.norm(dim=1).max() for one in drawn)
    return queries.requires_grad_(), targets.requires_grad_(), candidates.requires_grad_()


MASKED = draw(QUERIES, CANDIDATES, seed=7) > 0.8
MASKED[3] = True  # nothing stands against this query
COUNTS = draw(CANDIDATES, seed=8)


def logits(block: int | None) -> Logits:
    return Logits(
        temperature=TEMPERATURE,
        log_expected_count=COUNTS.float(),
        masked=MASKED,
        block=block,
    )


@pytest.mark.parametrize("longest", [3.0, 15.0])
@pytest.mark.parametrize("with_further", [False, True])
@pytest.mark.parametrize("owners", [None, OWNERS])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("block", [None, 1, 4, 11, 100])
def test_value_and_gradients_are_those_of_the_plain_formula(
    block: int | None, weighted: bool, owners: Tensor | None, with_further: bool, longest: float
) -> None:
    """A further sum is that of one more candidate, of every query its own; here but for one.

    Vectors of length 15 give logits of 750, above and below, whose exponentials are not to be had.
    """
    num_targets = QUERIES if owners is None else len(owners)
    leaves = inputs(num_targets, longest)
    weights = draw(num_targets, seed=9).abs() if weighted else None
    queries, targets, candidates = leaves
    found = dot_products(queries, candidates)
    counts, masked, further = COUNTS.float().double(), MASKED, None
    if with_further:
        further = draw(QUERIES, seed=10)
        further[5] = torch.finfo(further.dtype).min
        leaves = (*leaves, further.requires_grad_())
        found = torch.cat([found, TEMPERATURE * further[:, None].clamp(min=-9)], dim=1)
        counts = torch.cat([counts, counts.new_zeros(1)])
        masked = torch.cat([MASKED, torch.arange(QUERIES)[:, None] == 5], dim=1)
    scores = Scores.of(queries, targets, found, owners)
    plain = weighted_mean(sampled_softmax(scores, counts, masked, TEMPERATURE), weights)
    vectors = queries, targets, candidates
    fused = fused_softmax(*vectors, logits(block), further=further, weights=weights, owners=owners)
    torch.testing.assert_close(fused, plain, rtol=1e-13, atol=0)
    pairs = zip(
        torch.autograd.grad(3 * fused, leaves), torch.autograd.grad(3 * plain, leaves), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(
        lambda *leaves: fused_softmax(*leaves, logits(4), owners=OWNERS), inputs(len(OWNERS))
    )


def test_hand_arithmetic() -> None:
    """One query (1, 0), target score 2, candidates 1 and 3, of which 3 is expected twice.

    exp(2) / (exp(2) + exp(1) + exp(3) / 2) with temperature 1.
    """
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    target = torch.tensor([[2.0, 5.0]], dtype=torch.float64)
    candidates = torch.tensor([[1.0, -3.0], [3.0, 9.0]], dtype=torch.float64)
    loss = fused_softmax(
        *(query, target, candidates),
        Logits(
            temperature=1.0,
            log_expected_count=torch.tensor([1.0, 2.0], dtype=torch.float64).log(),
            masked=torch.zeros(1, 2, dtype=torch.bool),
        ),
    )
    e = 2.718281828459045
    expected = -torch.tensor(e**2 / (e**2 + e + e**3 / 2), dtype=torch.float64).log()
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return found


@pytest.mark.parametrize("later", [True, False])
def test_no_more_than_a_block_of_scores_or_of_the_mask_is_ever_there(later: bool) -> None:
    """All 2,048 x 2,048 would be 2^22 numbers; every query is a user with five positives."""
    num, known = 2048, torch.arange(2048).repeat_interleave(5)
    mask = PositiveMask(
        target_rows=torch.arange(num),
        users=torch.arange(num),
        num_users=num,
        known_users=known,
        known_rows=torch.randint(num, (5 * num,)),
        known_places=torch.arange(5).repeat(num).int(),
        num_seen=None if later else torch.full((num,), 3),
    )
    vectors = [draw(num, 2, seed=k).float().requires_grad_() for k in range(3)]
    asked = Logits(
        temperature=1.0,
        log_expected_count=torch.zeros(num),
        masked=mask.on(torch.arange(num)),
    )
    with Largest() as largest:
        fused_softmax(*vectors, asked).backward()
    assert 2**19 < largest.numel <= 2**20 + 512 * 16  # of 512 queries, with a line more


def test_a_gradient_of_the_gradient_is_refused() -> None:
    leaves = inputs(QUERIES)
    loss = fused_softmax(*leaves, logits(4))
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(loss, leaves, create_graph=True)


@pytest.mark.parametrize("halves", [True, False])
def test_in_half_precision_only_the_factors_of_gradients_are_rounded(halves: bool) -> None:
    """Vectors, or autocast, ask for it.

    A rounding to bfloat16 is off by at most 2^-8 of the number. Both factors of a product are
    rounded and what it gives: 3 * 2^-8 of the sum of the sizes of what is added up. What flows on
    to bfloat16 vectors is rounded once more.
    """
    exact = [leaf.detach().bfloat16().float() for leaf in inputs(QUERIES)]
    wide = [leaf.clone().requires_grad_() for leaf in exact]
    given = [leaf.bfloat16() if halves else leaf.clone() for leaf in exact]
    given = [leaf.requires_grad_() for leaf in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=not halves):
        loss = fused_softmax(*given, logits(4))
    other = fused_softmax(*wide, logits(4))
    assert loss.dtype == torch.float32
    assert loss == other

    queries, targets, candidates = exact
    found = dot_products(queries, candidates).requires_grad_()
    scores = Scores.of(queries, targets, found, None)
    plain = sampled_softmax(scores, COUNTS.float(), MASKED, TEMPERATURE).mean()
    (pull,) = torch.autograd.grad(plain, found)
    sizes = pull.abs() @ candidates.abs(), torch.zeros(()), pull.abs().T @ queries.abs()
    ours, theirs = torch.autograd.grad(loss, given), torch.autograd.grad(other, wide)
    for one, two, size in zip(ours, theirs, sizes, strict=True):
        bound = 2**-8 * (3.02 * size + halves * two.abs())
        assert ((one.float() - two).abs() <= bound + 1e-6).all()
    assert not torch.equal(ours[0].float(), theirs[0])


def test_float64_is_never_narrowed() -> None:
    leaves = inputs(QUERIES)
    with torch.autocast("cpu", torch.bfloat16):
        under = fused_softmax(*leaves, logits(4))
    pairs = zip(
        torch.autograd.grad(under, leaves),
        torch.autograd.grad(fused_softmax(*leaves, logits(4)), leaves),
        strict=True,
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
