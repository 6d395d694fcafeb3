"""`twotower rollback`: the version that was published before is published again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def rollback(cfg: DictConfig) -> Path:
    """Let ``current`` point to an earlier version, whose files are verified first.

    Args:
        cfg: The composed and checked config.

    Returns:
        The version that is published now.

    Raises:
        BundleError: When there is no earlier version, or one of its files was changed; ``current``
            is where it was.
    """
    from twotower.export.bundle import open_bundle, resolve
    from twotower.export.writer import publish, published_before

    old = resolve(Path(cfg.bundle))
    home = old.parent
    new = published_before(home) if cfg.version is None else resolve(home / cfg.version)
    open_bundle(new)
    publish(new)
    if not cfg.quiet:
        print(f"published: {new}\nkept: {old}")
    return new


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("rollback", rollback, argv)
