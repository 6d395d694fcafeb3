"""A checkpoint read back, also where nothing is trained: Lightning is not needed, nor loaded."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from twotower.data.schema import DataError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `torch.save` wrote, after every part was held against its checksum.

    Args:
        path: The file; tensors come to the CPU, and nothing but tensors and plain values.

    Raises:
        FileNotFoundError: When there is none.
        DataError: When it was cut or changed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as parts:  # torch itself compares no checksums
            changed = parts.testzip()
        if changed is None:
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return found
        reason = f"{changed} was changed"
    except Exception as error:  # whatever zip and torch make of it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise DataError(
        [
            f"{path}: cannot be read as a checkpoint: {reason}; it was cut or changed since it was "
            "written: copy the run again, or train again"
        ]
    )
