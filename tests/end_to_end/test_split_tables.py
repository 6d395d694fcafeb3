"""Runs whose tables are split: killed with two processes, they end with one or four."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torchrec") is None,
        reason="the extra `distributed` (TorchRec) is not installed",
    ),
]

ROOT = Path(__file__).parents[2]
TINY = """\
# @package _global_
name: tiny
quiet: true
data: {num_users: 60, num_items: 40, slates_per_user: 5, slate_size: 6}
models:
  retrieval: {dim: 8, hidden: [8], embedding_dim: 4, dropout: 0}
  ranking: {embedding_dim: 4, deep: {hidden: [8], dropout: 0}}
training:
  retrieval: {batch_size: 31, max_epochs: 3, monitor: recall@10}
  ranking: {batch_size: 61, max_epochs: 2}
evaluation: {ks: [5, 10], num_resamples: 20}
trainer: {accelerator: cpu, checkpoint_every: 2}
"""
# The tables of so small a world, but for those that four processes could not share.
TRAIN = """\
import sys
from twotower.models import embedding
embedding.MIN_SPARSE_ROWS = 10
from twotower.cli.train import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    (folder / "configs" / "experiment").mkdir(parents=True)
    (folder / "configs" / "experiment" / "tiny.yaml").write_text(TINY)
    (folder / "train.py").write_text(TRAIN)
    return folder


def start(home, num_processes, *given):
    """Begin a run with so many processes; None for one that torchrun does not start."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *(torchrun if num_processes else []), "train.py", *given],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


def begun(folder, *further):
    return ["experiment=tiny", "--config-dir", "configs", f"hydra.run.dir={folder}", *further]


def finish(process):
    shown = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, shown


@pytest.fixture(scope="module")
def whole(home):
    """A run of one process with whole tables."""
    finish(start(home, None, *begun("runs/whole")))
    return home / "runs" / "whole"


@pytest.fixture(scope="module", params=["retrieval", "ranking"])
def killed(request, home):
    """A run of two processes with split tables, killed in a stage."""
    folder, stage = home / "runs" / f"killed-{request.param}", request.param
    process = start(home, 2, *begun(folder, "trainer.split_tables=true"))
    while not (folder / stage / "last.ckpt").exists():
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, children)):
        os.kill(number, signal.SIGKILL)
    process.communicate()
    assert len(children) == 2
    assert not (folder / stage / "finished.json").exists()
    assert list((folder / stage).glob("tables-*"))
    return folder


def state(folder):
    """Best weights of both stages, and all figures but seconds."""
    figures = json.loads((folder / "metrics.json").read_text())
    weights = {}
    for stage in ("retrieval", "ranking"):
        checkpoint = torch.load(folder / stage / "best.ckpt", weights_only=True)
        weights |= {f"{stage}/{name}": v for name, v in checkpoint["state_dict"].items()}
    return {n: v for n, v in figures.items() if not n.endswith("seconds")}, weights


@pytest.mark.parametrize("num_processes", [1, 4])
def test_killed_with_two_and_resumed_with_others(home, whole, killed, num_processes):
    folder = home / "runs" / f"{killed.name}-{num_processes}"
    shutil.copytree(killed, folder)
    finish(start(home, num_processes, f"resume={folder}", "quiet=true"))
    (figures, weights), (found, learned) = state(whole), state(folder)
    assert found == pytest.approx(figures, abs=1e-5)
    assert learned.keys() == weights.keys()
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(learned[name], value, rtol=0, atol=1e-4, msg=name)
    assert not list(folder.glob("*/tables-*"))
