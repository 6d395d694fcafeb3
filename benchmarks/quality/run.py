"""Runs the experiment of a published table over seeds and keeps its figures.

    python benchmarks/quality/run.py movielens1m_m1                 seeds 0, 1 and 2
    python benchmarks/quality/run.py movielens1m_m1 --seeds 3 4     two more
    python benchmarks/render.py                                     write RESULTS.md

The experiments are ``benchmarks/quality/experiment/<table>.yaml``, the published figures stand in
``tables.yaml``. Each seed is one `twotower train` from the raw files. What was measured is kept in
``benchmarks/results/quality/<table>.json``; a seed that is run again replaces its figures.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twotower.config import build
from twotower.config_files import read_yaml
from twotower.data.item_lists import ItemLists
from twotower.data.prepared import history_before, open_prepared
from twotower.data.schema import TEST
from twotower.metrics.top_k import Relevant, mean_over_queries, top_k_metrics
from twotower.models.ease import EASE

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEPT = ROOT / "benchmarks" / "results" / "quality"
TABLES = read_yaml(HERE / "tables.yaml")


def device() -> str:
    """The device that figures are measured on, by name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}, no GPU"


def train(table: str, seed: int, run: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """One run in the folder `run`, data prepared beside it; its figures and what it cost."""
    command = [
        *(str(Path(sys.executable).with_name("twotower")), "train"),
        *("--config-dir", str(HERE), f"experiment={table}", f"seed={seed}"),
        *(f"output_dir={run}", f"prepared_dir={run.parent / 'prepared'}"),
        *overrides,
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"training failed with status {os.waitstatus_to_exitcode(status)}")
    return {
        "date": date.today().isoformat(),
        "device": device(),
        "torch": torch.__version__.split("+")[0],
        "minutes": round((time.perf_counter() - started) / 60, 2),
        "gigabytes": round(usage.ru_maxrss / 2**20, 2),
        "figures": json.loads((run / "metrics.json").read_text()),
    }


def of_ease(run: Path, l2: float) -> dict[str, float]:
    """Test figures of EASE, fitted like the baselines of a run on everything before the test part.

    Args:
        run: A run folder; what it was trained on is evaluated.
        l2: The penalty.
    """
    evaluation = build(read_yaml(run / "config.yaml").evaluation)
    prepared = open_prepared(Path(json.loads((run / "prepared.json").read_text())["folder"]))
    events, _, _ = prepared.require_events()
    queries, num_items = evaluation.queries(prepared, TEST), prepared.num_catalogue
    ends = history_before(prepared, TEST)
    model = EASE(l2=l2)
    model.fit(
        ItemLists.cut(events.item_rows, events.offsets[:-1], ends).below(num_items), num_items
    )
    seen = queries.seen.below(num_items)
    ranked = model.rank(seen, max(evaluation.ks), seen if evaluation.remove_seen else None)
    values = top_k_metrics(ranked, Relevant.of(queries.truth), evaluation.ks)
    return {"l2": l2} | dict(mean_over_queries(values))


def keep(name: str, place: Sequence[str], found: object) -> None:
    """Put what was measured into ``<name>.json``, beside what other processes kept there.

    Args:
        name: Of the benchmark.
        place: Keys that lead to it.
        found: What is kept.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f"{name}.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        kept = json.loads(file.read() or "{}")
        node = kept
        for key in place[:-1]:
            node = node.setdefault(key, {})
        ordered = sorted((node | {place[-1]: found}).items())
        node.clear()
        node.update(ordered)
        text = json.dumps(kept, indent=1, default=np.ndarray.tolist) + "\n"
        file.truncate(0)
        file.write(text)


def main(table: str, seeds: list[int]) -> None:
    """Run the seeds and keep what they gave, one by one."""
    facts = TABLES[table]
    with tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            run = Path(scratch) / f"run-{seed}"
            keep(table, ["runs", str(seed)], train(table, seed, run))
            if "ease" in facts:
                keep(table, ["ease"], of_ease(run, facts.ease))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    main(given.table, given.seeds)
