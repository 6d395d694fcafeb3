"""Stopping a trial of a sweep that is worse than most others were after as many epochs.

The rule is the median rule of Golovin et al. 2017, "Google Vizier: A Service for Black-Box
Optimization": stop when the best value so far lies below the median of what the others had reached.
The stage then ends as with early stopping, so the run folder is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl

if TYPE_CHECKING:
    from optuna import Trial

STUDY_NAME = "sweep"
PRUNED = "pruned"


@dataclass(frozen=True, kw_only=True)
class MedianPruning:
    """Which trial of which sweep a training is.

    Args:
        study: SQLite file of the sweep.
        trial: Number of the trial.
        monitor: Metric that decides, such as ``retrieval/validation/recall@20``.
        num_complete: Trials that must be complete before one is stopped.
    """

    study: str
    trial: int
    monitor: str
    num_complete: int

    def callbacks(self, stage: str) -> list[pl.Callback]:
        """The callback, for the stage that has the metric."""
        if not self.monitor.startswith(f"{stage}/"):
            return []
        trial = open_trial(Path(self.study), self.trial, num_complete=self.num_complete)
        return [StopBelowMedian(trial, self.monitor)]


class StopBelowMedian(pl.Callback):
    """Reports the metric of every epoch to the study and stops the stage when the study says so.

    Args:
        trial: The trial.
        monitor: Full name of the metric.
    """

    def __init__(self, trial: Trial, monitor: str) -> None:
        self.trial = trial
        self.monitor = monitor

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and stop; a stage that ends with this epoch is not cut short."""
        epochs = trainer.current_epoch + 1
        self.trial.report(float(trainer.callback_metrics[self.monitor]), step=epochs)
        ends = trainer.should_stop or epochs == trainer.max_epochs
        if not ends and self.trial.should_prune():
            self.trial.set_user_attr(PRUNED, True)
            trainer.should_stop = True


def study_url(path: Path) -> str:
    """A SQLite file under Optuna's name."""
    return f"sqlite:///{path.resolve()}"


def open_trial(path: Path, number: int, *, num_complete: int) -> Trial:
    """A trial that is running.

    Args:
        path: SQLite file of the study.
        number: Number of the trial.
        num_complete: Trials that must be complete before one is stopped.
    """
    import optuna

    storage = optuna.storages.RDBStorage(study_url(path))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=num_complete)
    study = optuna.load_study(study_name=STUDY_NAME, storage=storage, pruner=pruner)
    study_id = storage.get_study_id_from_name(STUDY_NAME)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    return optuna.Trial(study, trial_id)
