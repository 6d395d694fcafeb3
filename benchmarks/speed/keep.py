"""Keeps the figures of a speed benchmark for RESULTS.md.

    python benchmarks/speed/keep.py NAME --title TITLE --command COMMAND --device DEVICE
        --columns COLUMN=FORMAT ... --rows FILE.json ...

FORMAT is how Python writes the number, such as `,.0f`; a column without one is text. A file holds a
row or a list of rows; `COLUMN` is a key of a row.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

KEPT = Path(__file__).resolve().parents[1] / "results" / "speed"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--title", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--columns", nargs="+", required=True)
    parser.add_argument("--rows", nargs="+", type=Path, required=True)
    given = parser.parse_args()
    rows = []
    for path in given.rows:
        found = json.loads(path.read_text())
        rows += found if isinstance(found, list) else [found]
    document = {
        "title": given.title,
        "command": given.command,
        "device": given.device,
        "date": datetime.now(UTC).date().isoformat(),
        "columns": dict(column.partition("=")[::2] for column in given.columns),
        "rows": rows,
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{given.name}.json").write_text(json.dumps(document, indent=1) + "\n")
