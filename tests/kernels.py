"""Where tests of Triton's kernels run: on a GPU, or with TRITON_INTERPRET=1 in its interpreter."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
NEEDS_KERNELS = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed"
    ),
    pytest.mark.skipif(
        not (INTERPRETED or torch.cuda.is_available()),
        reason="no GPU; TRITON_INTERPRET=1 runs the kernels without one",
    ),
]
