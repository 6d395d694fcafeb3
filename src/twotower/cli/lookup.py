"""`twotower lookup`: what a store holds for a user, as a table of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.serving.store import Lookup


def lookup(cfg: DictConfig) -> Lookup:
    """Look a user up and print the list.

    Args:
        cfg: The composed and checked config.

    Raises:
        ValueError: When there is nothing for the user, not even popular items.
        Refused: When the list is older than wanted.
    """
    from rich.console import Console

    from twotower.cli.tables import items_table
    from twotower.config import Refused, build
    from twotower.serving.store import StoreReader

    max_age = None if cfg.max_age_hours is None else cfg.max_age_hours * 3600
    store = build(cfg.store, name=cfg.name)
    reader = StoreReader(values=store.values(), max_age=max_age, location=store.location)
    found = reader.lookup(cfg.user, k=cfg.k)
    if found.status == "missing":
        raise ValueError(f"{store.location}: {found.note}")
    if not cfg.quiet:
        title = (
            f"Top {len(found.items)} for user {cfg.user} ({found.status}, bundle {found.version})"
        )
        console = Console()
        console.print(items_table(title, found.items))
        console.print(found.note, highlight=False, soft_wrap=True)
    if found.status == "stale":
        raise Refused(f"{store.location}: {found.note}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("lookup", lookup, argv, needs=("name",))
