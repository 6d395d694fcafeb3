"""The blockwise softmax against the one that holds all scores, and what it holds itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from twotower.losses import blockwise_softmax
from twotower.losses.blockwise_softmax import BlockwiseSoftmax
from twotower.losses.masks import PositiveMask
from twotower.losses.negatives import WholeCatalogue
from twotower.losses.objective import Objective
from twotower.losses.sampled_softmax import FullSoftmax
from twotower.losses.step import Step

NUM_ITEMS, DIM = 23, 4
TARGETS = torch.tensor([0, 3, 3, 22, 7, 11])
USERS = torch.tensor([0, 0, 1, 1, 2, 2])
# User 0 took 8 to 15, the second block of eight; user 1 took 1; user 2 nothing else.
KNOWN = [(0, row) for row in range(8, 16)] + [(1, 1), (1, 1)]
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0, 3.0], dtype=torch.float64)


def step_of(queries: Tensor, embed_items: Callable[[Tensor], Tensor], num_items: int) -> Step:
    return Step(
        target_rows=TARGETS,
        weights=WEIGHTS,
        mask=PositiveMask(
            target_rows=TARGETS,
            users=USERS,
            num_users=3,
            known_users=torch.tensor([user for user, _ in KNOWN]),
            known_rows=torch.tensor([row for _, row in KNOWN]),
        ),
        item_probability=torch.zeros(num_items),
        embed_queries=lambda: queries,
        embed_items=embed_items,
        embed_catalogue=lambda: pytest.fail("nobody asked for it"),
    )


def leaves(seed: int = 0) -> tuple[Tensor, Tensor]:
    state = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(n, DIM, dtype=torch.float64, generator=state).requires_grad_()
        for n in (len(TARGETS), NUM_ITEMS)
    )


@pytest.mark.parametrize("block", [1, 5, 8, 23, 1000])
def test_value_and_gradient_are_those_of_the_full_softmax(block: int) -> None:
    queries, items = leaves()
    step = step_of(queries, lambda rows: items[rows], NUM_ITEMS)
    full = Objective(loss=FullSoftmax(temperature=0.3), negatives=WholeCatalogue())(step)
    loss = BlockwiseSoftmax(temperature=0.3, block=block)(step)
    torch.testing.assert_close(loss, full, rtol=1e-13, atol=0)
    ours = torch.autograd.grad(loss, (queries, items))
    theirs = torch.autograd.grad(full, (queries, items))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


def test_it_is_the_cross_entropy_without_what_is_masked() -> None:
    queries, items = leaves(1)
    logits = queries @ items.T / 0.5
    for query, user in enumerate(USERS.tolist()):
        for owner, row in KNOWN:
            if owner == user and row != TARGETS[query]:
                logits[query, row] = -torch.inf
    each = functional.cross_entropy(logits, TARGETS, reduction="none")
    step = step_of(queries, lambda rows: items[rows], NUM_ITEMS)
    loss = BlockwiseSoftmax(temperature=0.5, block=6)(step)
    torch.testing.assert_close(loss, (each * WEIGHTS).sum() / WEIGHTS.sum(), rtol=1e-13, atol=0)


def test_a_catalogue_of_which_everything_is_masked_costs_nothing() -> None:
    queries = torch.randn(6, DIM).requires_grad_()
    step = step_of(queries, lambda rows: 9 * torch.ones(len(rows), DIM), NUM_ITEMS)
    every = torch.arange(NUM_ITEMS)
    mask = PositiveMask(
        target_rows=TARGETS,
        users=USERS * 0,
        num_users=1,
        known_users=every * 0,
        known_rows=every,
    )
    step = Step(**{**vars(step), "mask": mask})
    loss = BlockwiseSoftmax(temperature=0.01, block=4)(step)
    loss.backward()
    assert loss.item() == 0
    assert queries.grad is not None
    assert (queries.grad == 0).all()


class Tower(nn.Module):
    """A table and two layers with dropout, that widen before they narrow."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_items, DIM, sparse=True)
        self.layers = nn.Sequential(
            nn.Linear(DIM, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, DIM)
        )

    def forward(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.layers(self.table(rows))
        return vectors


def test_dropout_is_the_same_when_a_block_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tower, queries = Tower(NUM_ITEMS), torch.randn(6, DIM)
    step = step_of(queries, tower, NUM_ITEMS)
    gradients = []
    for _ in range(2):
        torch.manual_seed(1)
        tower.zero_grad()
        BlockwiseSoftmax(temperature=0.1, block=5)(step).backward()
        gradients.append([p.grad.to_dense() for p in tower.parameters() if p.grad is not None])
        # The second time without doing anything again.
        monkeypatch.setattr(
            blockwise_softmax, "checkpoint", lambda f, *given, use_reentrant: f(*given)
        )
    assert len(gradients[0]) == 5
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    torch.manual_seed(2)
    tower.zero_grad()
    BlockwiseSoftmax(temperature=0.1, block=5)(step).backward()
    assert not torch.allclose(tower.layers[0].weight.grad, gradients[0][1])  # dropout matters


class Sizes(TorchDispatchMode):
    """Notes the largest tensor that any operation gives, sparse ones by their values."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self.largest = max(self.largest, value.numel())
        return result


def largest_tensor(objective: nn.Module, num_items: int) -> int:
    torch.manual_seed(0)
    step = step_of(torch.randn(6, DIM).requires_grad_(), Tower(num_items), num_items)
    with Sizes() as sizes:
        objective(step).backward()
    return sizes.largest


def test_no_tensor_is_larger_than_a_block_but_the_gradient_of_the_table() -> None:
    num_items, block = 4000, 50
    largest = largest_tensor(BlockwiseSoftmax(temperature=0.1, block=block), num_items)
    # The sparse gradient of the table, of the catalogue and of 6 targets; scores are (6, 4000).
    assert largest <= (num_items + 6) * DIM
    full = Objective(loss=FullSoftmax(temperature=0.1), negatives=WholeCatalogue())
    assert largest_tensor(full, num_items) >= num_items * 16  # this test would see it


@pytest.mark.parametrize("block", [0, -1])
def test_block_out_of_range(block: int) -> None:
    with pytest.raises(ValueError, match=f"`block` must be at least 1 item, got {block}"):
        BlockwiseSoftmax(temperature=1, block=block)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`temperature` must be a number above 0, got 0"):
        BlockwiseSoftmax(temperature=0)
