"""Going on from the last run against training anew, after the tastes of the built-in world turned.

A window of clicks before the shift is trained and published. Of the window after it, with items
that were launched meanwhile,

* `cold` is trained anew on it, with early stopping,
* `warm` is what ``twotower retrain`` makes of the published bundle,
* `broken` is the same of a window whose training part has its items shuffled.

All are asked for the same users of the last tenth of the window.

    python benchmarks/monitoring/retrain.py --out benchmarks/results/monitoring/retrain.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twotower.cli.load_run import load_run
from twotower.data.queries import EvaluationSettings
from twotower.data.schema import ITEM_ID, TIMESTAMP
from twotower.data.synthetic import SyntheticSource
from twotower.data.world import START, Drift
from twotower.export.bundle import open_bundle
from twotower.serving.comparison import compare_bundles
from twotower.serving.recommender import Recommender

SHIFT_AT, TASTE_SHIFT = 0.5, 0.5
HELD_OUT = 0.2  # of a window: validation and test
DATA = ["data=tables", "data.label.column=label", "data.context=[position,device]"]
EXPORT = ["index=flat", "index.device=cpu", "gates.max_calibration_error=null", "quiet=true"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run all seeds and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("retrain-benchmark"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--slates", type=float, default=40, help="a user, in both windows")
    options = parser.parse_args(argv)
    found = []
    for seed in options.seeds:
        work = options.work.resolve() / f"seed-{seed}"
        work.mkdir(parents=True, exist_ok=True)
        found.append(one_seed(work, seed, options))
        print(json.dumps(found[-1], indent=1), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"seeds": found}, indent=1) + "\n")


def one_seed(work: Path, seed: int, options: argparse.Namespace) -> dict[str, object]:
    """Figures of one world."""
    write_world(work, seed, options.users, options.items, options.slates)
    epochs = options.epochs
    train(work, "world", "before", seed, "bundles")
    train(work, "cold", "after", seed, "cold-bundles")
    status = retrain(work, "after", epochs)
    warm = work / "bundles" / "world"
    report = json.loads(newest_report(work).read_text())
    bundles = {
        "cold": Recommender(open_bundle(work / "cold-bundles" / "cold")),
        "warm": Recommender(open_bundle(warm)),
    }
    prepared = load_run(Path(report["run"])).prepared
    compared = compare_bundles(
        bundles["cold"], bundles["warm"], prepared, EvaluationSettings(ks=(10, 20, 100))
    )
    cold_seconds = seconds_of(work / "runs" / "cold" / "latest")
    warm_seconds = report["seconds"]
    broken = retrain(work, "broken", epochs)
    steps = {
        name: {
            stage: json.loads((run / stage / "finished.json").read_text())["steps"]
            for stage in ("retrieval", "ranking")
        }
        for name, run in (
            ("cold", work / "runs" / "cold" / "latest"),
            ("warm", Path(report["run"])),
        )
    }
    return {
        "seed": seed,
        "world": {"users": options.users, "items": options.items, "slates": options.slates},
        "steps": steps,
        "status": status,
        "broken_status": broken,
        "published_is_still_warm": (warm / "current").resolve().name == Path(report["new"]).name,
        "seconds": {"cold": cold_seconds, "warm": warm_seconds},
        "share_of_steps": {
            stage: steps["warm"][stage] / steps["cold"][stage] for stage in steps["cold"]
        },
        "share_of_time": sum(warm_seconds.values()) / sum(cold_seconds.values()),
        "cold_and_warm": [asdict(one) for one in compared],
        "old_and_warm": report["compared"],
        "space": report["space"],
    }


def write_world(work: Path, seed: int, users: int, items: int, slates: float) -> None:
    """Windows before and after the shift, and the second one broken."""
    source = SyntheticSource(
        num_users=users,
        num_items=items,
        num_days=60,
        slates_per_user=slates,
        slate_size=10,
        seed=seed,
        drift=Drift(start_share=SHIFT_AT, taste_shift=TASTE_SHIFT),
    )
    tables = source.read()
    log = tables.interactions
    times = log.column(TIMESTAMP).to_numpy()
    place = log.column_names.index(TIMESTAMP)
    log = log.set_column(place, TIMESTAMP, log.column(TIMESTAMP).cast(pa.timestamp("us")))
    shift = START + int(SHIFT_AT * (source.world.end - START))
    before, after = (np.flatnonzero(chosen) for chosen in (times < shift, times >= shift))
    pq.write_table(tables.users, work / "users.parquet")
    for name, rows, end in (("before", before, shift), ("after", after, source.world.end)):
        launched = np.flatnonzero(source.world.launch_times < end)
        pq.write_table(tables.items.take(pa.array(launched)), work / f"items-{name}.parquet")
        pq.write_table(log.take(pa.array(rows)), work / f"{name}.parquet")
    broken = log.take(pa.array(after))
    trained = times[after] < np.quantile(times[after], 1 - HELD_OUT)
    order = np.arange(len(after))
    order[trained] = np.random.default_rng(seed).permutation(order[trained])
    shuffled = broken.column(ITEM_ID).take(pa.array(order))
    broken = broken.set_column(broken.column_names.index(ITEM_ID), ITEM_ID, shuffled)
    pq.write_table(broken, work / "broken.parquet")


def train(work: Path, name: str, window: str, seed: int, bundles: str) -> None:
    """Train both stages anew and publish."""
    tables = {"interactions": window, "users": "users", "items": f"items-{window}"}
    paths = [f"data.{kind}={work / file}.parquet" for kind, file in tables.items()]
    settings = ["training.ranking.batch_size=512", "trainer.accelerator=cpu", "quiet=true"]
    command(work, "train", f"name={name}", f"seed={seed}", *DATA, *paths, *settings)
    run = f"run={work / 'runs' / name / 'latest'}"
    command(work, "export", run, f"output_dir={bundles}", *EXPORT)


def retrain(work: Path, window: str, epochs: int) -> int:
    """Retrain the published bundle; the exit status."""
    items = "after" if window == "broken" else window
    return command(
        work,
        *("retrain", "bundle=bundles/world", f"interactions={work / window}.parquet"),
        *(f"items={work}/items-{items}.parquet", f"max_epochs={epochs}", *EXPORT),
        allowed=(0, 3),
    )


def newest_report(work: Path) -> Path:
    """Of the retraining that was published."""
    return max(
        work.glob("runs/world/retrain-*/retrain.json"), key=lambda path: path.stat().st_mtime
    )


def seconds_of(run: Path) -> dict[str, float]:
    """Training time by stage."""
    figures = json.loads((run / "metrics.json").read_text())
    return {stage: figures[f"{stage}/train/seconds"] for stage in ("retrieval", "ranking")}


def command(work: Path, *words: str, allowed: Sequence[int] = (0,)) -> int:
    """Run a command of twotower in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "twotower.cli.main", *words], cwd=work, check=False
    )
    if done.returncode not in allowed:
        raise SystemExit(f"twotower {' '.join(words)}: exit status {done.returncode}")
    return done.returncode


if __name__ == "__main__":
    main()
