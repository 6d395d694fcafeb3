"""Both optimizers as one, schedule and clipping."""

from __future__ import annotations

import copy
import io
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from twotower.training.optimizers import JointOptimizer, OptimizerSettings, split_parameters
from twotower.training.table_optimizers import LazyAdam, RowWiseAdagrad

ROWS, DIM = 6, 3


class Model(nn.Module):
    def __init__(self, *, sparse=True):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(ROWS, DIM, sparse=sparse)
        self.inner = nn.ModuleDict(
            {"tags": nn.Embedding(4, 2, padding_idx=0), "norm": nn.Linear(3, 2)}
        )
        self.out = nn.Linear(2, 1)

    def forward(self, rows):
        return self.out(self.inner["norm"](self.table(rows)) + self.inner["tags"](rows % 4))


SETTINGS = OptimizerSettings(
    learning_rate=0.01, table_learning_rate=0.1, weight_decay=0.01, warmup_share=0.3, max_norm=0.5
)


def prepared(num_steps=10):
    model = Model()
    optimizer = SETTINGS.optimizer(model)
    return model, optimizer, SETTINGS.schedule(optimizer, num_steps)


def run(model, optimizer, schedule, steps):
    for step in steps:
        optimizer.zero_grad()
        rows = torch.randint(ROWS, (5,), generator=torch.Generator().manual_seed(step))
        model(rows).pow(2).sum().backward()
        SETTINGS.clip(model)
        optimizer.step()
        schedule.step()


class TestJointOptimizer:
    def test_step_is_that_of_both_members(self):
        together, apart = Model(), Model()
        optimizer = SETTINGS.optimizer(together)
        tables, dense = split_parameters(apart)
        members = (AdamW(dense, lr=0.01, weight_decay=0.01), RowWiseAdagrad(tables, lr=0.1))
        rows = torch.tensor([0, 3, 3])
        for model, steps in ((together, [optimizer]), (apart, members)):
            model(rows).sum().backward()
            for one in steps:
                one.step()
        for name, value in together.state_dict().items():
            assert torch.equal(value, apart.state_dict()[name]), name

    def test_zero_grad_reaches_both(self):
        model, optimizer, _ = prepared()
        model(torch.tensor([1])).sum().backward()
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())

    def test_schedule_changes_both_rates(self):
        model, optimizer, schedule = prepared()
        rates = [[g["lr"] for g in member.param_groups] for member in optimizer.members]
        assert rates == [[pytest.approx(0.01 / 4)], [pytest.approx(0.1 / 4)]]
        run(model, optimizer, schedule, [0])
        rates = [[g["lr"] for g in member.param_groups] for member in optimizer.members]
        assert rates == [[pytest.approx(0.02 / 4)], [pytest.approx(0.2 / 4)]]

    def test_restored_it_continues_bit_equal(self):
        model, optimizer, schedule = prepared()
        run(model, optimizer, schedule, range(4))
        saved = io.BytesIO()
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        torch.save(state, saved)
        run(model, optimizer, schedule, range(4, 8))

        saved.seek(0)
        state = torch.load(saved, weights_only=True)
        again, optimizer_again, schedule_again = prepared()
        again.load_state_dict(state["model"])
        optimizer_again.load_state_dict(state["optimizer"])
        schedule_again.load_state_dict(state["schedule"])
        run(again, optimizer_again, schedule_again, range(4, 8))
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name
        ours, theirs = optimizer_again.members[1], optimizer.members[1]
        for one, other in zip(ours.state.values(), theirs.state.values(), strict=True):
            assert torch.equal(one["sum"], other["sum"])

    def test_without_the_state_it_would_not(self):
        model, optimizer, schedule = prepared()
        run(model, optimizer, schedule, range(4))
        again, optimizer_again, schedule_again = prepared()
        again.load_state_dict(copy.deepcopy(model.state_dict()))
        run(model, optimizer, schedule, [4])
        run(again, optimizer_again, schedule_again, [4])
        assert not torch.equal(model.table.weight, again.table.weight)
        assert not torch.equal(model.out.weight, again.out.weight)

    def test_model_without_tables(self):
        model = nn.Linear(2, 1)
        optimizer = SETTINGS.optimizer(model)
        assert len(optimizer.members) == 1
        model(torch.ones(1, 2)).sum().backward()
        before = model.weight.detach().clone()
        optimizer.step()
        assert not torch.equal(model.weight, before)

    def test_model_of_tables_alone(self):
        model = nn.Embedding(3, 2)
        optimizer = SETTINGS.optimizer(model)
        assert [type(member) for member in optimizer.members] == [RowWiseAdagrad]
        model(torch.tensor([1])).sum().backward()
        SETTINGS.clip(model)
        before = model.weight.detach().clone()
        optimizer.step()
        assert (model.weight != before).any(dim=1).tolist() == [False, True, False]

    def test_closure(self):
        model, optimizer, _ = prepared()

        def closure():
            loss = model(torch.tensor([1])).sum()
            loss.backward()
            return loss

        expected = model(torch.tensor([1])).sum().item()
        assert optimizer.step(closure).item() == expected

    def test_members_one_by_one(self):
        dense = AdamW([nn.Parameter(torch.ones(2))], lr=0.1)
        joint = JointOptimizer([dense])
        assert joint.param_groups[0] is dense.param_groups[0]


class TestSchedule:
    def rates(self, num_steps, **given):
        settings = OptimizerSettings(learning_rate=1.0, table_learning_rate=2.0, **given)
        model = Model()
        optimizer = settings.optimizer(model)
        schedule = settings.schedule(optimizer, num_steps)
        rates = []
        for _ in range(num_steps + 1):
            rates.append(tuple(group["lr"] for group in optimizer.param_groups))
            optimizer.step()
            schedule.step()
        assert all(table == pytest.approx(2 * dense) for dense, table in rates)
        return [dense for dense, _ in rates]

    def test_constant_by_default(self):
        assert self.rates(3) == [1.0] * 4

    def test_warm_up_by_hand(self):
        """2 of 4 steps warm up: 1/3, 2/3, then full."""
        assert self.rates(4, warmup_share=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])

    def test_cosine_by_hand(self):
        """From 1 to 0.2 in four steps: 0.2 + 0.8 (1 + cos(pi p)) / 2."""
        half = math.sqrt(0.5)
        expected = [1.0, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half), 0.2]
        assert self.rates(4, final_share=0.2) == pytest.approx(expected)

    def test_both(self):
        """1 step of warm-up, three of cosine: 1/2, 1, 3/4, 1/4, 0."""
        rates = self.rates(4, warmup_share=0.25, final_share=0.0)
        assert rates == pytest.approx([0.5, 1.0, 0.75, 0.25, 0.0])

    def test_after_the_end_it_stays(self):
        settings = OptimizerSettings(learning_rate=1, table_learning_rate=1, final_share=0.3)
        optimizer = settings.optimizer(Model())
        schedule = settings.schedule(optimizer, 2)
        for _ in range(5):
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)


class TestClip:
    def gradients(self, max_norm):
        model = Model()
        (100 * model(torch.tensor([0, 1, 2]))).sum().backward()
        before = [p.grad.clone() for p in model.parameters()]
        settings = OptimizerSettings(learning_rate=1, table_learning_rate=1, max_norm=max_norm)
        settings.clip(model)
        return model, before

    def norm(self, gradients):
        return math.sqrt(sum(float(g.pow(2).sum()) for g in gradients))

    def test_dense_gradients_alone(self):
        model, before = self.gradients(0.5)
        tables, dense = split_parameters(model)
        known = {id(p): g for p, g in zip(model.parameters(), before, strict=True)}
        assert self.norm(known[id(p)] for p in dense) > 1
        assert self.norm(p.grad for p in dense) == pytest.approx(0.5, rel=1e-4)
        for table in tables:
            assert torch.equal(table.grad.to_dense(), known[id(table)].to_dense())

    def test_small_gradients_and_no_limit(self):
        for max_norm in (0.0, 1e6):
            model, before = self.gradients(max_norm)
            for parameter, gradient in zip(model.parameters(), before, strict=True):
                assert torch.equal(parameter.grad.to_dense(), gradient.to_dense())


def test_split_parameters():
    model = Model()
    tables, dense = split_parameters(model)
    assert {id(p) for p in tables} == {id(model.table.weight), id(model.inner["tags"].weight)}
    layers = (model.inner["norm"], model.out)
    assert {id(p) for p in dense} == {id(p) for layer in layers for p in layer.parameters()}
    assert len(tables) + len(dense) == len(list(model.parameters()))


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"learning_rate": 0}, "`learning_rate` must be above 0, got 0"),
            ({"table_learning_rate": -1}, "`table_learning_rate` must be above 0, got -1"),
            ({"warmup_share": 1.5}, r"`warmup_share` must be within 0..1, got 1.5"),
            ({"final_share": -0.1}, r"`final_share` must be within 0..1, got -0.1"),
            ({"weight_decay": -0.1}, "`weight_decay` must be at least 0, got -0.1"),
            ({"max_norm": -1}, "`max_norm` must be at least 0, got -1"),
            ({"learning_rate": 0, "final_share": 2}, "`learning_rate`(.|\n)*`final_share`"),
        ],
    )
    def test_out_of_range(self, given, message):
        with pytest.raises(ValueError, match=message):
            OptimizerSettings(**{"learning_rate": 1.0, "table_learning_rate": 1.0} | given)

    def test_reach_the_optimizers(self):
        settings = OptimizerSettings(
            learning_rate=0.3,
            table_learning_rate=0.4,
            weight_decay=0.5,
            table_optimizer=partial(LazyAdam, l2=0.6),
        )
        dense, tables = settings.optimizer(Model()).members
        assert (dense.param_groups[0]["lr"], dense.param_groups[0]["weight_decay"]) == (0.3, 0.5)
        assert tables.param_groups[0]["lr"] == 0.4
        assert "weight_decay" not in tables.param_groups[0]
        assert isinstance(tables, LazyAdam)
        assert tables.param_groups[0]["l2"] == 0.6
