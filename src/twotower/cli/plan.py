"""`twotower plan`: numbers of users and items in, what it takes and what to take out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twotower.cli.run import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from twotower.planning.capacity import Plan
    from twotower.planning.capacity_question import Question


def plan(cfg: DictConfig) -> Plan:
    """Plan for a business of some size, and print it.

    Args:
        cfg: The composed and checked config.

    Raises:
        ValueError: When a number is out of range or the file cannot be written there.
    """
    from rich.console import Console

    from twotower.cli.plan_tables import memory_table, needs_table, serving_table
    from twotower.planning.capacity import plan as plan_for
    from twotower.planning.capacity_advice import advice

    path = None if cfg.output is None else Path(cfg.output)
    if path is not None and (path.suffix != ".json" or not path.parent.is_dir()):
        raise ValueError(f"`output` must be <name>.json in a folder that is there, got {path}")
    planned = plan_for(_question(cfg))
    words = advice(planned)
    if path is not None:
        document = planned.document() | {"advice": words}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if not cfg.quiet:
        console = Console()
        for table in (memory_table(planned), needs_table(planned), serving_table(planned)):
            console.print(table, "")
        for sentence in words:
            console.print(f"- {sentence}", highlight=False, markup=False)
        if path is not None:
            console.print(f"\nwritten: {path}", highlight=False, soft_wrap=True, markup=False)
    return planned


def _question(cfg: DictConfig) -> Question:
    from twotower.planning.capacity_question import Question

    values = {field.name: cfg[field.name] for field in fields(Question)}
    for name in ("users", "items", "interactions_per_day"):
        values[name] = _whole(values[name])
    return Question(**(values | {name: tuple(cfg[name]) for name in ("hidden", "index")}))


def _whole(number: float | None) -> Any:  # noqa: ANN401 - what is not whole `Question` refuses
    """1e8 as an integer."""
    return int(number) if number is not None and number.is_integer() else number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("plan", plan, argv)
