"""What commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from twotower.export.gates import Gate
    from twotower.serving.requests import Recommendation


def gates_table(gates: Sequence[Gate]) -> Table:
    """How a bundle stood at its gates."""
    table = Table(title="Gates")
    for column in ("gate", "measured", "bound", "passed", "note"):
        table.add_column(column, overflow="fold")
    for gate in gates:
        value = "unknown" if gate.value is None else f"{gate.value:.6g}"
        bound = (
            "" if gate.bound is None else f"{gate.comparison.replace('_', ' ')} {gate.bound:.6g}"
        )
        passed = "[green]yes[/]" if gate.passed else "[bold red]no[/]"
        table.add_row(escape(gate.name), value, bound, passed, escape(gate.note))
    return table


def figures_table(title: str, metrics: Mapping[str, float], names: Sequence[str]) -> Table:
    """Some figures with their intervals.

    Args:
        title: Above the table.
        metrics: Figures by name; ends of intervals carry ``/low`` and ``/high``.
        names: Which figures, in order; those that are not there are left out.
    """
    table = Table(title=title)
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name in names:
        if name in metrics:
            low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
            interval = "" if low is None or high is None else f"{low:.4f} .. {high:.4f}"
            table.add_row(name, f"{metrics[name]:.4f}", interval)
    return table


def items_table(title: str, items: Sequence[Recommendation]) -> Table:
    """Recommended items with both scores and the reason; fits 80 columns for short titles."""
    table = Table(
        title=escape(title),
        caption="prob.: of the ranker; score, was: score and place in the retrieval",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    table.add_column("#", justify="right")
    for column in ("title", "item", "prob.", "score", "was", "why"):
        numeric = column in ("prob.", "score", "was")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for place, item in enumerate(items, start=1):
        table.add_row(
            str(place),
            escape(item.title),
            escape(str(item.item_id)),
            "" if item.probability is None else f"{item.probability:.4f}",
            "" if item.retrieval_score is None else f"{item.retrieval_score:.3f}",
            "" if item.retrieval_rank is None else str(item.retrieval_rank),
            escape(item.reason),
        )
    return table


def batch_table(report: Mapping[str, Any]) -> Table:
    """What a batch did."""
    expires = report["expires_at"]
    rows = {
        "users": f"{report['users']:,}",
        "without a list": f"{report['failed']:,}",
        f"lists shorter than {report['k']}": f"{report['short']:,}",
        "scored now": f"{report['scored_now']:,}",
        "seconds": f"{report['seconds']:,.1f}",
        "users a second": f"{report['users_per_second']:,.0f}",
        "Parquet": f"{report['parquet_bytes'] / 1e6:,.1f} MB",
        "store": escape(report["store"]),
        "version": escape(report["namespace"]),
        "expires": "never" if expires is None else f"{datetime.fromtimestamp(expires):%F %T}",
    }
    for reason, said in report["reasons"].items():
        some = ", ".join(map(str, said["examples"]))
        rows[f"no list: {escape(reason)}"] = f"{said['users']:,}, such as {escape(some)}"
    table = Table(title="Batch", show_header=False)
    for column, side in (("what", "left"), ("figure", "right")):
        table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows.items():
        table.add_row(*row)
    return table
