"""`twotower train`: prepared data in, a run folder with the trained stages out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twotower.cli.run import TRAINING_NEEDS, run_command
from twotower.config import check

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What stands in the run folder before a stage begins: `training.run_folder.start_run`.
PRELUDE = ("config.yaml", "features", "features.yaml", "prepared.json", "versions.json")


def train(cfg: DictConfig) -> dict[str, float]:
    """Prepare the data, train the stages, write the run folder.

    Args:
        cfg: The composed and checked config; with ``resume`` that of the run takes its place.

    Returns:
        The figures of ``metrics.json``.
    """
    from twotower.cli.training_run import TrainingRun, config_to_resume

    if cfg.resume is not None:
        cfg = config_to_resume(cfg)
        check(cfg, TRAINING_NEEDS)
    run = TrainingRun.start(cfg)
    trained = run.retrieval() if run.wants("retrieval") else None
    if run.wants("ranking"):
        run.ranking(trained)
    return run.finish()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("train", train, argv, needs=TRAINING_NEEDS, prelude=PRELUDE)
