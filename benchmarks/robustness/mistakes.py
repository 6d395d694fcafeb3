"""Makes all mistakes of the catalogue, as the test does, and counts those that are held, by kind.

    python benchmarks/robustness/mistakes.py

The catalogue is `tests/end_to_end/mistakes/`. Held is a mistake that ends with exit status 2, one
message that quotes what was received and says what is allowed or to be done, no traceback, and no
file that is half-written. Not tried is what this machine does not allow, such as mounting a disk.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "serving"))

from running import device, keep  # noqa: E402

KEPT = ROOT / "benchmarks" / "results" / "robustness" / "mistakes.json"
TEST = "tests/end_to_end/test_mistakes.py"
FAULTS = {"failure", "error"}
KIND = re.compile(r"\[(?P<kind>[^:\]]+): (?P<what>.*)\]")


def main() -> int:
    """Run the tests and keep what they found; 1 when a mistake is not held."""
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", TEST, f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases:
        found = KIND.search(case.get("name", ""))
        if found is None:
            continue
        kinds = {child.tag for child in case}
        outcome = "not tried" if "skipped" in kinds else "not held" if kinds & FAULTS else "held"
        counts.setdefault(found["kind"], Counter())[outcome] += 1
        if outcome == "not held":
            print("not held:", found["what"])
    rows = [row(kind, count) for kind, count in counts.items()]
    rows.append(row("all", sum(counts.values(), Counter())))
    keep(
        KEPT,
        {
            "title": f"{rows[-1]['mistakes']} mistakes of a newcomer",
            "command": "python benchmarks/robustness/mistakes.py",
            "device": device(),
            "date": datetime.now(UTC).date().isoformat(),
            "columns": {name: "" for name in rows[-1]},
            "rows": rows,
        },
    )
    return int(bool(rows[-1]["not held"]))


def row(kind: str, count: Counter[str]) -> dict[str, object]:
    """A row of the table."""
    outcomes = {name: count[name] for name in ("held", "not held", "not tried")}
    return {"kind": kind, "mistakes": count.total(), **outcomes}


if __name__ == "__main__":
    sys.exit(main())
