"""FAISS itself, imported in one place so that its absence has one message."""

from __future__ import annotations

import logging
from typing import Any

# At level INFO it tells of every CPU variant that it does not find.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)

try:
    import faiss as _faiss
except ImportError as error:
    wheels = (
        "install `twotower[cpu]`, or on a machine with an NVIDIA GPU `twotower[gpu]` or "
        "`twotower[gpu-cuvs]` (never two of them)"
    )
    if isinstance(error, ModuleNotFoundError) and error.name == "faiss":
        raise ImportError(f"FAISS is not installed; {wheels}") from error
    raise ImportError(
        f"FAISS is installed but cannot be loaded: {error}; its build and this machine's CUDA do "
        f"not fit; `twotower doctor` says which is there; {wheels}"
    ) from error

# FAISS' own type stubs are incomplete: half of the GPU classes and most attributes are missing.
faiss: Any = _faiss
Handle = Any  # an object of FAISS
