"""The two sets of versions differ where they must."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
# TorchRec pins the first; the others are its own or come with it.
DIFFERENT = {"torchmetrics"}
ADDED = {
    *("torchrec", "fbgemm-gpu", "fbgemm_gpu-cpu"),
    *("tensordict", "pyre-extensions", "pyvers", "typing-inspect", "cloudpickle"),
}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_constraints_of_the_extra_are_those_of_the_rest() -> None:
    usual, distributed = pins("constraints.txt"), pins("constraints-distributed.txt")
    assert distributed.keys() - usual.keys() == ADDED
    assert {name for name in usual if distributed[name] != usual[name]} == DIFFERENT
