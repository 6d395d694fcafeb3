"""What TensorBoard is told of a training, and what callbacks keep."""

from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from twotower.data.schema import TRAIN
from twotower.data.shuffled_batches import ShuffledBatches
from twotower.losses.ranking import BinaryLogLoss
from twotower.training.callbacks import ResumeState, Throughput, Together
from twotower.training.examples import ExampleBatches, ImpressionExamples
from twotower.training.fit import fit_stage
from twotower.training.optimizers import OptimizerSettings
from twotower.training.ranking import RankingTask
from twotower.training.settings import StageSettings, TrainerSettings

STEPS, EPOCHS = 6, 2


@pytest.fixture
def curves(world, tmp_path):
    """Trains 2 epochs of 6 steps and gives the curves by name: (step, value) each."""

    def run(log_every, max_steps=-1):
        batches = ExampleBatches(
            examples=ImpressionExamples().examples(world.prepared, TRAIN, None),
            columns=world.columns("ranking"),
            with_scores=False,
        )
        optimizer = OptimizerSettings(
            learning_rate=0.01, table_learning_rate=0.1, warmup_share=0.5, final_share=0.0
        )
        size = -(-len(batches) // STEPS)
        auc = iter((0.6, 0.7))
        fit_stage(
            stage="ranking",
            task=RankingTask(model=world.ranker(), loss=BinaryLogLoss(), optimizer=optimizer),
            loader=ShuffledBatches(
                torch.arange(len(batches)), batch_size=size, seed=1, assemble=batches.batch
            ),
            evaluate=lambda: {"ranking/validation/auc": next(auc)},
            settings=StageSettings(
                batch_size=size, max_epochs=EPOCHS, patience=9, monitor="auc", optimizer=optimizer
            ),
            trainer_settings=TrainerSettings(
                accelerator="cpu", log_every=log_every, max_steps=max_steps
            ),
            folder=tmp_path,
            progress=False,
        )
        events = EventAccumulator(str(tmp_path / "tensorboard" / "ranking")).Reload()
        return {
            name: [(event.step, event.value) for event in events.Scalars(name)]
            for name in events.Tags()["scalars"]
        }

    return run


def rate(step):
    """After `step` of 12 steps of which 6 warm up: a rise by sevenths, then half a cosine."""
    cosine = {6: 1.0, 9: 0.5, 12: 0.0}
    return (step + 1) / 7 if step < 6 else cosine[step]


class TestCurves:
    def test_every_few_steps(self, curves):
        found = curves(3)
        steps = [3, 6, 9, 12]
        assert found["ranking/train/learning_rate"] == [
            (step, pytest.approx(0.01 * rate(step), abs=1e-9)) for step in steps
        ]
        assert found["ranking/train/table_learning_rate"] == [
            (step, pytest.approx(0.1 * rate(step), abs=1e-8)) for step in steps
        ]
        throughput = found["ranking/train/examples_per_second"]
        assert [step for step, _ in throughput] == steps
        assert all(value > 0 for _, value in throughput)
        assert len(found["ranking/train/loss"]) == len(steps)

    def test_short_epochs_have_one_entry_each(self, curves):
        found = curves(50)
        for name in ("loss", "learning_rate", "table_learning_rate", "examples_per_second"):
            assert len(found[f"ranking/train/{name}"]) == EPOCHS, name

    def test_run_that_ends_within_an_epoch(self, curves):
        found = curves(50, max_steps=2)
        assert [step for step, _ in found["ranking/train/examples_per_second"]] == [2]
        assert len(found["ranking/train/loss"]) == 1

    def test_metrics_of_every_epoch(self, curves):
        found = curves(3)
        values = [value for _, value in found["ranking/validation/auc"]]
        assert values == [pytest.approx(0.6), pytest.approx(0.7)]


class FakeTrainer:
    """What `Throughput` asks of a trainer."""

    def __init__(self):
        self.logged = []
        self.loggers = [self]
        self.global_step = 0
        self.should_stop = False
        group = {"lr": 0.5, "name": "learning_rate"}
        self.optimizers = [type("Optimizer", (), {"param_groups": [group]})()]

    def log_metrics(self, metrics, step):
        self.logged.append((step, metrics))


def test_throughput_by_hand(monkeypatch):
    """7 + 7 examples in 2 seconds; the 100 seconds of evaluation between epochs do not count."""
    now = [10.0]
    monkeypatch.setattr("twotower.training.callbacks.time.perf_counter", lambda: now[0])
    trainer, rates = FakeTrainer(), Throughput(stage="x", every=2)
    batch = {"labels": torch.zeros(7)}
    rates.on_train_start(trainer, None)
    for _ in range(2):
        rates.on_train_epoch_start(trainer, None)
        for index in range(3):
            now[0] += 1.0
            trainer.global_step += 1
            rates.on_train_batch_end(trainer, None, None, batch, index)
        now[0] += 100.0
    expected = {"x/train/examples_per_second": 7.0, "x/train/learning_rate": 0.5}
    assert trainer.logged == [(2, expected), (5, expected)]


@pytest.mark.parametrize(("told", "of_all"), [(False, 0.0), (False, 1.0), (True, 2.0)])
def test_processes_stop_together(told, of_all):
    """A sweep tells the first process alone to stop."""
    trainer = FakeTrainer()
    trainer.should_stop = told
    heard = []
    ranks = type("Ranks", (), {"sum": lambda self, own: heard.append(own) or torch.tensor(of_all)})
    Together(ranks()).on_train_epoch_end(trainer, None)
    assert trainer.should_stop == (of_all > 0)
    assert [float(own) for own in heard] == [float(told)]


def test_resume_state_puts_loader_and_generator_back():
    def loader():
        return ShuffledBatches(
            torch.arange(10), batch_size=3, seed=0, assemble=lambda rows: {"rows": rows}
        )

    before = loader()
    stream = iter(before)
    next(stream)
    torch.manual_seed(1)
    saved = ResumeState(before).state_dict()
    expected = (next(stream)["rows"].tolist(), torch.rand(2).tolist())

    after = loader()
    state = ResumeState(after)
    state.load_state_dict(saved)
    state.on_train_start(None, None)
    assert (next(iter(after))["rows"].tolist(), torch.rand(2).tolist()) == expected


def test_nothing_is_put_back_in_a_fresh_run():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    ResumeState(None).on_train_start(None, None)
    assert torch.equal(torch.rand(2), expected)
