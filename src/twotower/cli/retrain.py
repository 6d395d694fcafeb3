"""`twotower retrain`: a published bundle and a new window -> the next version, if no worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.cli.retraining import Retrained

LOADS = (
    *("torch", "lightning_fabric", "pytorch_lightning", "onnxscript"),
    *("twotower.cli.training_run", "twotower.cli.retraining"),
)


def retrain(cfg: DictConfig) -> Retrained:
    """Prepare the window, train on from the bundle's run, export, compare, publish.

    Args:
        cfg: The composed and checked config.

    Returns:
        What happened.

    Raises:
        Refused: When the new version is worse, or a gate said no; ``current`` is where it was.
    """
    from rich.console import Console

    from twotower.cli.retrain_tables import retrain_table
    from twotower.cli.retraining import next_version
    from twotower.config import Refused

    done = next_version(cfg)
    if not cfg.quiet:
        console = Console()
        console.print(retrain_table(done))
        console.print(f"report: {done.report}", highlight=False, soft_wrap=True)
    if not done.published:
        raise Refused(f"not published: {'; '.join(done.reasons)}; `current` is where it was")
    return done


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("retrain", retrain, argv, loads=LOADS)
