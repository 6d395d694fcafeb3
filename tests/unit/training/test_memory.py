"""Memory that is freed is asked for again, not mapped anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Twenty matrices of 64 MiB one after the other: 16,384 pages each, if they are mapped anew.
SCRIPT = """
import resource, sys
import torch
from twotower.training.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_fewer_pages_are_mapped() -> None:
    faults = {
        name: int(
            subprocess.run(
                [sys.executable, "-c", SCRIPT, name], check=True, capture_output=True, text=True
            ).stdout
        )
        for name in ("kept", "given back")
    }
    # Small objects settle in what was freed, so now and then a matrix needs a new place.
    assert 2 * faults["kept"] < faults["given back"]
