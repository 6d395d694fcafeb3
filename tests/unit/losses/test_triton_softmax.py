"""The kernels of the sampled softmax against the plain formula in float64.

Without a GPU they run in Triton's interpreter: `TRITON_INTERPRET=1 pytest <this file>`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels import DEVICE, INTERPRETED, NEEDS_KERNELS
from twotower.losses import fused_softmax as module
from twotower.losses.fused_softmax import fused_softmax
from twotower.losses.logits import Logits
from twotower.losses.masks import OnCandidates, PositiveMask
from twotower.losses.reduction import weighted_mean
from twotower.losses.sampled_softmax import sampled_softmax
from twotower.losses.scores import Scores, dot_products

pytestmark = NEEDS_KERNELS

TEMPERATURE = 0.2
NUM_FORMS = 5  # of the blocks, that the tuning chooses from
# Of values and of gradients, as parts of the largest.
TOLERANCE = {torch.float32: (2e-6, 1e-5), torch.bfloat16: (4e-3, 1.5e-2)}


@pytest.fixture(params=list(TOLERANCE), ids=["float32", "bfloat16"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Products of the kernels, whatever device and vectors are.

    The interpreter keeps bfloat16 as whole numbers and multiplies those; its products are mended.
    """
    monkeypatch.setattr(module, "kernel_precision", lambda *_: request.param)
    if INTERPRETED:
        from triton.language import float32
        from triton.runtime.interpreter import InterpreterBuilder

        product = InterpreterBuilder.create_dot

        def create_dot(builder, left, right, *rest):
            if request.param == torch.bfloat16:
                left, right = (builder.cast_impl(side, float32) for side in (left, right))
            return product(builder, left, right, *rest)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    return request.param


@pytest.fixture(autouse=True)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One form of the blocks, as in the interpreter: to compile and try all takes minutes."""
    from twotower.losses.triton_sums import weighted_sums

    place = getattr(request, "param", 0)
    monkeypatch.setattr(weighted_sums, "configs", [weighted_sums.configs[place]])


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_vectors(*shape: int, seed: int) -> Tensor:
    return functional.normalize(draw(*shape, seed=seed), dim=-1)


def integers(high: int, num: int, seed: int) -> Tensor:
    return torch.randint(high, (num,), generator=torch.Generator().manual_seed(seed))


def mask_of(num_queries: int, num_items: int, *, targets: bool, known: int) -> PositiveMask:
    """Users of three queries, who took `known` items each, the later ones after the query."""
    num_users = -(-num_queries // 3)
    return PositiveMask(
        target_rows=integers(num_items, num_queries, 3) if targets else None,
        users=integers(num_users, num_queries, 4),
        num_users=num_users,
        known_users=torch.arange(num_users).repeat_interleave(known),
        known_rows=integers(num_items, known * num_users, 5),
        known_places=torch.arange(known).repeat(num_users).int(),
        num_seen=integers(known + 1, num_queries, 6),
        never=torch.arange(num_items) % 5 == 4,
    )


def on_device(mask: PositiveMask) -> PositiveMask:
    values = {name: getattr(mask, name) for name in mask.__dataclass_fields__}
    moved = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in values.items()}
    return PositiveMask(**moved)


def compare(
    precision: torch.dtype,
    leaves: tuple[Tensor, ...],
    counts: Tensor,
    rows: Tensor,
    mask: PositiveMask,
    *,
    weights: Tensor | None = None,
    owners: Tensor | None = None,
    has_further: bool = False,
) -> None:
    """Loss and gradients by kernels, and by autograd from all logits at once in float64."""
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    queries, targets, candidates = leaves[:3]
    found, masked, all_counts = dot_products(queries, candidates), mask.of(rows), counts
    if has_further:
        further = leaves[3]
        found = torch.cat([found, TEMPERATURE * further[:, None]], dim=1)
        all_counts = torch.cat([counts, counts.new_zeros(1)])
        masked = torch.cat([masked, torch.zeros(len(queries), 1, dtype=torch.bool)], dim=1)
    scores = Scores.of(queries, targets, found, owners)
    plain = weighted_mean(sampled_softmax(scores, all_counts, masked, TEMPERATURE), weights)
    expected = torch.autograd.grad(3 * plain, leaves)

    ours = [leaf.detach().float().to(DEVICE).requires_grad_() for leaf in leaves]
    logits = Logits(
        temperature=TEMPERATURE,
        log_expected_count=counts.float().to(DEVICE),
        masked=OnCandidates(on_device(mask), rows.to(DEVICE)),
    )
    loss = fused_softmax(
        *ours[:3],
        logits,
        further=ours[3] if has_further else None,
        weights=None if weights is None else weights.to(DEVICE),
        owners=None if owners is None else owners.to(DEVICE),
    )
    rtol, share = TOLERANCE[precision]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.cpu().double(), plain, rtol=rtol, atol=rtol)
    for got, right in zip(torch.autograd.grad(3 * loss, ours), expected, strict=True):
        highest = float(right.abs().max())
        torch.testing.assert_close(
            got.cpu().double(), right, rtol=0, atol=share * max(highest, 1e-30)
        )


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize(("num_queries", "num_candidates"), [(1, 1), (1, 130), (17, 33), (64, 130)])
@pytest.mark.parametrize("known", [0, 4])
def test_value_and_gradients_are_those_of_the_plain_formula(
    precision: torch.dtype, num_queries: int, num_candidates: int, width: int, known: int
) -> None:
    rows = integers(40, num_candidates, 2)
    shapes = (num_queries, num_queries, num_candidates)
    leaves = tuple(unit_vectors(num, width, seed=k) for k, num in enumerate(shapes))
    counts = draw(num_candidates, seed=8)
    compare(precision, leaves, counts, rows, mask_of(num_queries, 40, targets=True, known=known))


@pytest.mark.parametrize("spread", [1.0, 15.0])
def test_items_that_a_batch_has_often(precision: torch.dtype, spread: float) -> None:
    """Half of 300 targets and of 400 candidates are of one item: they fill whole tiles.

    Logarithms of expected counts are up to 45 away from zero with the wide spread.
    """
    rows, targets = (integers(90, num, seed) for num, seed in ((400, 2), (300, 3)))
    rows[1::2], targets[::2] = 60, 60
    leaves = tuple(unit_vectors(num, 16, seed=k) for k, num in enumerate((300, 300, 400)))
    mask = PositiveMask(**{**vars(mask_of(300, 90, targets=True, known=0)), "target_rows": targets})
    assert mask.of(rows)[0].sum() > 200
    assert not mask.never[60]
    compare(precision, leaves, spread * draw(400, seed=8), rows, mask)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has one form of the blocks")
@pytest.mark.parametrize("blocks", range(NUM_FORMS), indirect=True)
@pytest.mark.parametrize("precision", [torch.bfloat16], indirect=True)
@pytest.mark.parametrize("known", [0, 4])
def test_all_forms_of_the_blocks(precision: torch.dtype, known: int) -> None:
    rows = integers(400, 300, 2)
    leaves = tuple(unit_vectors(num, 128, seed=k) for k, num in enumerate((200, 200, 300)))
    counts = draw(300, seed=8)
    compare(precision, leaves, counts, rows, mask_of(200, 400, targets=True, known=known))


@pytest.mark.parametrize("has_further", [False, True])
@pytest.mark.parametrize("targets", [False, True])
def test_owners_weights_further_sums_and_many_known_positives(
    precision: torch.dtype, targets: bool, has_further: bool
) -> None:
    """Over the border of a tile on both sides; more pieces a tile than are looked at together.

    Query 2 has all candidates masked, and some queries have no target.
    """
    num_queries, num_candidates, num_targets = 150, 140, 170
    shapes = (num_queries, num_targets, num_candidates)
    leaves = tuple(unit_vectors(num, 16, seed=k) for k, num in enumerate(shapes))
    if has_further:
        leaves = (*leaves, draw(num_queries, seed=11))
    owners = integers(num_queries, num_targets, 12)
    assert len(owners.unique()) < num_queries
    owners[:2] = 2
    mask = mask_of(num_queries, 30, targets=targets, known=20)
    known = torch.cat([mask.known_users, torch.full((30,), mask.num_users)])
    mask.users[2], mask.num_seen[2] = mask.num_users, 30
    mask = PositiveMask(
        target_rows=mask.target_rows,
        users=mask.users,
        num_users=mask.num_users + 1,
        known_users=known,
        known_rows=torch.cat([mask.known_rows, torch.arange(30)]),
        known_places=torch.cat([mask.known_places, torch.arange(30).int()]),
        num_seen=mask.num_seen,
        never=mask.never,
    )
    rows = integers(30, num_candidates, 13)
    assert mask.of(rows)[2].all()
    assert not mask.of(rows)[:2].all(dim=1).any()
    assert mask.tiles(rows).known.longest > 128
    compare(
        *(precision, leaves, draw(num_candidates, seed=8), rows, mask),
        weights=draw(num_targets, seed=9).abs(),
        owners=owners,
        has_further=has_further,
    )


def test_a_query_without_candidates_has_no_loss_and_pulls_at_nothing(
    precision: torch.dtype,
) -> None:
    """As in the form that torch computes, and no gradient is a not-a-number."""
    queries, targets, candidates = (
        unit_vectors(3, 16, seed=k).float().to(DEVICE).requires_grad_() for k in range(3)
    )
    mask = mask_of(3, 5, targets=True, known=0)
    mask = on_device(PositiveMask(**{**vars(mask), "never": None}))
    logits = Logits(
        temperature=0.05,
        log_expected_count=torch.zeros(3, device=DEVICE),
        masked=OnCandidates(mask, mask.target_rows[:1].expand(3)),
    )
    weights = torch.tensor([1.0, 0.0, 0.0], device=DEVICE)
    loss = fused_softmax(queries, targets, candidates, logits, weights=weights)
    assert loss == 0
    for found in torch.autograd.grad(loss, (queries, targets, candidates)):
        assert torch.equal(found, torch.zeros_like(found))


def test_logits_far_from_zero_do_not_overflow(precision: torch.dtype) -> None:
    """Scores 1 and 0 with one candidate, of targets -1 and 1, at a temperature of 0.002.

    Logits are 500 and 0, of targets -500 and 500: the losses are 1000 and 0, and only the first
    query pulls, with half of 1 / T.
    """
    queries = torch.eye(16, device=DEVICE)[:2]
    targets = torch.stack([-queries[0], queries[1]]).requires_grad_()
    candidates = torch.eye(16, device=DEVICE)[:1].requires_grad_()
    mask = on_device(mask_of(2, 5, targets=False, known=1))
    mask.num_seen.zero_()
    logits = Logits(
        temperature=0.002,
        log_expected_count=torch.zeros(1, device=DEVICE),
        masked=OnCandidates(mask, torch.zeros(1, dtype=torch.long, device=DEVICE)),
    )
    loss = fused_softmax(queries.requires_grad_(), targets, candidates, logits)
    torch.testing.assert_close(loss.item(), 500.0)
    of_candidates = torch.autograd.grad(loss, candidates)[0]
    torch.testing.assert_close(of_candidates.cpu(), 250.0 * torch.eye(16)[:1])


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


def test_nothing_is_larger_than_the_vectors_and_the_known_positives(
    precision: torch.dtype,
) -> None:
    """512 x 512 would be 2^18 numbers; vectors are 2^13, of which the interpreter copies bytes."""
    num, mask = 512, mask_of(512, 4096, targets=True, known=2)
    vectors = [unit_vectors(num, 16, seed=k).float().to(DEVICE).requires_grad_() for k in range(3)]
    logits = Logits(
        temperature=1.0,
        log_expected_count=torch.zeros(num, device=DEVICE),
        masked=OnCandidates(on_device(mask), integers(4096, num, 7).to(DEVICE)),
    )
    with Largest() as largest:
        fused_softmax(*vectors, logits).backward()
    assert 2**12 < largest.numel <= 4 * 2**13
