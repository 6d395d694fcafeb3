"""`twotower batch`: lists for all users of a bundle -> Parquet and a key-value store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def batch(cfg: DictConfig) -> dict[str, Any]:
    """Score all users of a bundle and bring their lists into a store.

    Args:
        cfg: The composed and checked config.

    Returns:
        The figures of ``batch.json``.

    Raises:
        Refused: When more users failed than allowed; readers find what they found before.
    """
    from rich.console import Console

    from twotower.cli.filters import to_filters
    from twotower.cli.tables import batch_table
    from twotower.config import Refused, build
    from twotower.export.bundle import resolve
    from twotower.export.manifest import read_manifest
    from twotower.serving.batch import BatchSettings, run_batch

    settings = BatchSettings(
        k=cfg.k,
        filters=to_filters(cfg.filters),
        seconds=cfg.seconds,
        chunk_size=cfg.chunk_size,
        keep=cfg.keep,
        ttl_days=cfg.ttl_days,
        max_failed_share=cfg.max_failed_share,
    )
    folder = resolve(Path(cfg.bundle))
    name = cfg.name or read_manifest(folder).name
    home = Path(cfg.output_dir).absolute() / name
    store, workers = build(cfg.store, name=name), build(cfg.workers)
    result = run_batch(folder, home, store, settings, workers, progress=not cfg.quiet)
    report = result.report
    if result.path is None:
        reasons = "; ".join(f"{why}: {said['users']}" for why, said in report["reasons"].items())
        raise Refused(
            f"{report['failed']:,} of {report['users']:,} users so far have no list, more than the "
            f"share max_failed_share={settings.max_failed_share:g} of all; nothing was published "
            f"({reasons})"
        )
    if not cfg.quiet:
        console = Console()
        console.print(batch_table(report))
        console.print(f"written: {result.path.parent}", highlight=False, soft_wrap=True)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("batch", batch, argv, needs=("name",))
