"""Optimizers of tables against slow loops, and against torch's own where torch has the same."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from twotower.models.half_tables import HalfTable
from twotower.models.tables import TableGroup
from twotower.training.table_optimizers import ROUNDINGS, LazyAdam, RowWiseAdagrad

ROWS, DIM = 6, 3
# Ids of four batches: row 5 is never there, others are there twice in a batch.
BATCHES = ([0, 1, 1, 4], [2, 2, 2], [0, 4, 3, 0, 1], [1])


def table_of(sparse, seed=0):
    torch.manual_seed(seed)
    return nn.Embedding(ROWS, DIM, sparse=sparse)


def targets(step):
    return torch.randn(len(BATCHES[step]), DIM, generator=torch.Generator().manual_seed(step))


def train(table, optimizer, steps=(0, 1, 2, 3)):
    for step in steps:
        optimizer.zero_grad()
        loss = (table(torch.tensor(BATCHES[step])) - targets(step)).pow(2).sum()
        loss.backward()
        optimizer.step()


def slow_adagrad(weights, lr, initial, eps):
    """The formula of the module in float64, one row and one number at a time.

    The gradient of the squared distance is 2 (w - t), summed over the places of a row.
    """
    weights = weights.astype(np.float64)
    sums = np.full(ROWS, initial)
    for step, batch in enumerate(BATCHES):
        goals = targets(step).numpy().astype(np.float64)
        gradients = {}
        for place, row in enumerate(batch):
            one = [2 * (weights[row, d] - goals[place, d]) for d in range(DIM)]
            known = gradients.get(row, [0.0] * DIM)
            gradients[row] = [a + b for a, b in zip(known, one, strict=True)]
        for row, gradient in gradients.items():
            sums[row] += sum(g * g for g in gradient) / DIM
            for d in range(DIM):
                weights[row, d] -= lr * gradient[d] / (math.sqrt(sums[row]) + eps)
    return weights, sums


class TestRowWiseAdagrad:
    @pytest.mark.parametrize("sparse", [True, False])
    @pytest.mark.parametrize(("lr", "initial"), [(0.1, 0.0), (0.5, 0.3)])
    def test_equals_the_slow_loop(self, sparse, lr, initial):
        table = table_of(sparse)
        expected, sums = slow_adagrad(table.weight.detach().numpy(), lr, initial, 1e-10)
        optimizer = RowWiseAdagrad(table.parameters(), lr=lr, initial=initial)
        train(table, optimizer)
        np.testing.assert_allclose(table.weight.detach().numpy(), expected, atol=2e-6)
        np.testing.assert_allclose(optimizer.state[table.weight]["sum"].numpy(), sums, rtol=1e-5)

    def test_sparse_and_dense_gradients_give_the_same(self):
        tables = [table_of(sparse) for sparse in (True, False)]
        for table in tables:
            train(table, RowWiseAdagrad(table.parameters(), lr=0.2))
        torch.testing.assert_close(tables[0].weight, tables[1].weight)

    def test_readers_of_a_table_are_summed_together(self):
        """Rows looked up and means of sets, of one table, against a dense gradient of both."""
        rows, members = torch.tensor([[0, 3], [3, 1], [5, 5]]), torch.tensor([3, 3, 2, 0, 5])
        offsets, weights = torch.tensor([0, 2, 2, 5]), torch.randn(3, 2, DIM)
        found = []
        for sparse in (True, False):
            torch.manual_seed(0)
            group = TableGroup(num_rows={"a": ROWS, "b": 2}, dim=DIM, sparse=sparse)
            optimizer = RowWiseAdagrad(group.parameters(), lr=0.2)
            for share in (1.0, 0.5, 0.25):  # the second step is by the gradients of two passes
                if share != 0.25:
                    optimizer.zero_grad()
                looked_up = group.lookup(0, rows % torch.tensor([ROWS, 2]))  # (3, 2, D)
                means = group.means("a", members, offsets)  # (3, D)
                (share * (looked_up * weights).sum() + (means * weights[:, 0]).sum()).backward()
                if share != 0.5:
                    optimizer.step()
            found.append((group.rows.weight.detach(), optimizer.state_dict()["state"][0]["sum"]))
        torch.testing.assert_close(found[0], found[1])

    def test_gradients_of_a_step_are_kept_until_they_are_forgotten(self):
        """As torch's own do: a second step is by the same, and after `zero_grad` there is none."""
        table = table_of(sparse=True)
        group = TableGroup(num_rows={"a": ROWS}, dim=DIM, sparse=True)
        with torch.no_grad():
            group.rows.weight.copy_(table.weight)
        optimizers = [RowWiseAdagrad(module.parameters(), lr=0.2) for module in (group, table)]
        group.lookup(0, torch.tensor([[1], [4], [1]])).sum().backward()
        table(torch.tensor([1, 4, 1])).sum().backward()
        for _ in range(2):
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(group.rows.weight, table.weight)
        for optimizer in optimizers:
            optimizer.zero_grad()
            optimizer.step()
        torch.testing.assert_close(group.rows.weight, table.weight)

    def test_first_step_by_hand(self):
        """g = (3, 4), mean square 12.5: w - 0.1 g / sqrt(12.5)."""
        table = nn.Parameter(torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
        optimizer = RowWiseAdagrad([table], lr=0.1)
        table.grad = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        optimizer.step()
        assert table[0].tolist() == pytest.approx([1 - 0.3 / 12.5**0.5, 1 - 0.4 / 12.5**0.5])
        assert table[1].tolist() == [5.0, 5.0]

    @pytest.mark.parametrize("sparse", [True, False])
    def test_rows_without_gradient_are_untouched(self, sparse):
        table = table_of(sparse)
        before = table.weight.detach().clone()
        optimizer = RowWiseAdagrad(table.parameters(), lr=0.1)
        train(table, optimizer, [0])
        there = sorted(set(BATCHES[0]))
        away = [row for row in range(ROWS) if row not in there]
        assert torch.equal(table.weight[away], before[away])
        assert (optimizer.state[table.weight]["sum"][away] == 0).all()
        assert (table.weight[there] != before[there]).any(dim=1).all()

    def test_table_without_gradient_is_left_alone(self):
        used, unused = table_of(True), table_of(True, seed=1)
        before = unused.weight.detach().clone()
        train(used, RowWiseAdagrad([used.weight, unused.weight], lr=0.1))
        assert torch.equal(unused.weight, before)

    def test_duplicates_are_summed_before_they_are_squared(self):
        """A row that is there twice with gradient g moves as one with gradient 2 g."""
        one, twice = table_of(True), table_of(True)
        for table, ids, share in ((one, [2], 2.0), (twice, [2, 2], 1.0)):
            optimizer = RowWiseAdagrad(table.parameters(), lr=0.1)
            (share * table(torch.tensor(ids))).sum().backward()
            optimizer.step()
            assert optimizer.state[table.weight]["sum"][2] == 4.0
        assert torch.equal(one.weight, twice.weight)

    @pytest.mark.parametrize("lr", [0.0, -0.1])
    def test_rate_that_is_not_positive(self, lr):
        with pytest.raises(ValueError, match=rf"`lr` of the tables must be above 0, got {lr}"):
            RowWiseAdagrad([nn.Parameter(torch.zeros(2, 2))], lr=lr)

    def test_closure(self):
        table = table_of(False)
        optimizer = RowWiseAdagrad(table.parameters(), lr=0.1)

        def closure():
            optimizer.zero_grad()
            loss = table(torch.tensor([0])).sum()
            loss.backward()
            return loss

        expected = table_of(False).weight[0].sum()
        assert optimizer.step(closure).item() == expected.item()
        assert not torch.equal(table.weight, table_of(False).weight)

    def test_accumulator_below_zero(self):
        with pytest.raises(ValueError, match="`initial` of the tables must be at least 0, got -1"):
            RowWiseAdagrad([nn.Parameter(torch.zeros(2, 2))], lr=1, initial=-1)


class TestLazyAdam:
    @pytest.mark.parametrize("l2", [0.0, 0.3])
    def test_dense_gradients_as_torch_has_it(self, l2):
        ours, theirs = table_of(False), table_of(False)
        train(ours, LazyAdam(ours.parameters(), lr=0.1, l2=l2, betas=(0.8, 0.9)))
        optimizer = torch.optim.Adam(theirs.parameters(), lr=0.1, weight_decay=l2, betas=(0.8, 0.9))
        train(theirs, optimizer)
        torch.testing.assert_close(ours.weight, theirs.weight)

    def test_sparse_gradients_as_torch_has_it(self):
        ours, theirs = table_of(True), table_of(True)
        train(ours, LazyAdam(ours.parameters(), lr=0.1))
        train(theirs, torch.optim.SparseAdam(theirs.parameters(), lr=0.1))
        torch.testing.assert_close(ours.weight, theirs.weight)

    def test_penalty_on_the_rows_of_a_sparse_gradient_alone(self):
        """The first step of Adam is lr * sign(g + l2 w), whatever the size."""
        table = nn.Embedding(2, 2, sparse=True)
        with torch.no_grad():
            table.weight.copy_(torch.tensor([[4.0, -4.0], [1.0, 1.0]]))
        optimizer = LazyAdam(table.parameters(), lr=0.5, l2=1.0)
        table(torch.tensor([0])).sum().backward()  # g = 1: 1 + 4 > 0 and 1 - 4 < 0
        optimizer.step()
        assert table.weight.tolist() == [[3.5, -3.5], [1.0, 1.0]]

    def test_restored_it_continues(self):
        table = table_of(True)
        optimizer = LazyAdam(table.parameters(), lr=0.1)
        train(table, optimizer, [0, 1])
        state, again = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(table)
        train(table, optimizer, [2, 3])
        restored = LazyAdam(again.parameters(), lr=0.1)
        restored.load_state_dict(state)
        train(again, restored, [2, 3])
        assert torch.equal(table.weight, again.weight)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"lr": 0}, "`lr` of the tables must be above 0, got 0"),
            ({"l2": -1}, "`l2` of the tables must be at least 0, got -1"),
            (
                {"betas": (0.9, 1.0)},
                r"`betas` of the tables must be within \[0, 1\), got \(0.9",
            ),
        ],
    )
    def test_out_of_range(self, given, message):
        with pytest.raises(ValueError, match=message):
            LazyAdam([nn.Parameter(torch.zeros(2, 2))], **{"lr": 1.0} | given)


HALF_OPTIMIZERS = {
    "adagrad": lambda tables: RowWiseAdagrad(tables, lr=0.1),
    "adam": lambda tables: LazyAdam(tables, lr=0.1, l2=0.02),
}


def half_of(sparse, seed=0):
    return HalfTable(table_of(sparse, seed))


def float32_state(optimizer, table):
    return {n: v for n, v in optimizer.state[table].items() if n != ROUNDINGS}


def neighbours(values: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 below and above in size; the same where there is nothing to round."""
    bits = values.view(torch.int32)
    low = (bits & -(2**16)).view(torch.float32)
    high = ((bits + 2**16 - 1) & -(2**16)).view(torch.float32)
    return low, high


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("name", HALF_OPTIMIZERS)
class TestHalfTables:
    def test_a_step_is_that_of_a_wide_table_rounded(self, name, sparse):
        """The wide table is set to the narrow one before every step; its state goes on."""
        narrow, wide = half_of(sparse), table_of(sparse)
        optimizers = [HALF_OPTIMIZERS[name]([t.weight]) for t in (narrow, wide)]
        moved = 0
        for step in range(4):
            with torch.no_grad():
                wide.weight.copy_(narrow.weight)
            for table, optimizer in zip((narrow, wide), optimizers, strict=True):
                train(table, optimizer, [step])
            low, high = neighbours(wide.weight.detach())
            found = narrow.weight.detach().float()
            assert ((found == low) | (found == high)).all()
            moved += int((low != high).sum())
            ours, theirs = (
                float32_state(o, t.weight) for o, t in zip(optimizers, (narrow, wide), strict=True)
            )
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                assert ours[key].dtype == value.dtype
                torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=0)
        assert moved > 20

    def test_rows_without_gradient_are_untouched(self, name, sparse):
        table = half_of(sparse)
        before = table.weight.detach().clone()
        train(table, HALF_OPTIMIZERS[name]([table.weight]), [0])
        there = sorted(set(BATCHES[0]))
        away = [row for row in range(ROWS) if row not in there]
        if name == "adagrad" or sparse:  # else the penalty is on all of them
            assert torch.equal(table.weight[away], before[away])
        assert (table.weight[there] != before[there]).any(dim=1).all()

    def test_restored_it_continues_bit_equal(self, name, sparse):
        """Through a file, as a checkpoint is; the accumulators stay float32."""
        tables = [half_of(sparse), half_of(sparse, seed=1)]
        weights = [table.weight for table in tables]
        optimizer = HALF_OPTIMIZERS[name](weights)

        def steps(tables, optimizer, which):
            for step in which:
                optimizer.zero_grad()
                for table in tables:
                    loss = table(torch.tensor(BATCHES[step])) - targets(step)
                    loss.pow(2).sum().backward()
                optimizer.step()

        steps(tables, optimizer, (0, 1))
        saved = io.BytesIO()
        torch.save((optimizer.state_dict(), [t.state_dict() for t in tables]), saved)
        steps(tables, optimizer, (2, 3))
        saved.seek(0)
        state, rows = torch.load(saved, weights_only=True)
        again = [half_of(sparse, seed=2), half_of(sparse, seed=3)]
        for table, one in zip(again, rows, strict=True):
            table.load_state_dict(one)
        restored = HALF_OPTIMIZERS[name]([t.weight for t in again])
        restored.load_state_dict(state)
        torch.rand(3)  # the global generator is not asked
        steps(again, restored, (2, 3))
        for one, other in zip(tables, again, strict=True):
            assert torch.equal(one.weight, other.weight)
            ours, theirs = optimizer.state[one.weight], restored.state[other.weight]
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                assert value.dtype == theirs[key].dtype
                assert value.dtype in (torch.float32, torch.long)
                assert torch.equal(value, theirs[key])

    def test_two_tables_and_two_steps_are_rounded_differently(self, name, sparse):
        """Else the errors of all would go the same way."""
        torch.manual_seed(0)
        whole = nn.Embedding(400, 8, sparse=sparse)
        one, other = HalfTable(whole), HalfTable(whole)
        optimizer = HALF_OPTIMIZERS[name]([one.weight, other.weight])
        rows = torch.arange(400)
        ups = []
        for _ in range(2):
            with torch.no_grad():
                for table in (one, other):
                    table.weight.copy_(whole.weight)
            optimizer.zero_grad()
            ((one(rows) + other(rows)) * whole.weight).sum().backward()
            before = one.weight.detach().clone()
            optimizer.step()
            ups.append(((one.weight - before).float(), (other.weight - before).float()))
        (first, beside), (later, _) = ups
        assert not torch.equal(first, beside)
        assert 0.02 < (first != beside).double().mean() < 0.7
        assert not torch.equal(first, later)


def test_steps_far_below_what_a_weight_can_tell_add_up():
    """10,000 steps of 1e-4 on weights of 1 and more, whose next number is 1/128 away.

    The accumulator begins at 1e8 and grows by 1 a step, so a step is 1 / sqrt(1e8 + t).
    """
    num_steps = 10_000
    table = HalfTable(nn.Embedding(4, 64, sparse=True, _weight=torch.ones(4, 64)))
    optimizer = RowWiseAdagrad([table.weight], lr=1.0, initial=1e8)
    table(torch.arange(4)).sum().neg().backward()  # the gradient of every step
    nearest = table.weight.detach().clone()
    exact = 1.0
    for step in range(1, num_steps + 1):
        optimizer.step()
        change = 1 / math.sqrt(1e8 + step)
        nearest = (nearest.float() + change).bfloat16()
        exact += change
    assert (nearest == 1).all()
    assert exact == pytest.approx(2.0, abs=1e-3)
    found = table.weight.detach().double()
    # A step goes up by 2^-7 with a chance of 1e-4 / 2^-7 = 0.0128, and 10,000 are independent.
    spread = 2**-7 * math.sqrt(num_steps * 0.0128 * (1 - 0.0128))
    assert abs(float(found.mean()) - exact) < 4 * spread / math.sqrt(found.numel())
    assert 0.5 * spread < float(found.std()) < 2 * spread
