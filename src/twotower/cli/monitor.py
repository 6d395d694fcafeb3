"""`twotower monitor`: a bundle and a window of logs in, findings out; exit status 3 on alert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twotower.cli.run import run_command
from twotower.config import Refused, build

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.export.bundle import Bundle
    from twotower.monitoring.findings import Finding
    from twotower.monitoring.profile import Profile
    from twotower.monitoring.reference import Reference


def monitor(cfg: DictConfig) -> list[Finding]:
    """Hold a window of logs against a bundle.

    Args:
        cfg: The composed and checked config.

    Returns:
        All comparisons; they are written, too.

    Raises:
        Refused: When one of them is an alert.
    """
    from rich.console import Console

    from twotower.cli.finding_tables import advice_lines, findings_table
    from twotower.export.bundle import open_bundle
    from twotower.monitoring.data_drift import data_drift
    from twotower.monitoring.finding_files import since_when, window_folder, write_findings
    from twotower.monitoring.findings import alerts
    from twotower.monitoring.reference import Reference

    settings = build(cfg.data_drift)
    bundle = open_bundle(Path(cfg.bundle))
    reference = Reference.of(bundle)
    profile = read_profile(cfg, bundle, reference)
    folder = window_folder(Path(cfg.output_dir), bundle.manifest.name, profile.span)
    findings = since_when(data_drift(profile, reference, settings), folder)
    write_findings(folder, bundle.manifest, profile, findings)
    if not cfg.quiet:
        console = Console()
        console.print(findings_table(findings))
        for line in (*advice_lines(findings), f"written: {folder}"):
            console.print(line, highlight=False, soft_wrap=True)
    if found := alerts(findings):
        subjects = ", ".join(dict.fromkeys(one.subject for one in found))
        raise Refused(f"{len(found)} alerts: {subjects}; see {folder}")
    return findings


def read_profile(cfg: DictConfig, bundle: Bundle, reference: Reference) -> Profile:
    """The profile of the window of logs, or of the traffic, that the config names.

    Args:
        cfg: The config.
        bundle: The bundle.
        reference: Its reference.

    Raises:
        ValueError: When it names none or both, or what it names cannot be used.
    """
    from twotower.monitoring.reference import window_form
    from twotower.monitoring.traffic_profile import profile_traffic
    from twotower.monitoring.window_profile import Described, Known, WindowProfiler

    if (cfg.interactions is None) == (cfg.traffic is None):
        raise ValueError(
            "monitor: give one of interactions=<window of logs> and traffic=<what a server kept>, "
            f"got interactions={cfg.interactions} and traffic={cfg.traffic}"
        )
    if cfg.traffic is not None:
        return profile_traffic(Path(cfg.traffic), bundle, reference)
    form = window_form(
        reference,
        columns=dict(cfg.columns),
        on_bad_rows=cfg.on_bad_rows,
        max_repeated=cfg.max_repeated,
    )
    described = Described(users=cfg["users"], items=cfg["items"])
    profiler = WindowProfiler(Known.of(bundle), reference, form, described=described)
    return profiler.profile(cfg.interactions)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("monitor", monitor, argv)
