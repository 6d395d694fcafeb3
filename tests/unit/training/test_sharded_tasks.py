"""Both stages learn with tables split over processes what one process learns with whole ones."""

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

SCRIPT = Path(__file__).with_name("sharded_tasks.py")
SIZES = (2, 4)

if importlib.util.find_spec("torchrec") is None:
    pytest.skip("the extra `distributed` (TorchRec) is not installed", allow_module_level=True)


def load_tasks():
    spec = importlib.util.spec_from_file_location("sharded_tasks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tasks = load_tasks()


@pytest.fixture(scope="module")
def one(world):
    return {name: tasks.losses(name, world, OneRank()) for name in tasks.NAMES}


@pytest.fixture(scope="module", params=SIZES)
def several(request, world, tmp_path_factory):
    """What each of some processes found."""
    results, size = tmp_path_factory.mktemp("tasks"), request.param
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, world.prepared.folder, results]
            + [str(value) for value in (rank, size, store.port)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    try:
        errors = [process.communicate(timeout=120)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * size, "\n".join(errors)
    return [torch.load(results / f"{size}-{rank}.pt") for rank in range(size)]


@pytest.mark.parametrize("name", tasks.NAMES)
def test_same_losses(name, one, several):
    assert len(one[name]) == 3 * tasks.EPOCHS
    assert one[name][-3] < one[name][0]  # it learns
    for found in several:
        assert found[name] == pytest.approx(one[name], abs=1e-5)
