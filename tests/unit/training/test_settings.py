"""Settings of stages and trainer: what is out of range, which device, which way is better."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from twotower.training.optimizers import OptimizerSettings
from twotower.training.settings import StageSettings, TrainerSettings

OPTIMIZER = OptimizerSettings(learning_rate=0.01, table_learning_rate=0.1)


def stage_settings(monitor):
    return StageSettings(
        batch_size=1, max_epochs=1, patience=1, monitor=monitor, optimizer=OPTIMIZER
    )


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"log_every": 0}, "trainer: `log_every` must be at least 1, got 0"),
            ({"checkpoint_every": -1}, "trainer: `checkpoint_every` must be at least 1, got -1"),
            ({"max_steps": 0}, "trainer: `max_steps` must be at least 1, or -1, got 0"),
            ({"log_every": 0, "max_steps": -2}, "`log_every`(.|\n)*`max_steps`"),
            (
                {"table_precision": "float16"},
                "trainer: `table_precision` must be one of float32, bfloat16, got float16",
            ),
            (
                {"table_precision": "bfloat16", "split_tables": True},
                "trainer: `split_tables` keeps rows in float32, got `table_precision` bfloat16",
            ),
        ],
    )
    def test_trainer(self, given, message):
        with pytest.raises(ValueError, match=message):
            TrainerSettings(**given)

    @pytest.mark.parametrize("name", ["batch_size", "max_epochs", "patience"])
    def test_stage(self, name):
        given = {"batch_size": 1, "max_epochs": 1, "patience": 1} | {name: 0}
        with pytest.raises(ValueError, match=f"training: `{name}` must be at least 1, got 0"):
            StageSettings(**given, monitor="auc", optimizer=OPTIMIZER)

    def test_steps_below_none(self):
        given = {"batch_size": 1, "max_epochs": 1, "patience": 1, "min_steps": -1}
        with pytest.raises(ValueError, match="training: `min_steps` must be at least 0, got -1"):
            StageSettings(**given, monitor="auc", optimizer=OPTIMIZER)

    @pytest.mark.parametrize(
        ("steps_of_epoch", "min_steps", "epochs", "patience"),
        [(10, 0, 4, 3), (10, 40, 4, 3), (10, 41, 5, 4), (10, 80, 8, 6), (7, 50, 8, 6)],
    )
    def test_short_epochs_are_more(self, steps_of_epoch, min_steps, epochs, patience):
        settings = replace(
            stage_settings("auc"), max_epochs=4, patience=3, min_steps=min_steps
        ).stretched(steps_of_epoch)
        assert (settings.max_epochs, settings.patience) == (epochs, patience)

    def test_monitor(self):
        stage_settings("auc").check_monitor(["log_loss", "auc"])
        with pytest.raises(ValueError, match="`monitor` must be one of log_loss, auc, got acu"):
            stage_settings("acu").check_monitor(["log_loss", "auc"])

    def test_gpu_that_is_not_there(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match="`accelerator` is gpu but torch sees none"):
            TrainerSettings(accelerator="gpu").device()
        assert TrainerSettings().device() == torch.device("cpu")

    def test_gpu_that_is_there(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        assert TrainerSettings().device() == torch.device("cuda")
        assert TrainerSettings(accelerator="cpu").device() == torch.device("cpu")
        assert TrainerSettings().lightning_precision() == "bf16-mixed"
        assert TrainerSettings(accelerator="cpu").lightning_precision() == "32-true"
        assert TrainerSettings(precision="32-true").lightning_precision() == "32-true"

    @pytest.mark.parametrize(
        ("monitor", "mode"),
        [
            ("recall@20", "max"),
            ("auc", "max"),
            ("log_loss", "min"),
            ("calibration_error", "min"),
            ("normalised_entropy", "min"),
        ],
    )
    def test_which_way_is_better(self, monitor, mode):
        assert stage_settings(monitor).mode == mode
