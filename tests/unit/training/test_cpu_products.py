"""oneDNN multiplies where it keeps float32, and only while it is asked to."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from twotower.training.cpu_products import float32_by_onednn

CPU = torch.device("cpu")
SCRIPT = """
import torch
from twotower.training.cpu_products import float32_by_onednn

factor = torch.rand(300, 200)
print("before"), torch.mm(factor, factor.T)
print("probed")
with float32_by_onednn(torch.device("cpu")) as used:
    print("within", used), torch.mm(factor, factor.T), torch.nn.functional.linear(factor, factor)
print("after"), torch.mm(factor, factor.T)
"""

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@needs_onednn
def test_onednn_multiplies_within_and_mkl_outside() -> None:
    said = subprocess.run(
        [sys.executable, "-u", "-c", SCRIPT],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    before, _, within, after = re.split("probed|within |after", said)
    counts = [part.count("exec,cpu,matmul") for part in (before, within, after)]
    assert counts == [0, 2 if within.startswith("True") else 0, 0]


@pytest.mark.parametrize(("rows", "inner", "columns"), [(3, 2, 5), (64, 429, 30), (257, 4096, 64)])
def test_products_are_those_of_float32(rows: int, inner: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(columns, inner, generator=generator)
    exact = left.double() @ right.double().T
    # A sum of n products of float32 numbers is off by no more than n roundings of its parts.
    bound = inner * 2.0**-24 * (left.abs().double() @ right.abs().double().T)
    with float32_by_onednn(CPU):
        assert ((left @ right.T - exact).abs() <= bound).all()
        assert ((left.T.contiguous().T @ right.T - exact).abs() <= bound).all()


def test_settings_are_as_before_also_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), float32_by_onednn(CPU):
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_processor_that_rounds_is_left_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16), float32_by_onednn(CPU) as used:
        assert not used
        assert torch.get_float32_matmul_precision() == "highest"


def test_a_gpu_is_left_alone() -> None:
    with float32_by_onednn(torch.device("cuda")) as used:
        assert not used
        assert torch.get_float32_matmul_precision() == "highest"
