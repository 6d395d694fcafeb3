"""`twotower explain`: a bundle, a request and an item in, where the item was won or lost out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.serving.explanation import Explanation


def explain(cfg: DictConfig) -> Explanation:
    """Explain why an item is, or is not, recommended, and print it.

    Args:
        cfg: The composed and checked config.

    Raises:
        ValueError: When the bundle does not know the user, the item or what a filter asks for.
    """
    from rich.console import Console

    from twotower.cli.explain_tables import contributions_table, places_table
    from twotower.cli.filters import to_filters
    from twotower.export.bundle import open_bundle
    from twotower.serving.explain import explain as explain_item
    from twotower.serving.recommender import Recommender
    from twotower.serving.requests import Request

    request = Request(
        user=cfg.user, history=list(cfg.history), k=cfg.k, filters=to_filters(cfg.filters)
    )
    explanation = explain_item(Recommender(open_bundle(Path(cfg.bundle))), request, cfg.item)
    if not cfg.quiet:
        whom = "somebody new" if cfg.user is None else f"user {cfg.user}"
        console = Console()
        console.print(explanation.sentence, markup=False, highlight=False)
        title = f"{explanation.title} ({explanation.item_id}) for {whom}"
        console.print(places_table(title, explanation))
        if explanation.contributions:
            console.print(contributions_table(explanation.contributions))
    return explanation


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("explain", explain, argv)
