"""Runs an experiment through train, export and evaluate, and keeps its figures.

    python benchmarks/end_to_end.py movielens_1m          both stages, export, evaluate, recommend
    python benchmarks/end_to_end.py movielens_1m_clicks   the ranker alone

Figures are kept in ``benchmarks/results/<experiment>.json``; RESULTS.md is made by `render.py`.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "results"
# Who is asked for at the end; experiments of the ranker alone recommend nothing.
USERS = {"demo": "u000042", "movielens_1m": "1"}
EXPERIMENTS = (*USERS, "movielens_1m_clicks")


def device() -> str:
    """The device that the figures were measured on, by name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}, no GPU"


def run_experiment(name: str) -> None:
    """Run the commands of an experiment in a scratch folder and keep what they measured."""
    twotower = str(Path(sys.executable).with_name("twotower"))
    with tempfile.TemporaryDirectory() as scratch:
        out = f"output_dir={scratch}/evaluations"
        commands = [[twotower, "train", f"experiment={name}", f"prepared_dir={scratch}/prepared"]]
        run, bundle = f"runs/{name}/latest", f"bundle={scratch}/bundles/{name}/current"
        if name in USERS:
            commands += [
                [twotower, "export", f"run={run}", f"output_dir={scratch}/bundles"],
                [twotower, "evaluate", bundle, out],
                [twotower, "recommend", bundle, f"user={USERS[name]}"],
            ]
        seconds = {}
        for command in commands:
            started = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True)
            seconds[command[1]] = round(time.perf_counter() - started, 1)
        found = sorted(Path(scratch).glob("evaluations/*/*/evaluation.json"))
        figures = json.loads((found[-1] if found else ROOT / run / "metrics.json").read_text())
    KEPT.mkdir(exist_ok=True)
    document = {
        "how": f"`python benchmarks/end_to_end.py {name}`",
        "date": date.today().isoformat(),
        "device": device(),
        "torch": torch.__version__.split("+")[0],
        "seconds": seconds,
        "figures": figures,
    }
    (KEPT / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if argument not in EXPERIMENTS:
            sys.exit(f"no experiment {argument!r}; known: {', '.join(EXPERIMENTS)}")
        run_experiment(argument)
