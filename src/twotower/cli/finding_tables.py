"""What `monitor` prints."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich import box
from rich.markup import escape
from rich.table import Table

from twotower.monitoring.findings import Finding, alerts

NUM_QUIET = 8  # comparisons without alert that are shown


def findings_table(findings: Sequence[Finding]) -> Table:
    """All alerts, and of the rest those that were nearest to one."""
    alarming = alerts(findings)
    quiet = sorted(
        (one for one in findings if not one.alert),
        key=lambda one: (1.0 if one.p_value is None else one.p_value, -_nearness(one)),
    )
    shown = quiet[:NUM_QUIET]
    table = Table(
        title=f"{len(alarming)} of {len(findings)} comparisons alert",
        caption=f"{len(quiet) - len(shown)} more without alert" if quiet[NUM_QUIET:] else None,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name, side in (
        *(("what", "left"), ("statistic", "left"), ("value", "right"), ("usual", "right")),
        *(("alert from", "right"), ("p", "right"), ("since", "left")),
    ):
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    for one in (*alarming, *shown):
        style = "bold red" if one.alert else None
        table.add_row(
            escape(one.subject),
            one.statistic,
            f"{one.value:.4g}",
            "" if one.reference is None else f"{one.reference:.4g}",
            f"{one.threshold:.4g}",
            "" if one.p_value is None else f"{one.p_value:.2g}",
            "" if one.since is None else datetime.fromtimestamp(one.since, UTC).strftime("%F %R"),
            style=style,
        )
    return table


def _nearness(one: Finding) -> float:
    """How much of the way to its threshold a value has gone."""
    usual = one.reference or 0.0
    way = one.threshold - usual
    return abs((one.value - usual) / way) if way else 0.0


def advice_lines(findings: Sequence[Finding]) -> list[str]:
    """What to do, each subject once."""
    lines: dict[str, None] = {}
    for one in alerts(findings):
        lines[f"{one.subject}: {one.advice}"] = None
    return list(lines)
