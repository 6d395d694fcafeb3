"""What a judged window leaves behind: ``findings.json`` and ``profile.npz`` in a folder of its own.

The folder is ``<root>/<bundle>/<start of the window>``, so that the folders of a bundle are its
history in the order of time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twotower.data.schema import DataError
from twotower.export.manifest import Manifest
from twotower.monitoring.findings import Finding, alerts
from twotower.monitoring.profile import Profile

FINDINGS_FILE, PROFILE_FILE = "findings.json", "profile.npz"
FINDINGS_VERSION = 1
WITHOUT_TIME = "no-time"


def window_folder(root: Path, name: str, span: tuple[int, int] | None) -> Path:
    """Where a window belongs.

    Args:
        root: Folder of all that is monitored.
        name: Of the bundle.
        span: Earliest and latest time, epoch seconds UTC; None where there are no times.
    """
    start = WITHOUT_TIME
    if span is not None:
        start = datetime.fromtimestamp(span[0], UTC).strftime("%Y-%m-%dT%H-%M-%S")
    return root / name / start


def write_findings(
    folder: Path, manifest: Manifest, profile: Profile, findings: Sequence[Finding]
) -> None:
    """Write what was found in a window.

    Args:
        folder: Of the window; it is made.
        manifest: Of the bundle.
        profile: Of the window.
        findings: All comparisons.
    """
    folder.mkdir(parents=True, exist_ok=True)
    profile.save(folder / PROFILE_FILE)
    document = {
        "version": FINDINGS_VERSION,
        "bundle": {"name": manifest.name, "version": manifest.version},
        "window": {
            "start": None if profile.span is None else profile.span[0],
            "end": None if profile.span is None else profile.span[1],
            "rows": profile.num_rows,
            **{name: value for name, value in profile.facts.items() if name == "rejected"},
        },
        "alerts": len(alerts(findings)),
        "findings": [_plain(asdict(finding)) for finding in findings],
    }
    staging = folder / f".{FINDINGS_FILE}.staging"
    staging.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    staging.replace(folder / FINDINGS_FILE)


def read_findings(folder: Path) -> list[Finding]:
    """What was found in a window.

    Raises:
        DataError: When it cannot be read.
    """
    path = folder / FINDINGS_FILE
    try:
        document = json.loads(path.read_text())
        if document["version"] != FINDINGS_VERSION:
            found = f"version {document['version']!r}, this release reads {FINDINGS_VERSION}"
            raise DataError([f"{path}: {found}"])
        return [Finding(**_numbers(row)) for row in document["findings"]]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError([f"{path}: no findings, or damaged: {error}"]) from error


def since_when(findings: Iterable[Finding], folder: Path) -> list[Finding]:
    """Alerts that the window before had too began when they began there.

    Args:
        findings: Of a window.
        folder: Of the same window; those beside it are the windows before.
    """
    before = [
        other
        for other in sorted(folder.parent.glob(f"*/{FINDINGS_FILE}"))
        if other.parent.name < folder.name != WITHOUT_TIME
    ]
    known = {}
    if before:
        known = {
            (one.area, one.subject, one.statistic): one.since
            for one in alerts(read_findings(before[-1].parent))
        }
    return [
        replace(one, since=known.get((one.area, one.subject, one.statistic)) or one.since)
        if one.alert
        else one
        for one in findings
    ]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row that JSON can hold; what is no finite number is null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: math.nan if value is None and name in ("value", "threshold") else value
        for name, value in row.items()
    }
