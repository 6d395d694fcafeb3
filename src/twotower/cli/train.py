"""`twotower train`: prepared data in, a run folder with the trained stages out."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from twotower.cli.run import TRAINING_NEEDS, run_command
from twotower.config import check

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.cli.processes import Processes
    from twotower.losses.ranks import Ranks

# What stands in the run folder before a stage begins: `training.run_folder.start_run`.
PRELUDE = (
    *("config.yaml", "features", "features.yaml", "prepared.json", "tensorboard", "versions.json"),
)

LOADS = ("torch", "lightning_fabric", "pytorch_lightning", "twotower.cli.training_run")


def train(
    cfg: DictConfig, processes: Processes | None = None, *, summary: bool = True
) -> dict[str, float]:
    """Prepare the data, train the stages, write the run folder.

    Args:
        cfg: The composed and checked config; with ``resume`` that of the run takes its place.
        processes: Those of the command, which go on to the next job; None for some of its own.
        summary: Whether the figures are printed in the end, unless all is quiet.

    Returns:
        The figures of ``metrics.json``.
    """
    from twotower.cli.processes import Processes
    from twotower.cli.training_run import config_to_resume

    if cfg.resume is not None:
        cfg = config_to_resume(cfg)
        check(cfg, TRAINING_NEEDS)
    if processes is None:
        with Processes() as own:
            return train(cfg, own, summary=summary)
    try:
        return train_together(cfg, processes.start(cfg), summary=summary)
    except BaseException as error:
        processes.failed(error)
        raise


def train_together(cfg: DictConfig, ranks: Ranks, *, summary: bool = True) -> dict[str, float]:
    """What every process does; the first one writes.

    Args:
        cfg: The config.
        ranks: The processes.
        summary: Whether the figures are printed in the end, unless all is quiet.
    """
    from twotower.cli.training_run import TrainingRun

    run = TrainingRun.start(cfg, ranks)
    trained = run.retrieval() if run.wants("retrieval") else None
    if run.wants("ranking"):
        run.ranking(trained)
    return run.finish(summary=summary)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    rank, size = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE"))
    if rank and size:
        from twotower.cli.processes import follow

        return follow(train_together)
    with ExitStack() as ends:

        @functools.cache
        def processes() -> Processes:
            from twotower.cli.processes import Processes

            return ends.enter_context(Processes())

        @functools.wraps(train)
        def job(cfg: DictConfig) -> dict[str, float]:
            return train(cfg, processes())

        status = run_command("train", job, argv, needs=TRAINING_NEEDS, prelude=PRELUDE, loads=LOADS)
        if size:  # The others wait for a word also where nothing was to be done.
            processes()
    return status
