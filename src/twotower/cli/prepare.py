"""`twotower prepare`: user tables in, a prepared data set out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from twotower.cli.run import TRAINING_NEEDS, run_command

# The config is that of `train`; these parts of it would load torch and Lightning.
UNUSED = ("models", "losses", "training", "trainer", "evaluation")

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.data.prepared import Prepared


def prepare(cfg: DictConfig) -> Prepared:
    """Prepare the data and say where it lies.

    Args:
        cfg: The composed and checked config.
    """
    from twotower.cli.data import prepare_from

    prepared = prepare_from(cfg)
    if not cfg.quiet:
        counts = prepared.manifest["counts"]
        shown = ", ".join(f"{name} {count}" for name, count in counts.items() if count is not None)
        Console().print(f"prepared data: {prepared.folder}\nrows: {shown}", soft_wrap=True)
    return prepared


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("prepare", prepare, argv, needs=TRAINING_NEEDS, unused=UNUSED)
