"""One stage's training: trainer, checkpoints, early stopping, resume, then the best weights."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import SIGTERMException

from twotower.data.shuffled_batches import ShuffledBatches
from twotower.losses.ranks import Ranks
from twotower.models.tables import halve_tables
from twotower.training.callbacks import (
    ProgressBar,
    ResumePoint,
    ResumeState,
    Stopping,
    Throughput,
    Together,
    ValidationMetrics,
)
from twotower.training.checkpoints import BestWeights, WholeFiles
from twotower.training.distributed import DistributedRanks, agreed, take_part
from twotower.training.processes import PATIENCE, StartedTogether
from twotower.training.profile import Profile
from twotower.training.read_checkpoint import read_checkpoint
from twotower.training.run_folder import (
    BEST,
    FINISHED,
    LAST,
    TENSORBOARD,
    read_json,
    write_json,
)
from twotower.training.settings import HALF, StageSettings, TrainerSettings
from twotower.training.split_tables import SplitTables
from twotower.training.task import StageTask

log = logging.getLogger(__name__)

# What Lightning says that a user can do nothing about, or that is always so here.
EXPECTED_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Checkpoint directory .* exists and is not empty",
    r"It is recommended to use `self.log\(.*sync_dist=True\)`",  # all processes log the same
    r"`broadcast_buffers` is deprecated",  # by torch 2.13; its successor is not in 2.11
)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What became of a stage's training.

    Args:
        epochs: Epochs run.
        steps: Steps run.
        seconds: Wall time, evaluation included; of a resumed run, since it was resumed.
        best: Value of the monitored metric with the weights that were kept.
    """

    epochs: int
    steps: int
    seconds: float
    best: float


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch.

    Args:
        seed: At least 0.
    """
    pl.seed_everything(seed, verbose=False)


def fit_stage(
    *,
    stage: str,
    task: StageTask,
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
        task: The Lightning task; its ``model`` holds the weights that are kept afterwards. Of the
            processes that it is trained by, the first one writes.
        loader: Training batches.
        evaluate: Metrics of the validation part by full name.
        settings: Of the stage.
        trainer_settings: Of the trainer.
        folder: The run folder; checkpoints go to ``<folder>/<stage>``.
        progress: Whether a progress bar is shown.

    Returns:
        What became of it.

    Raises:
        SystemExit: When the process is told to terminate; its status says so.
    """
    ranks, device = task.ranks, trainer_settings.device()
    if trainer_settings.table_precision == HALF:
        halve_tables(task)
    stage_folder = folder / stage
    finished, last = stage_folder / FINISHED, stage_folder / f"{LAST}.ckpt"
    if _all_see(finished, ranks):
        log.info("%s: finished before, the best weights are loaded", stage)
        _load_best(task, stage_folder, device)
        return read_json(finished, lambda found: Fitted(**found))
    log_every = min(trainer_settings.log_every, len(loader))
    stopping, best = _selection(stage, stage_folder, settings, trainer_settings.max_steps)
    pruning = trainer_settings.pruning if ranks.rank == 0 else None
    callbacks = [
        ValidationMetrics(evaluate),
        stopping,
        *(pruning.callbacks(stage) if pruning else []),
        *([Together(ranks)] if isinstance(ranks, DistributedRanks) else []),
        Throughput(stage=stage, every=log_every, num_processes=ranks.size),
        ResumeState(loader, ranks),
        best,
        ResumePoint(path=last, every=trainer_settings.checkpoint_every),
        *([Profile(stage_folder)] if trainer_settings.profile and ranks.rank == 0 else []),
        *([ProgressBar(stage)] if progress else []),
    ]
    _place(task, trainer_settings, (last, best.path))
    started = time.perf_counter()
    with _quiet_lightning():
        trainer = _trainer(
            trainer_settings,
            ranks,
            callbacks=callbacks,
            logger=TensorBoardLogger(save_dir=folder, name=TENSORBOARD, version=stage),
            max_epochs=settings.max_epochs,
            log_every=log_every,
            progress=progress,
        )
        resumed = last if _all_see(last, ranks) else None
        if resumed:
            log.info("%s: goes on from %s", stage, last)
        _run(trainer, task, loader, resumed)
    _load_best(task, stage_folder, device)
    # A run that is resumed after its last epoch has not seen the metrics of that epoch.
    of_kept = best.best_model_score if settings.keep == "best" else evaluate()[stopping.monitor]
    fitted = Fitted(
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=round(time.perf_counter() - started, 1),
        best=float("nan") if of_kept is None else float(of_kept),
    )
    _finish(task, fitted, finished, last)
    log.info(
        "%s: %d epochs, %d steps in %.1f s, %s %s on validation %.4f",
        *(stage, fitted.epochs, fitted.steps, fitted.seconds),
        *(settings.keep, settings.monitor, fitted.best),
    )
    return fitted


def _trainer(
    settings: TrainerSettings,
    ranks: Ranks,
    *,
    callbacks: list[pl.Callback],
    logger: TensorBoardLogger,
    max_epochs: int,
    log_every: int,
    progress: bool,
) -> pl.Trainer:
    """Lightning's trainer, of one process or of those that are connected."""
    devices, num_nodes = 1, 1
    strategy: DDPStrategy | str = "auto"
    plugins: list[Any] = [WholeFiles()]
    if isinstance(ranks, DistributedRanks):
        devices, num_nodes = ranks.local_size, ranks.size // ranks.local_size
        # What is not a weight is computed alike by all.
        strategy = DDPStrategy(broadcast_buffers=False, timeout=PATIENCE)
        plugins.append(StartedTogether(ranks))
    return pl.Trainer(
        accelerator=settings.device().type.replace("cuda", "gpu"),
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=settings.lightning_precision(),
        max_epochs=max_epochs,
        callbacks=callbacks,
        logger=logger,
        log_every_n_steps=log_every,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        plugins=plugins,
    )


def _run(
    trainer: pl.Trainer, task: StageTask, loader: ShuffledBatches, resumed: Path | None
) -> None:
    """Train to the end, from a checkpoint if there is one."""
    if isinstance(task.ranks, DistributedRanks):
        take_part(task, task.ranks)
    try:
        trainer.fit(task, train_dataloaders=loader, ckpt_path=resumed, weights_only=True)
    except SIGTERMException as stopped:  # It has no status, and would pass for success.
        raise SystemExit(128 + signal.SIGTERM) from stopped


def _place(task: StageTask, settings: TrainerSettings, checkpoints: tuple[Path, ...]) -> None:
    """Put a task on its device, which may not hold whole the tables to split, and compile it."""
    if settings.split_tables:
        task.split = SplitTables(task, device=settings.device(), checkpoints=checkpoints)
        task.split.clear()
    task.to(settings.device())
    if settings.compile:
        for part in task.dense_parts:
            part.compile()


def _finish(task: StageTask, fitted: Fitted, finished: Path, last: Path) -> None:
    """Write what became of a stage; tables that were split are in its best weights now."""
    if task.ranks.rank == 0:
        write_json(finished, asdict(fitted))
    if task.split is not None:
        task.split.forget(last)


def _all_see(path: Path, ranks: Ranks) -> bool:
    """Whether the first process sees a file."""
    return bool(agreed({"there": path.is_file()}, ranks)["there"])


def _selection(
    stage: str, folder: Path, settings: StageSettings, max_steps: int
) -> tuple[Stopping, BestWeights]:
    """When training stops, and which weights are kept."""
    monitor, keeps_best = f"{stage}/validation/{settings.monitor}", settings.keep == "best"
    stopping = Stopping(
        monitor=monitor,
        mode=settings.mode,
        patience=settings.patience if keeps_best else settings.max_epochs,
        max_steps=max_steps,
    )
    best = BestWeights(
        path=folder / f"{BEST}.ckpt", monitor=monitor if keeps_best else None, mode=settings.mode
    )
    return stopping, best


def _load_best(task: StageTask, folder: Path, device: torch.device) -> None:
    """Put the best weights of a stage into its task, and the task back where it was trained."""
    path = folder / f"{BEST}.ckpt"
    checkpoint = read_checkpoint(path)
    if task.split is not None:
        checkpoint = task.split.make_whole(task, checkpoint)
        if task.ranks.rank == 0:
            WholeFiles().save_checkpoint(checkpoint, path)
    task.load_state_dict(checkpoint["state_dict"])
    task.to(device)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's announcements; what a user should see is said by this package."""
    logger = logging.getLogger(pl.__name__)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.setLevel(level)
