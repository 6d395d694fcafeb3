"""`twotower export`: a run folder in, a bundle out, published when its gates pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twotower.cli.run import run_command
from twotower.config import Refused, build

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.export.build import ExportResult


def export(cfg: DictConfig) -> ExportResult:
    """Export a run.

    Args:
        cfg: The composed and checked config.

    Returns:
        The version folder and how it stood at the gates.

    Raises:
        Refused: When a gate said no; ``current`` is where it was.
    """
    from rich.console import Console

    from twotower.cli.load_run import load_run
    from twotower.cli.tables import gates_table
    from twotower.export.build import export_bundle
    from twotower.export.triton import repository_folder, write_repository
    from twotower.training.run_folder import read_metrics

    root = Path(cfg.output_dir)
    run = load_run(Path(cfg.run))
    name = cfg.name or run.config.name
    repository = repository_folder(cfg.triton, root / name)
    result = export_bundle(
        parts=run.parts(read_metrics(run.folder)),
        root=root,
        name=name,
        index_builder=build(cfg.index),
        gate_settings=build(cfg.gates),
        num_candidates=cfg.num_candidates,
        ranker_precision=cfg.ranker_precision,
        progress=not cfg.quiet,
    )
    if not cfg.quiet:
        console = Console()
        console.print(gates_table(result.gates))
        console.print(f"bundle: {result.folder}", highlight=False, soft_wrap=True)
    if not result.published:
        failed = ", ".join(gate.name for gate in result.gates if not gate.passed)
        raise Refused(f"not published: {failed}; `current` is where it was")
    written = None if repository is None else write_repository(result.folder, repository)
    if not cfg.quiet:
        home = result.folder.parent / "current"
        console.print(
            f"published: {home}\nnext: twotower evaluate bundle={home}\n"
            f"      twotower recommend bundle={home} user=<id>",
            highlight=False,
            soft_wrap=True,
        )
    if written is not None and not cfg.quiet:
        console.print(
            f"Triton: {written.folder}: {', '.join(written.models)} (version {written.version})\n"
            f"next: tritonserver --model-repository {written.folder.resolve()}",
            highlight=False,
            soft_wrap=True,
        )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("export", export, argv)
