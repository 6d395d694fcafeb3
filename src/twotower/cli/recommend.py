"""`twotower recommend`: a bundle and a user in, a table of items out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.serving.recommender import Recommendation


def recommend(cfg: DictConfig) -> list[Recommendation]:
    """Recommend items to one user and print them.

    Args:
        cfg: The composed and checked config.
    """
    from rich.console import Console

    from twotower.cli.tables import items_table
    from twotower.export.bundle import open_bundle
    from twotower.serving.recommender import Recommender

    bundle = open_bundle(Path(cfg.bundle))
    items = Recommender(bundle).recommend(user=cfg.user, history=list(cfg.history), k=cfg.k)
    if not cfg.quiet:
        who = "somebody new" if cfg.user is None else f"user {cfg.user}"
        title = f"Top {len(items)} for {who} (bundle {bundle.manifest.name})"
        Console().print(items_table(title, items))
    return items


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("recommend", recommend, argv)
