"""One stage's training: trainer, checkpoints, early stopping, resume, then the best weights."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from twotower.data.batches import ShuffledBatches
from twotower.training.callbacks import ProgressBar, RandomState, Throughput, ValidationMetrics
from twotower.training.optimizers import OptimizerSettings

log = logging.getLogger(__name__)

BEST = "best"
LAST = "last"
FINISHED = "finished.json"
TENSORBOARD = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What both stages' trainers share.

    Args:
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: ``auto`` (bf16 where the device has it), ``32-true`` or ``bf16-mixed``.
        compile: Whether the model goes through `torch.compile`.
        log_every: Steps between two entries in TensorBoard.
        checkpoint_every: Steps between two checkpoints to resume from.
        max_steps: Stop a stage after so many steps, -1 for never; for smoke runs.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    compile: bool = False
    log_every: int = 50
    checkpoint_every: int = 500
    max_steps: int = -1

    def device(self) -> torch.device:
        """The device that models and columns live on."""
        use_gpu = self.accelerator == "gpu" or (
            self.accelerator == "auto" and torch.cuda.is_available()
        )
        return torch.device("cuda" if use_gpu else "cpu")

    def lightning_precision(self) -> Any:  # noqa: ANN401 - Lightning's own union of strings
        """The precision under Lightning's name."""
        if self.precision != "auto":
            return self.precision
        has_bf16 = self.device().type == "cuda" and torch.cuda.is_bf16_supported()
        return "bf16-mixed" if has_bf16 else "32-true"


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How long and on what a stage trains.

    Args:
        batch_size: Examples a step.
        max_epochs: Epochs at most.
        patience: Epochs without a better `monitor` before training stops.
        monitor: Metric of the validation part that decides, such as ``recall@20`` or ``auc``.
        optimizer: Rates and schedule.
    """

    batch_size: int
    max_epochs: int
    patience: int
    monitor: str
    optimizer: OptimizerSettings

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether smaller or larger is better."""
        small = ("loss", "calibration_error", "normalised_entropy")
        return "min" if self.monitor.endswith(small) else "max"


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What became of a stage's training.

    Args:
        epochs: Epochs run.
        steps: Steps run.
        seconds: Wall time, evaluation included.
        best: Best value of the monitored metric.
    """

    epochs: int
    steps: int
    seconds: float
    best: float


def fit_stage(
    *,
    stage: str,
    task: pl.LightningModule,
    loader: ShuffledBatches,
    evaluate: Callable[[], Mapping[str, float]],
    settings: StageSettings,
    trainer_settings: TrainerSettings,
    folder: Path,
    progress: bool = True,
) -> Fitted:
    """Train a stage, or continue where an earlier run of the folder was stopped.

    Args:
        stage: ``retrieval`` or ``ranking``.
        task: The Lightning task; its ``model`` holds the best weights afterwards.
        loader: Training batches.
        evaluate: Metrics of the validation part by full name.
        settings: Of the stage.
        trainer_settings: Of the trainer.
        folder: The run folder; checkpoints go to ``<folder>/<stage>``.
        progress: Whether a progress bar is shown.

    Returns:
        What became of it.
    """
    stage_folder = folder / stage
    finished = stage_folder / FINISHED
    if finished.is_file():
        _load_best(task, stage_folder)
        log.info("Stage %s was finished before: its best weights are used", stage)
        return Fitted(**json.loads(finished.read_text()))
    monitor = f"{stage}/validation/{settings.monitor}"
    checkpoints = _checkpoints(stage_folder, monitor, settings, trainer_settings)
    logger = TensorBoardLogger(save_dir=folder, name=TENSORBOARD, version=stage)
    stopping = EarlyStopping(
        monitor,
        mode=settings.mode,
        patience=settings.patience,
        check_on_train_epoch_end=True,
        check_finite=False,
    )
    metrics = ValidationMetrics(evaluate)
    rates = Throughput(stage=stage, every=trainer_settings.log_every)
    bar: list[pl.Callback] = [ProgressBar(refresh_rate=10)] if progress else []
    trainer = pl.Trainer(
        accelerator=trainer_settings.device().type.replace("cuda", "gpu"),
        devices=1,
        precision=trainer_settings.lightning_precision(),
        max_epochs=settings.max_epochs,
        max_steps=trainer_settings.max_steps,
        callbacks=[metrics, stopping, rates, RandomState(), *checkpoints, *bar],
        logger=logger,
        log_every_n_steps=trainer_settings.log_every,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    task.to(trainer_settings.device())
    last = stage_folder / f"{LAST}.ckpt"
    started = time.perf_counter()
    trainer.fit(
        task,
        train_dataloaders=loader,
        ckpt_path=last if last.is_file() else None,
        weights_only=True,
    )
    if trainer.interrupted:
        raise KeyboardInterrupt
    best = checkpoints[0].best_model_score
    fitted = Fitted(
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=round(time.perf_counter() - started, 1),
        best=float("nan") if best is None else float(best),
    )
    _load_best(task, stage_folder)
    finished.write_text(json.dumps(asdict(fitted)))
    return fitted


def _checkpoints(
    folder: Path, monitor: str, settings: StageSettings, trainer_settings: TrainerSettings
) -> list[ModelCheckpoint]:
    best = ModelCheckpoint(
        dirpath=folder,
        filename=BEST,
        monitor=monitor,
        mode=settings.mode,
        save_weights_only=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    last = ModelCheckpoint(
        dirpath=folder,
        filename=LAST,
        every_n_train_steps=trainer_settings.checkpoint_every,
        save_top_k=1,
        enable_version_counter=False,
    )
    return [best, last]


def _load_best(task: pl.LightningModule, folder: Path) -> None:
    """Put the best weights of a stage into its task."""
    checkpoint = torch.load(folder / f"{BEST}.ckpt", map_location="cpu", weights_only=True)
    task.load_state_dict(checkpoint["state_dict"])
