"""What `retrain` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from twotower.training.cross_version import NEW_PAIR, PAIRS

if TYPE_CHECKING:
    from twotower.cli.retraining import Retrained


def retrain_table(done: Retrained) -> Table:
    """What happened, one row a figure.

    Args:
        done: The retraining.
    """
    table = Table(title=f"Retrained: {done.old.name} -> {done.new.name}")
    for column, side in (("what", "left"), ("old", "right"), ("new", "right"), ("note", "left")):
        table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
    for name, (old, new) in done.rows.items():
        table.add_row(f"rows of {escape(name)}", f"{old:,}", f"{new:,}", "")
    for stage, seconds in done.seconds.items():
        table.add_row(f"{stage}: seconds of training", "", f"{seconds:,.1f}", "")
    for one in done.compared:
        low, high = one.difference.low, one.difference.high
        note = f"{one.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]"
        if one.judged:
            note += " [bold red]worse[/]" if one.is_worse else " [green]not worse[/]"
        table.add_row(one.name, f"{one.old.value:.4f}", f"{one.new.value:.4f}", note)
    if done.space is not None:
        for pair in (*PAIRS, NEW_PAIR):
            if pair in done.space.recall:
                value = f"{done.space.recall[pair]:.4f}"
                table.add_row(f"recall@{done.space.k}, {pair.replace('_', ' ')}", "", value, "")
        kept = "kept: old and new vectors may be compared"
        note = kept if done.space.inherited else "new: embed stored vectors again"
        table.add_row("space of the vectors", "", done.space.space[:12], note)
    for gate in done.gates:
        value = "unknown" if gate.value is None else f"{gate.value:.4g}"
        table.add_row(f"gate {gate.name}", "", value, "passed" if gate.passed else "[red]failed[/]")
    verdict = f"yes; {done.old.name} is kept" if done.published else "no; current stays"
    table.add_row("published", "", verdict, "; ".join(map(escape, done.reasons)))
    return table
