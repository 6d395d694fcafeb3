"""Figures of a window in a file, so that windows that come later can be held against them.

An ``.npz`` without pickle: for every figure its value, the keys of the users and their influences.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from twotower.data.schema import DataError
from twotower.monitoring.concept_drift import Measured
from twotower.monitoring.estimates import Estimate

MEASURED_VERSION = 1


def save_measured(path: Path, measured: Measured, bundle: str) -> None:
    """Write figures; the file is there whole or not at all.

    Args:
        path: The file.
        measured: The figures.
        bundle: Version of the bundle whose figures they are.
    """
    document = {
        "version": MEASURED_VERSION,
        "bundle": bundle,
        "start": measured.start,
        "end": measured.end,
        "figures": [
            [name, statistic, estimate.value, estimate.num_rows]
            for (name, statistic), estimate in measured.estimates.items()
        ],
    }
    arrays: dict[str, Any] = {"document": np.frombuffer(json.dumps(document).encode(), np.uint8)}
    for place, estimate in enumerate(measured.estimates.values()):
        arrays[f"{place}.users"] = estimate.users
        arrays[f"{place}.influences"] = estimate.influences
    written = BytesIO()
    np.savez_compressed(written, allow_pickle=False, **arrays)
    staging = path.with_name(f".{path.name}.staging")
    staging.write_bytes(written.getvalue())
    staging.replace(path)


def load_measured(path: Path, bundle: str) -> Measured | None:
    """Read what `save_measured` wrote.

    Args:
        path: The file.
        bundle: Version of the bundle whose figures are wanted.

    Returns:
        None where there is no file, or one of another version of the bundle.

    Raises:
        DataError: When the file is damaged or of another version.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            document = json.loads(file["document"].tobytes())
            if document["version"] != MEASURED_VERSION:
                found = f"version {document['version']!r}, this release reads {MEASURED_VERSION}"
                raise DataError([f"{path}: {found}"])
            estimates = {
                (name, statistic): Estimate(
                    value=value,
                    users=file[f"{place}.users"],
                    influences=file[f"{place}.influences"],
                    num_rows=num_rows,
                )
                for place, (name, statistic, value, num_rows) in enumerate(document["figures"])
            }
    except DataError:
        raise
    except Exception as error:  # whatever NumPy, zip and JSON make of it
        raise DataError([f"{path}: no figures, or damaged: {error}"]) from error
    if document["bundle"] != bundle:
        return None
    return Measured(start=document["start"], end=document["end"], estimates=estimates)
