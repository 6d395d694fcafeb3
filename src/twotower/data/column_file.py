"""A column written front to back as a NumPy file, with its checksum taken on the way."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class ColumnFile:
    """The file that `np.save` would write if all values were in memory.

    Args:
        path: Where it lies.
        num_rows: How many values there will be.
    """

    def __init__(self, path: Path, num_rows: int) -> None:
        self._num_rows = num_rows
        self._missing = num_rows
        self._digest = sha256()
        self._file: BinaryIO = path.open("wb")
        self._has_header = False

    def append(self, values: Array) -> None:
        """Write the next values (B, ...)."""
        if not self._has_header:
            self._has_header = True
            shape = (self._num_rows, *values.shape[1:])
            description = np.lib.format.dtype_to_descr(values.dtype)
            header = {"descr": description, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self, header)
        self._missing -= len(values)
        self.write(np.ascontiguousarray(values).data.cast("B") if values.size else b"")

    def write(self, content: bytes | memoryview) -> None:
        """Write bytes and count them in."""
        self._file.write(content)
        self._digest.update(content)

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._file.close()

    def finish(self) -> str:
        """Close the file.

        Returns:
            The checksum of its bytes.

        Raises:
            ValueError: When there were more or fewer values than there should have been.
        """
        self.close()
        if self._missing:
            written = self._num_rows - self._missing
            raise ValueError(f"a column has {written} values instead of {self._num_rows}")
        return self._digest.hexdigest()


def save_array(path: Path, values: Array) -> None:
    """The file that `np.save` writes.

    NumPy hands an array to the C library, whose last buffer is written when the file is closed, and
    does not look at whether that went well: on a full disk the end may be missing without an error.
    What is no file to NumPy gets its bytes instead.

    Args:
        path: Where it lies.
        values: Numbers of any shape.

    Raises:
        OSError: When not all of it could be written.
    """
    with path.open("wb") as file:
        bytes_only = SimpleNamespace(write=file.write)
        np.lib.format.write_array(bytes_only, values, allow_pickle=False)
