"""What holds item vectors where an earlier version has them."""

import pytest
import torch

from twotower.losses.alignment import Aligned, Anchor, FrozenItems, NoAlignment

FROZEN = FrozenItems(
    vectors=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
    known=torch.tensor([True, True, False]),
)


def test_by_hand():
    vectors = torch.tensor([[0.0, 0.0], [3.0, 1.0], [9.0, 9.0], [1.0, 1.0]])
    rows = torch.tensor([0, 1, 2, 0])
    # Squared distances 1, 9 and 1 of known items; the new one does not count.
    assert Anchor(weight=2.0)(vectors, rows, FROZEN).item() == pytest.approx(2 * 11 / 3)
    assert NoAlignment()(vectors, rows, FROZEN).item() == 0


def test_without_known_items_there_is_nothing_to_hold():
    vectors = torch.ones(2, 2, requires_grad=True)
    loss = Anchor(weight=1.0)(vectors, torch.tensor([2, 2]), FROZEN)
    loss.backward()
    assert loss.item() == 0
    assert not vectors.grad.any()


def test_the_gradient_points_back():
    vectors = torch.tensor([[2.0, 0.0], [5.0, 5.0]], requires_grad=True)
    Anchor(weight=3.0)(vectors, torch.tensor([0, 2]), FROZEN).backward()
    assert vectors.grad.tolist() == [[6.0, 0.0], [0.0, 0.0]]


def test_a_step_counts_all_that_it_embeds_once():
    vectors = torch.tensor([[0.0, 0.0], [3.0, 1.0], [1.0, 1.0]], requires_grad=True)
    rows = torch.tensor([0, 1, 0])
    aligned = Aligned(alignment=Anchor(weight=1.0), frozen=FROZEN)
    assert torch.equal(aligned.saw(vectors[:1], rows[:1]), vectors[:1])
    aligned.saw(vectors[1:], rows[1:])
    aligned.saw(vectors.detach(), rows)  # of an evaluation
    whole = Anchor(weight=1.0)(vectors, rows, FROZEN)
    torch.testing.assert_close(aligned.loss(), whole)
    aligned.saw(vectors[:1], rows[:1])
    assert aligned.loss().item() == pytest.approx(1.0)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_no_weight_is_refused(weight):
    with pytest.raises(ValueError, match="`weight` must be above 0"):
        Anchor(weight=weight)
