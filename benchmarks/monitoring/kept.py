"""Figures that `benchmarks/render.py` shows."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

KEPT = Path(__file__).resolve().parents[1] / "results" / "monitoring"


def keep_rows(
    name: str,
    title: str,
    command: str,
    columns: Mapping[str, str],
    rows: Sequence[Mapping],
    *,
    where: str,
) -> None:
    """Write a table.

    Args:
        name: Of the file.
        title: Of the table.
        command: That measured, without the folder of the script.
        columns: Names and formats.
        rows: The figures.
        where: What the process ran on.
    """
    document = {
        "title": title,
        "command": f"python benchmarks/monitoring/{command}",
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{where}, {platform.machine()}",
        "columns": columns,
        "rows": rows,
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
