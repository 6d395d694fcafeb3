"""Trials below the median are stopped; medians worked out by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from twotower.cli import train as command
from twotower.training.pruning import (
    PRUNED,
    STUDY_NAME,
    MedianPruning,
    StopBelowMedian,
    open_trial,
    study_url,
)

optuna = pytest.importorskip("optuna", reason="the extra `sweep` is not installed")

METRIC = "retrieval/validation/ndcg@10"


def study_with(path, curves, direction="maximize"):
    """A study of complete trials with these values after the first, second, ... epoch."""
    study = optuna.create_study(study_name=STUDY_NAME, storage=study_url(path), direction=direction)
    for curve in curves:
        trial = study.ask()
        for epoch, value in enumerate(curve, start=1):
            trial.report(value, epoch)
        study.tell(trial, curve[-1])
    return study


def stops(path, study, value, *, epoch=1, num_complete=2, max_epochs=3):
    """Whether a further trial with this value after an epoch is stopped."""
    number = study.ask().number
    callback = StopBelowMedian(open_trial(path, number, num_complete=num_complete), METRIC)
    trainer = SimpleNamespace(
        current_epoch=epoch - 1,
        max_epochs=max_epochs,
        should_stop=False,
        callback_metrics={METRIC: torch.tensor(value)},
    )
    callback.on_train_epoch_end(trainer, None)
    trial = study.trials[number]
    assert trial.intermediate_values == {epoch: pytest.approx(value)}
    assert trial.user_attrs == ({PRUNED: True} if trainer.should_stop else {})
    return trainer.should_stop


def test_below_the_median(tmp_path):
    """After one epoch the others had 0.1, 0.3 and 0.4; after two 0.5, 0.5 and 0.2."""
    path = tmp_path / "study.db"
    study = study_with(path, [[0.1, 0.5], [0.3, 0.5], [0.4, 0.2]])
    assert stops(path, study, 0.29)
    assert not stops(path, study, 0.31)
    assert stops(path, study, 0.45, epoch=2)
    assert not stops(path, study, 0.55, epoch=2)


def test_where_smaller_is_better(tmp_path):
    path = tmp_path / "study.db"
    study = study_with(path, [[0.1], [0.3], [0.4]], direction="minimize")
    assert stops(path, study, 0.31)
    assert not stops(path, study, 0.29)


def test_not_before_enough_are_complete(tmp_path):
    path = tmp_path / "study.db"
    study = study_with(path, [[0.3], [0.4]])
    assert not stops(path, study, 0.1, num_complete=3)
    assert stops(path, study, 0.1, num_complete=2)


def test_a_stage_that_ends_anyway_is_not_cut_short(tmp_path):
    path = tmp_path / "study.db"
    study = study_with(path, [[0.3], [0.4]])
    assert not stops(path, study, 0.1, max_epochs=1)
    assert stops(path, study, 0.1, max_epochs=2)


def test_only_the_stage_that_has_the_metric_is_watched(tmp_path):
    path = tmp_path / "study.db"
    number = study_with(path, []).ask().number
    pruning = MedianPruning(study=str(path), trial=number, monitor=METRIC, num_complete=1)
    assert pruning.callbacks("ranking") == []
    (callback,) = pruning.callbacks("retrieval")
    assert (callback.trial.number, callback.monitor) == (number, METRIC)


@pytest.mark.parametrize(("others", "epochs"), [(1.1, 1), (-0.1, 3)])
def test_a_real_training_is_stopped_and_its_run_is_complete(others, epochs, tmp_path, monkeypatch):
    """NDCG lies between 0 and 1, so the others are out of reach, or reached at once."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.db"
    study = study_with(path, [[others] * 3])
    study.ask()
    pruning = (
        "+trainer.pruning={_target_:twotower.training.pruning.MedianPruning,"
        f"study:{path},trial:1,monitor:{METRIC},num_complete:1}}"
    )
    small = ["data.num_users=60", "data.num_items=40", "data.slates_per_user=5"]
    small += ["models.retrieval.dim=8", "models.retrieval.hidden=[8]", "trainer.accelerator=cpu"]
    small += ["training.retrieval.max_epochs=3", "evaluation.num_resamples=20", "quiet=true"]
    given = [*small, "training.retrieval.monitor=ndcg@10", "stages=[retrieval]", "name=x", pruning]
    assert command.main(given) == 0
    run = tmp_path / "runs" / "x" / "latest"
    assert json.loads((run / "retrieval" / "finished.json").read_text())["epochs"] == epochs
    assert (run / "metrics.json").is_file()
    trial = study.trials[1]
    assert list(trial.intermediate_values) == list(range(1, epochs + 1))
    assert (PRUNED in trial.user_attrs) == (epochs == 1)
