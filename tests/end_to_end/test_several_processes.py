"""`twotower train` by several processes: the figures of one, one run folder, one message."""

from __future__ import annotations

import contextlib
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
from omegaconf import OmegaConf

from twotower.cli import train as command
from twotower.cli.processes import Processes

ROOT = Path(__file__).parents[2]
TINY = """\
# @package _global_
name: tiny
quiet: true
data: {num_users: 60, num_items: 40, slates_per_user: 5, slate_size: 6}
models:
  retrieval: {dim: 8, hidden: [8], embedding_dim: 4, dropout: 0}
  ranking: {embedding_dim: 4, deep: {hidden: [8], dropout: 0}}
losses:
  retrieval:
    negatives:
      num_uniform: 16
      queue: {_target_: twotower.losses.queue.CrossBatchQueue, size: 50, warm_up: 2}
      frequency:
        _target_: twotower.losses.streaming_frequency.StreamingFrequency
        num_buckets: 30
        num_hashes: 2
        rate: 0.1
    hard:
      _target_: twotower.losses.hard_negatives.HardNegatives
      num: 3
      num_queries: 9
      every: 4
      warm_up: 2
      skip: 0
training:
  retrieval: {batch_size: 31, max_epochs: 3, monitor: recall@10}
  ranking: {batch_size: 61, max_epochs: 2}
evaluation: {ks: [5, 10], num_resamples: 20}
trainer: {accelerator: cpu, checkpoint_every: 2}
"""
FAILING = """\
import os, sys
from twotower.cli.train import main
from twotower.losses.ranking import BinaryLogLoss

steps, forward = [], BinaryLogLoss.forward

def failing(*given):
    steps.append(None)
    if os.environ["RANK"] == "1" and len(steps) == 20:
        raise RuntimeError("the second process is out of luck")
    return forward(*given)

BinaryLogLoss.forward = failing
sys.exit(main())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder in which the commands are called."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "configs" / "experiment").mkdir(parents=True)
    (folder / "configs" / "experiment" / "tiny.yaml").write_text(TINY)
    (folder / "failing.py").write_text(FAILING)
    return folder


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["train.py"])


def arguments(folder, *further):
    return ["experiment=tiny", "--config-dir", "configs", f"hydra.run.dir={folder}", *further]


def run(folder, *further):
    assert command.main(arguments(folder, *further)) == 0
    return folder


def state(folder):
    """All weights, and all figures but seconds."""
    found = {"figures": json.loads((folder / "metrics.json").read_text())}
    found["figures"] = {n: v for n, v in found["figures"].items() if not n.endswith("seconds")}
    for stage in ("retrieval", "ranking"):
        for name in ("best", "last"):
            checkpoint = torch.load(folder / stage / f"{name}.ckpt", weights_only=True)
            found |= {f"{stage}/{name}/{n}": v for n, v in checkpoint["state_dict"].items()}
    return found


def start(program, *given):
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *program, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )


def wait_for(path, process):
    """Wait until a process has written a file."""
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)


def followers_of(process):
    """Processes that were started by another one and are alive."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()]


def gone(number):
    with contextlib.suppress(ProcessLookupError):
        stat = Path(f"/proc/{number}/stat")
        return not stat.exists() or stat.read_text().rpartition(") ")[2].startswith("Z")
    return True


@pytest.fixture(scope="module")
def one(home):
    """A run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "argv", ["train.py"])
        return run(home / "runs" / "one")


def test_two_processes_give_the_figures_of_one(one, home, capfd):
    two = run(home / "runs" / "two", "trainer.devices=2")
    assert capfd.readouterr().out == ""
    expected, found = state(one), state(two)
    assert found.keys() == expected.keys()
    assert found["figures"] == pytest.approx(expected["figures"], rel=1e-4, abs=1e-6)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}
    assert {p.name for p in (home / "runs").iterdir()} == {"one", "two", "latest"}


def test_two_processes_that_are_killed_and_resumed_end_as_if_never_killed(home):
    dropout = ("models.retrieval.dropout=0.2", "models.ranking.deep.dropout=0.2")
    whole = run(home / "runs" / "whole", "trainer.devices=2", *dropout)
    folder = home / "runs" / "killed"
    leader = start([ROOT / "train.py"], *arguments(folder, "trainer.devices=2", *dropout))
    wait_for(folder / "ranking" / "last.ckpt", leader)
    followers = followers_of(leader)
    assert len(followers) == 1
    leader.send_signal(signal.SIGKILL)
    leader.communicate()
    deadline = time.monotonic() + 20
    while not all(gone(number) for number in followers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(gone(number) for number in followers)
    assert not (folder / "ranking" / "finished.json").exists()
    shutil.copytree(folder, home / "runs" / "by_one")
    assert command.main([f"resume={folder}", "quiet=true"]) == 0
    expected, found = state(whole), state(folder)
    assert found["figures"] == expected["figures"]
    assert [n for n, v in expected.items() if n != "figures" and not same(v, found[n])] == []
    # One process goes on with the same batches and other dropout.
    given = [f"resume={home / 'runs' / 'by_one'}", "trainer.devices=1", "quiet=true"]
    assert command.main(given) == 0
    figures = state(home / "runs" / "by_one")["figures"]
    assert figures == pytest.approx(expected["figures"], rel=0.2, abs=0.1)
    assert figures != expected["figures"]


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_an_error_is_said_once_by_the_first_process(home, capfd):
    """All processes come upon it."""
    given = ["losses/retrieval=gbce", "losses.retrieval.negatives.in_batch=true"]
    given.append("trainer.devices=2")
    assert command.main(arguments(home / "runs" / "refused", *given)) == 2
    shown = capfd.readouterr().err
    assert shown.count("GBCE needs candidates") == 1
    assert "Traceback" not in shown


def test_a_process_that_is_killed_is_missed(home):
    folder = home / "runs" / "missed"
    leader = start([ROOT / "train.py"], *arguments(folder, "trainer.devices=2"))
    wait_for(folder / "retrieval" / "last.ckpt", leader)
    os.kill(followers_of(leader)[0], signal.SIGKILL)
    shown = leader.communicate(timeout=300)[1].decode()
    assert leader.returncode == 1
    assert shown.count("process 1 of 2 was ended by signal 9") == 1
    assert "Traceback" not in shown


def test_torchrun_and_an_error_of_another_process(one, home):
    """The other process says what is wrong; torchrun ends them all. Then the run goes on."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    folder = home / "runs" / "torchrun"
    process = start([*torchrun, "failing.py"], *arguments(folder, "stages=[ranking]"))
    shown = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 1
    assert shown.count("RuntimeError: the second process is out of luck") == 1
    assert shown.count("process 1 of 2:") == 1
    assert "Connection" not in shown
    assert (folder / "ranking" / "last.ckpt").exists()
    process = start([*torchrun, ROOT / "train.py"], f"resume={folder}", "quiet=true")
    shown = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 0, shown
    assert (folder / "metrics.json").exists()


def test_torchrun_says_how_many(monkeypatch, home, capfd):
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_RANK", 0), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun has started 2 processes on this machine, got 3"):
        Processes().start(OmegaConf.create({"trainer": {"devices": 3}}))
