"""Kills training runs at random moments, resumes them, and compares what they end with bit by bit.

    python benchmarks/kill_and_resume.py --kills 20 --seed 0

A run on a small built-in world trains both stages with everything that remembers: dropout, queue,
streaming frequency, mined negatives. It is never killed. Then the same command is started again and
again, killed with SIGKILL at a random moment between the opening of its run folder and its end, and
resumed; one resumed run in two is killed once more, and so on. At the end all weights, the
optimisers, the figures but the seconds and the calibration must be those of the run that was never
killed. With ``--devices 2`` a run is two processes, and all of them are killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("retrieval", "ranking")
CONFIG, METRICS, RANKER, FINISHED = "config.yaml", "metrics.json", "ranker.json", "finished.json"
# Parts of a checkpoint that hold neither times nor paths.
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
WORLD = """\
# @package _global_
name: killed
quiet: true
data: {num_users: 300, num_items: 150, slates_per_user: 6}
models:
  retrieval: {dropout: 0.2, id_dropout: 0.1}
  ranking: {deep: {dropout: 0.2}}
losses:
  retrieval:
    negatives:
      num_uniform: 64
      queue: {_target_: twotower.losses.queue.CrossBatchQueue, size: 300, warm_up: 5}
      frequency:
        _target_: twotower.losses.streaming_frequency.StreamingFrequency
        num_buckets: 100
        num_hashes: 2
        rate: 0.05
    hard:
      _target_: twotower.losses.hard_negatives.HardNegatives
      num: 4
      num_queries: 32
      every: 7
      warm_up: 5
      skip: 0
training:
  retrieval: {batch_size: 64, max_epochs: 8}
  ranking: {batch_size: 256, max_epochs: 6}
evaluation: {num_resamples: 50}
trainer: {accelerator: cpu, checkpoint_every: 3, log_every: 5}
"""


@dataclass
class Runs:
    """Starts and kills the command in a scratch folder.

    Args:
        home: The folder.
        devices: Processes of a run.
    """

    home: Path
    devices: int

    def __post_init__(self) -> None:
        (self.home / "configs" / "experiment").mkdir(parents=True)
        (self.home / "configs" / "experiment" / "killed.yaml").write_text(WORLD)

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start a run whose folder will be there, or resume the one that is."""
        command = [sys.executable, str(ROOT / "train.py")]
        if (folder / CONFIG).is_file():
            command += [f"resume={folder}", "quiet=true"]
        else:
            command += ["experiment=killed", "--config-dir", str(self.home / "configs")]
            command += [f"hydra.run.dir={folder}", f"prepared_dir={self.home / 'prepared'}"]
            command += [f"trainer.devices={self.devices}"] if self.devices > 1 else []
        log = (self.home / "output.txt").open("wb")
        return subprocess.Popen(command, cwd=self.home, stdout=log, stderr=log, process_group=0)

    def finish(self, folder: Path) -> None:
        """Let a run go on to its end."""
        if self.start(folder).wait() != 0:
            sys.exit((self.home / "output.txt").read_text())

    def kill(self, folder: Path, seconds: float) -> bool:
        """Start or resume, and kill after so many seconds; whether it was still alive."""
        run = self.start(folder)
        try:
            if run.wait(timeout=seconds) != 0:
                sys.exit((self.home / "output.txt").read_text())
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            return True
        return False


def where(folder: Path) -> str:
    """How far a killed run had come."""
    for stage in reversed(STAGES):
        if (folder / stage / FINISHED).is_file():
            return f"after {stage}"
        last = folder / stage / "last.ckpt"
        if last.is_file():
            step = torch.load(last, weights_only=True)["global_step"]
            return f"{stage}, step {step} or later"
    return "before the first checkpoint"


def end_state(folder: Path) -> dict[str, Any]:
    """Everything that a finished run ends with, but seconds."""
    state: dict[str, Any] = {}
    for path in (METRICS, RANKER, *(f"{stage}/{FINISHED}" for stage in STAGES)):
        document = json.loads((folder / path).read_text())
        state[path] = {name: v for name, v in document.items() if not name.endswith("seconds")}
    for stage in STAGES:
        for name in ("best", "last"):
            checkpoint = torch.load(folder / stage / f"{name}.ckpt", weights_only=True)
            state[f"{stage}/{name}"] = {part: checkpoint.get(part) for part in STATE}
    return state


def differences(one: Any, other: Any, path: str) -> list[str]:
    """Where two states differ in a bit."""
    if type(one) is not type(other):
        return [path]
    if isinstance(one, torch.Tensor):
        # Compared as bytes: -0.0 is not 0.0, and NaN is NaN.
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and as_bytes(one) == as_bytes(other) else [path]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [path]
        return [d for key in one for d in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [path]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for place, pair in pairs for d in differences(*pair, f"{path}/{place}")]
    return [] if one == other or one != one else [path]


def as_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.detach().contiguous().numpy().tobytes()


def kill_and_resume(kills: int, seed: int, devices: int, home: Path) -> int:
    """Kill runs so many times; returns how many of them ended otherwise than the whole one."""
    runs, random_moments = Runs(home, devices), random.Random(seed)
    whole = home / "runs" / "whole"
    runs.finish(home / "runs" / "first")  # prepares the data; two runs must agree, or nothing can
    started = time.perf_counter()
    runs.finish(whole)
    duration = time.perf_counter() - started
    opened = (whole / CONFIG).stat().st_mtime - (time.time() - time.perf_counter()) - started
    print(f"never killed: {duration:.1f} s, of which {opened:.1f} s until the folder is open")
    expected = end_state(whole)
    found = differences(expected, end_state(home / "runs" / "first"), "")
    if found:
        sys.exit(f"two runs that were not killed differ: {', '.join(found)}")
    wrong = number = done = 0
    while done < kills:
        number += 1
        folder, moments = home / "runs" / f"{number}", []
        while done < kills and (not moments or random_moments.random() < 0.5):
            seconds = random_moments.uniform(opened, duration)
            if not runs.kill(folder, seconds):
                break
            done += 1
            moments.append(f"{seconds:.2f} s ({where(folder)})")
        runs.finish(folder)
        found = differences(expected, end_state(folder), "")
        wrong += bool(found)
        verdict = f"DIFFERS: {', '.join(found)}" if found else "bit-equal"
        print(f"run {number}, killed at {', '.join(moments) or 'no moment'}: {verdict}", flush=True)
    print(f"{done} kills in {number} runs, {number - wrong} runs bit-equal, {wrong} not")
    return wrong


def main() -> int:
    """Run the command line; 1 when a run ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return int(kill_and_resume(given.kills, given.seed, given.devices, Path(scratch)) > 0)


if __name__ == "__main__":
    sys.exit(main())
