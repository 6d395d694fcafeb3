"""What was judged when: one JSON line a window, in the folder of a bundle's monitoring.

``history.jsonl`` is only ever added to. A window whose labels had not matured has a line that says
so, and another one when it was judged; the last line of a window counts. A line that a killed
process left unfinished is cut off by the next one that writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twotower.data.schema import DataError
from twotower.monitoring.concept_history import WindowFigures
from twotower.monitoring.findings import Finding

HISTORY_FILE = "history.jsonl"
HISTORY_VERSION = 1
JUDGED, PENDING, UNLABELLED, UNUSABLE = "judged", "pending", "unlabelled", "unusable"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a window.

    Args:
        window: Its name: that of its file or folder.
        bundle: Version of the bundle that it was held against.
        start: Start of the window, epoch seconds UTC.
        end: Its end.
        rows: Rows of it.
        labels: ``judged`` when concept drift was looked for, ``pending`` when its labels have not
            matured, ``unlabelled`` when it has none and no recall either, ``unusable`` when the
            window could not be read.
        reason: Why it is not judged; empty when it is.
        until: When its labels will have matured, epoch seconds UTC.
        figures: Its figures over all rows, or None.
        findings: All comparisons that were made.
    """

    window: str
    bundle: str
    start: int
    end: int
    rows: int
    labels: str
    reason: str = ""
    until: int | None = None
    figures: WindowFigures | None = None
    findings: Sequence[Finding] = ()

    @property
    def num_alerts(self) -> int:
        """Findings that alert."""
        return sum(finding.alert for finding in self.findings)

    def to_json(self) -> str:
        """One line."""
        document = {name: value for name, value in vars(self).items() if name != "findings"}
        document["version"] = HISTORY_VERSION
        document["figures"] = None if self.figures is None else self.figures.to_dict()
        document["findings"] = [_plain(asdict(finding)) for finding in self.findings]
        return json.dumps(document, allow_nan=False)


def read_history(folder: Path) -> list[Entry]:
    """Windows of a bundle's monitoring by their start; of each the last line counts.

    Args:
        folder: Of the bundle's monitoring; without a history there are none.

    Raises:
        DataError: When a line is damaged or of another version.
    """
    path = folder / HISTORY_FILE
    if not path.is_file():
        return []
    found: dict[str, Entry] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = _entry(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError([f"{path}: line {number} is damaged: {error}"]) from error
        found[entry.window] = entry
    return sorted(found.values(), key=lambda entry: (entry.start, entry.window))


def append_history(folder: Path, entry: Entry) -> None:
    """Add a line, which is on the disk when this returns.

    Args:
        folder: Of the bundle's monitoring; it is made.
        entry: What is known of a window.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / HISTORY_FILE).open("a+b") as file:
        file.seek(0)
        written = file.read()
        whole = written.rfind(b"\n") + 1
        if whole < len(written):
            file.truncate(whole)
        file.write(entry.to_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _entry(document: Mapping[str, Any]) -> Entry:
    fields = dict(document)
    version = fields.pop("version")
    if version != HISTORY_VERSION:
        raise ValueError(f"version {version!r}, this release reads {HISTORY_VERSION}")
    figures = fields.pop("figures")
    findings = [Finding(**_numbers(row)) for row in fields.pop("findings")]
    return Entry(
        **fields,
        figures=None if figures is None else WindowFigures.from_dict(figures),
        findings=tuple(findings),
    )


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: math.nan if value is None and name in ("value", "threshold") else value
        for name, value in row.items()
    }
