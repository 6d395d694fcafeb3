"""Work of a plan against work that is counted on the real models, at two sizes each."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.planning.meters import (
    batch_of,
    operations,
    ranker_model,
    softmax_step,
    tables_of,
    towers_loss,
    towers_model,
    traffic,
)
from twotower.models import fused_cross
from twotower.planning.capacity_devices import CORE, GPUS, Core
from twotower.planning.capacity_work import (
    DENSE_PASSES,
    OPERATIONS,
    ROW_PASSES,
    SOFTMAX_PASSES,
    Ranker,
    Towers,
    Work,
    core_seconds,
    gpu_seconds,
    ranker_work,
    scoring_seconds,
    towers_work,
)
from twotower.training.optimizers import OptimizerSettings
from twotower.training.table_optimizers import RowWiseAdagrad

TOWERS = (
    Towers(width=32, hidden=(128,), dim=64, history=20),
    Towers(width=64, hidden=(256, 128), dim=32, history=50),
)
RANKERS = (
    Ranker(width=32, hidden=(128, 64), cross_layers=2, history=20),
    Ranker(width=48, hidden=(256,), cross_layers=3, history=50),
)
BATCH = 512


@pytest.mark.parametrize("towers", TOWERS)
def test_operations_of_the_towers(towers):
    model, batch = towers_model(towers), batch_of(64, towers.history)
    counted = operations(lambda: towers_loss(model, batch).backward())
    # Without further candidates every example is embedded on both sides once.
    assert counted / 64 == towers_work(towers, batch=64, negatives=0).low_precision


def test_uniform_negatives_pass_the_item_tower():
    towers = TOWERS[0]
    alone, more = (towers_work(towers, batch=100, negatives=n) for n in (0, 50))
    half_an_item = 6 * (32 * 128 + 128 * 64) / 2
    assert more.low_precision - alone.low_precision == half_an_item


@pytest.mark.parametrize(("size", "candidates", "dim"), [(96, 160, 64), (200, 1000, 32)])
def test_operations_of_the_softmax(size, candidates, dim):
    towers = dataclasses.replace(TOWERS[0], dim=dim)
    work = towers_work(towers, batch=size, negatives=candidates - size)
    correction = 4 * candidates  # two columns of one of the products, on a CPU
    assert (
        operations(softmax_step(size, candidates, dim)) / size == work.full_precision + correction
    )


@pytest.mark.parametrize("ranker", RANKERS)
def test_operations_of_the_ranker(ranker, monkeypatch):
    monkeypatch.setattr(fused_cross, "LINE", 1)  # what rows are filled up with is not planned
    model, batch = ranker_model(ranker), batch_of(64, ranker.history)
    counted = operations(lambda: model(batch).sum().backward())
    # The scale of the retrieval's score is a product too: 1 x 1.
    assert counted / 64 == pytest.approx(ranker_work(ranker).low_precision, abs=6)


@pytest.mark.parametrize("towers", TOWERS)
def test_bytes_of_the_towers(towers):
    model, batch = towers_model(towers), batch_of(BATCH, towers.history)
    optimizer = RowWiseAdagrad(tables_of(model), lr=0.1)

    def step():
        towers_loss(model, batch).backward()
        optimizer.step()

    planned = towers_work(towers, batch=BATCH, negatives=0).moved - 4 * SOFTMAX_PASSES * BATCH
    assert traffic(step).num_bytes / BATCH == pytest.approx(planned, rel=0.15)


@pytest.mark.parametrize("ranker", RANKERS)
def test_bytes_of_the_ranker(ranker):
    model, batch = ranker_model(ranker), batch_of(BATCH, ranker.history)
    optimizer = RowWiseAdagrad(tables_of(model), lr=0.1)

    def step():
        model(batch).sum().backward()
        optimizer.step()

    assert traffic(step).num_bytes / BATCH == pytest.approx(ranker_work(ranker).moved, rel=0.15)


@pytest.mark.parametrize(("size", "candidates"), [(512, 1024), (1024, 4096)])
def test_bytes_of_the_softmax(size, candidates):
    counted = traffic(softmax_step(size, candidates, 64)).num_bytes
    assert counted / size == pytest.approx(4 * SOFTMAX_PASSES * candidates, rel=0.15)


@pytest.mark.parametrize("towers", TOWERS)
def test_a_step_starts_about_so_many_operations(towers):
    model, batch = towers_model(towers), batch_of(BATCH, towers.history)
    settings = OptimizerSettings(learning_rate=1e-3, table_learning_rate=0.1, max_norm=5.0)
    optimizer = settings.optimizer(model)
    softmax = softmax_step(BATCH, 2 * BATCH, towers.dim)

    def step():
        optimizer.zero_grad()
        towers_loss(model, batch).backward()
        softmax()
        settings.clip(model)
        optimizer.step()

    step()  # AdamW makes its moments in the first
    assert OPERATIONS / 2 < traffic(step).num_operations < OPERATIONS


def test_hand_made_work():
    """e = 2, L = 3, towers 4-8-5 and 2-8-5; W = 17, two cross layers, 17-8, head of 25."""
    towers = Towers(width=2, hidden=(8,), dim=5, history=3)
    query, item = 4 * 8 + 8 * 5, 2 * 8 + 8 * 5
    work = towers_work(towers, batch=10, negatives=10)
    assert work == Work(
        low_precision=6 * (query + 2 * item),
        full_precision=6 * 20 * 5,
        moved=4 * (ROW_PASSES * 5 * 2 + DENSE_PASSES * (17 + 15) + SOFTMAX_PASSES * 20),
        rows=5,
    )
    ranker = Ranker(width=2, hidden=(8,), cross_layers=2, history=3)
    assert ranker.weights == 2 * 17 * 17 + 17 * 8 + 25
    assert ranker.dense == (17, 17, 17, 8, 25)


def test_time_is_work_over_rates():
    work = Work(low_precision=989e12, full_precision=67e12, moved=3.35e12, rows=0)
    # One second each on an H100, at four tenths of the rates, and 2 ms of launches a step.
    assert gpu_seconds(work, GPUS["h100"], batch=100) == pytest.approx(3 / 0.4 + 0.002 / 100)
    core = Core(bandwidth=1.0, rows=4.0, full_precision=2.0, lookups=1.0, source="")
    slow = Work(low_precision=4, full_precision=2, moved=5, rows=6)
    twice = dataclasses.replace(core, bandwidth=2.0, rows=8.0, full_precision=4.0)
    assert core_seconds(slow, core) == pytest.approx(2 * core_seconds(slow, twice))
    assert core_seconds(slow, core) > 3 + 5 + 3


def test_time_of_a_request():
    """500 candidates of 1.41 million operations took 9.5 ms of a core in ONNX Runtime."""
    # 429 wide, three cross layers, 256-128-64: as measured, and not of a shape that is planned.
    ranker = Ranker(width=1, hidden=(1,), cross_layers=1, history=1)
    towers = Towers(width=1, hidden=(), dim=1, history=1)
    a_candidate = scoring_seconds(towers, ranker, 2) - scoring_seconds(towers, ranker, 1)
    weights = ranker.weights - ranker.weights_once
    of_a_million = a_candidate / (2 * weights) * 1.41e6 * 500
    assert of_a_million == pytest.approx(9.5e-3, rel=0.2)


def test_what_a_request_multiplies_once():
    """User and history are 7 x 2 of the 17 columns that two layers of 17 and 8 read."""
    ranker = Ranker(width=2, hidden=(8, 4), cross_layers=2, history=3)
    assert ranker.weights_once == 14 * (17 + 8)


def test_every_device_has_a_source():
    assert all(gpu.source and gpu.memory >= 24e9 for gpu in GPUS.values())
    assert CORE.source
