"""Several processes compute what one computes with the same batches."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from twotower.losses.ranks import OneRank

SCRIPT = Path(__file__).with_name("distributed_cases.py")
SIZES = (2, 4)


def load_cases():
    spec = importlib.util.spec_from_file_location("distributed_cases", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = load_cases()


@pytest.fixture(scope="module")
def several(world, tmp_path_factory):
    """What every process of 2 and of 4 found, by their number and rank."""
    results = tmp_path_factory.mktemp("ranks")
    size = max(SIZES)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [
        subprocess.Popen(
            [
                sys.executable,
                SCRIPT,
                world.prepared.folder,
                results,
                *map(str, (rank, size, store.port)),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0] * size, "\n".join(errors)
    found = {
        (num, rank): torch.load(results / f"{num}-{rank}.pt", weights_only=True)
        for num in SIZES
        for rank in range(num)
    }
    for rank in range(size):
        found["examples", rank] = torch.load(results / f"examples-{rank}.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def one(world):
    """What one process finds."""
    return {name: cases.run_case(name, world, OneRank()) for name in cases.CASES}


def wrong(expected, found):
    """Weights whose gradient is off by 1e-5 of itself and 3e-6 of all gradients together.

    The second is for gradients whose parts cancel out, as that of a bias before a batch norm does
    to the last digit.
    """
    floor = 3e-6 * float(torch.stack([gradient.norm() for gradient in expected.values()]).norm())
    return [
        name
        for name, gradient in expected.items()
        if not float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + floor
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", cases.CASES)
class TestSeveralProcesses:
    def test_same_loss(self, name, size, one, several):
        for rank in range(size):
            pairs = zip(one[name]["steps"], several[size, rank][name]["steps"], strict=True)
            for step, (expected, found) in enumerate(pairs):
                assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6, abs=0), step

    def test_same_gradients(self, name, size, one, several):
        for rank in range(size):
            pairs = zip(one[name]["steps"], several[size, rank][name]["steps"], strict=True)
            for step, (expected, found) in enumerate(pairs):
                assert wrong(expected["gradients"], found["gradients"]) == [], step

    def test_same_memory(self, name, size, one, several):
        """Queue, frequencies and the catalogue that is mined are those of the whole batch."""
        expected = one[name]["remembered"]
        remembers = any(
            part in name for part in ("everything", "queue", "frequency", "mined", "norm")
        )
        assert bool(expected) == remembers
        for rank in range(size):
            assert_close(several[size, rank][name]["remembered"], expected)

    def test_same_steps_of_tables_in_bfloat16(self, name, size, one, several):
        """All processes round alike, bit by bit, and as one does with the same gradients.

        Gradients differ in their last digit, which turns the rounding of few numbers.
        """
        expected = one[name]["tables"]
        assert bool(expected) == (", half" in name)
        found = [several[size, rank][name]["tables"] for rank in range(size)]
        for table, rows in expected.items():
            for other in found:
                assert torch.equal(other[table], found[0][table])
            differs = found[0][table] != rows
            assert float(differs.double().mean()) < 0.01
            torch.testing.assert_close(found[0][table], rows, rtol=2**-7, atol=1e-6)


def assert_close(found, expected):
    """Nested states are equal, vectors to the precision of their products."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, torch.Tensor) and expected.dtype == torch.float32:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def test_processes_hold_equal_gradients_bit_by_bit(several):
    """Else their weights would drift apart."""
    for size in SIZES:
        for rank in range(1, size):
            for name in cases.CASES:
                pairs = zip(
                    several[size, 0][name]["steps"], several[size, rank][name]["steps"], strict=True
                )
                for first, other in pairs:
                    for weight, gradient in first["gradients"].items():
                        assert torch.equal(gradient, other["gradients"][weight]), (name, weight)


def test_examples_of_the_first_process_reach_all(several):
    expected = cases.plain(cases.EXAMPLES)
    assert expected["item_rows"] == ["<i4", 4, 3, 2, 1, 0]
    for rank in range(max(SIZES)):
        assert several["examples", rank] == expected


def test_cases_are_what_they_say(one):
    """Gradients are sparse where they shall be, and random numbers matter."""
    for name, found in one.items():
        sparse = {step["sparse"] > 0 for step in found["steps"]}
        assert sparse == {name.endswith("sparse")}, name
        half = {w.dtype for w in found["tables"].values()}
        assert half == ({torch.bfloat16} if ", half" in name else set()), name
    losses = {name: [step["loss"] for step in found["steps"]] for name, found in one.items()}
    assert all(len(values) == 3 for values in losses.values())
    same = [(name, f"{name}, sparse") for name in ("event: mixed", "ranking", "event: mixed, half")]
    same += [("event: catalogue", "event: blockwise")]
    for first, other in same:
        assert losses.pop(other) == pytest.approx(losses[first], rel=1e-6)
    assert len({tuple(values) for values in losses.values()}) == len(losses)
