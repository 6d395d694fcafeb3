"""`twotower monitor`: a bundle and a window of logs in, findings out; exit status 3 on alert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twotower.cli.run import run_command
from twotower.config import Refused

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.monitoring.findings import Finding

LOADS = ("pyarrow.compute", "scipy.stats", "twotower.cli.monitored")


def monitor(cfg: DictConfig) -> list[Finding]:
    """Hold windows of logs against a bundle.

    Args:
        cfg: The composed and checked config.

    Returns:
        All comparisons of the last window; they are written, too.

    Raises:
        ConfigError: When it is not clear what is to be judged.
        Refused: When one of them is an alert.
    """
    from rich.console import Console

    from twotower.cli.finding_tables import advice_lines, findings_table
    from twotower.cli.monitored import check_what, open_judge, watch_folder
    from twotower.monitoring.findings import alerts

    check_what(cfg)
    judge = open_judge(cfg)
    if cfg.watch:
        return watch_folder(cfg, judge)
    if cfg.traffic is not None:
        judgement = judge.judge_traffic(Path(cfg.traffic))
    else:
        judgement = judge.judge(cfg.interactions)
    findings = list(judgement.entry.findings)
    if not cfg.quiet:
        console = Console()
        console.print(findings_table(findings))
        reason = judgement.entry.reason
        lines = [f"concept drift is not judged: {reason}"] if reason else []
        for line in (*advice_lines(findings), *lines, f"written: {judgement.folder}"):
            console.print(line, highlight=False, soft_wrap=True)
    if found := alerts(findings):
        subjects = ", ".join(dict.fromkeys(one.subject for one in found))
        raise Refused(f"{len(found)} alerts: {subjects}; see {judgement.folder}")
    return findings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("monitor", monitor, argv, loads=LOADS)
