"""Going on from the last run against training anew, after the tastes of the built-in world turned.

A window of clicks before the shift is trained on and published. Of the window after it, with items
that were launched meanwhile,

* `cold` is trained anew on it, until early stopping ends it,
* `warm` is what ``twotower retrain`` makes of the published bundle, with its defaults and others,
* `broken` is the same of a window whose training part has its items shuffled.

The last one, and other settings than the defaults, are tried in the first world alone.

The settings of the models are those of ``experiment=demo``, which were chosen on other worlds.
Quality is what users get: the chance, by the truth, that an item of a list of ten is clicked
when it is looked at. NDCG, recall and AUC are those of the last tenth of the window, which knows
only what the logging policy happened to show, and so say less of a list. Seconds are CPU seconds of
training, evaluation of the epochs included. What is in the work folder is not made again, so that
seeds can be run one by one.

    python benchmarks/monitoring/retrain.py --seeds 0 1 2 --keep
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from kept import keep_rows
from scipy import stats
from shifted_world import LIST, clicks, world_of, write_world

from twotower.cli.load_run import load_run
from twotower.data.queries import EvaluationSettings
from twotower.data.synthetic import SyntheticSource
from twotower.export.bundle import open_bundle
from twotower.serving.comparison import compare_bundles
from twotower.serving.recommender import Recommender

DATA = ["data=tables", "data.label.column=label", "data.context=[position,device]"]
DEMO = [
    *("features.history_length=50", "features.retrieval_only=[user_id]"),
    *("models.ranking.history.num_recent=1", "training.ranking.batch_size=512"),
    "training.ranking.optimizer.learning_rate=5e-4",
    "training.ranking.optimizer.table_learning_rate=5e-3",
]
EXPORT = ["index=flat", "index.device=cpu", "gates.max_calibration_error=null", "quiet=true"]
CPU_CLOCK = """
import sys, time, types
import torch
import twotower.training.fit as fit
from twotower.cli.main import main
torch.set_num_threads(1)
fit.time = types.SimpleNamespace(perf_counter=time.process_time)
sys.exit(main(sys.argv[1:]))
"""
FIGURES = {
    "clicks": ".4f",
    "ndcg@10": ".4f",
    "recall@200": ".4f",
    "auc": ".4f",
    "new items, recall@200": ".3f",
    "CPU s of training": ".1f",
    "steps": ",.0f",
}
SHARES = ("clicks", "ndcg@10", "auc", "CPU s of training")


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("retrain-benchmark"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs="*", default=[3], help="beside the default")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--slates", type=float, default=12, help="a user, in both windows")
    parser.add_argument("--keep", action="store_true", help="write the figures for RESULTS.md")
    given = parser.parse_args(argv)
    found = []
    for place, seed in enumerate(given.seeds):
        work = given.work.resolve() / f"seed-{seed}"
        work.mkdir(parents=True, exist_ok=True)
        source = world_of(seed, given.users, given.items, given.slates)
        found.append(one_seed(work, seed, source, [] if place else given.epochs))
        if given.epochs and not place:
            found[0]["retrain, items shuffled"] = {
                "status": retrain(work, work / "broken", "broken", [])
            }
        print(json.dumps(found[-1], indent=1), flush=True)
    rows = [{"version": name, **summary(name, found)} for name in found[0]]
    print(json.dumps(rows, indent=1))
    if given.keep:
        keep(rows, given)


def one_seed(
    work: Path, seed: int, source: SyntheticSource, epochs: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Figures of one world by version."""
    if not (work / "broken.parquet").exists():
        write_world(work, source, seed)
    train(work, "shop", "before", seed)
    train(work, "cold", "after", seed)
    cold = work / "bundles" / "cold"
    found: dict[str, dict[str, Any]] = {
        "before the shift": {"clicks": clicks(work / "bundles" / "shop", source)},
        "trained anew": cost_of(work / "runs" / "cold" / "latest")
        | {"clicks": clicks(cold, source)},
    }
    for words in ([], *([f"max_epochs={n}"] for n in epochs)):
        name = f"retrain {' '.join(words)}".strip()
        shop = work / name.replace(" ", "-")
        status = retrain(work, shop, "after", words)
        report = reports(shop)[0]
        run = Path(report["run"])
        compared = compare_bundles(
            Recommender(open_bundle(cold)),
            Recommender(open_bundle(shop / "bundles" / "shop")),
            load_run(run).prepared,
            EvaluationSettings(ks=(LIST, 20, 100)),
        )
        values = {one.name: (one.old.value, one.new.value) for one in compared}
        for figure, metric in (
            (f"ndcg@{LIST}", f"two_stage/ndcg@{LIST}"),
            ("recall@200", "retrieval/recall@200"),
        ):
            found["trained anew"][figure] = values[metric][0]
            found.setdefault(name, {})[figure] = values[metric][1]
        for one in report["compared"]:
            if "new_items" in one["name"]:
                found[name]["new items, recall@200"] = one["new"]["value"]
            elif one["name"] == f"two_stage/ndcg@{LIST}":
                found["before the shift"][f"ndcg@{LIST}"] = one["old"]["value"]
        found[name] |= cost_of(run)
        found[name] |= {"clicks": clicks(shop / "bundles" / "shop", source), "status": status}
    return found


def summary(version: str, found: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Means over the worlds, and of shares of the training anew a 95 % interval."""
    worlds = [one for one in found if version in one]
    of_version = [one[version] for one in worlds]
    row: dict[str, Any] = {"worlds": len(worlds)}
    row |= {
        name: float(np.mean([one[name] for one in of_version]))
        for name in FIGURES
        if all(name in one for one in of_version)
    }
    if version != "trained anew":
        for name in SHARES:
            if name in row:
                shares = [one[version][name] / one["trained anew"][name] for one in worlds]
                row[f"{name}, of anew"] = interval(shares)
    if "status" in of_version[0]:
        row["exit status"] = ", ".join(str(one["status"]) for one in of_version)
    return row


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval of it, by Student's t."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return f"{mean:.1%}"
    half = float(stats.t.isf(0.025, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return f"{mean:.1%} ± {100 * half:.1f}"


def train(work: Path, name: str, window: str, seed: int) -> None:
    """Train both stages anew and publish; what is there is not made again."""
    if (work / "bundles" / name / "current").exists():
        return
    tables = {"interactions": window, "users": "users", "items": f"items-{window}"}
    paths = [f"data.{kind}={work / file}.parquet" for kind, file in tables.items()]
    words = [f"name={name}", f"seed={seed}", *DATA, *paths, *DEMO, "trainer.accelerator=cpu"]
    command(work, "train", *words, "quiet=true")
    command(work, "export", f"run={work / 'runs' / name / 'latest'}", *EXPORT)


def retrain(work: Path, shop: Path, window: str, words: Sequence[str]) -> int:
    """Retrain a copy of the published bundle, unless it was done; the exit status."""
    if reports(shop):
        return 0 if reports(shop)[0]["published"] else 3
    shutil.rmtree(shop, ignore_errors=True)
    shutil.copytree(work / "bundles" / "shop", shop / "bundles" / "shop", symlinks=True)
    items = "after" if window == "broken" else window
    status = command(
        shop,
        *("retrain", "bundle=bundles/shop", f"interactions={work / window}.parquet"),
        *(f"items={work}/items-{items}.parquet", *words, *EXPORT),
        allowed=(0, 3),
    )
    return status


def reports(shop: Path) -> list[dict[str, Any]]:
    """What the retraining in a folder said."""
    paths = shop.glob("runs/shop/retrain-*/retrain.json")
    return [json.loads(path.read_text()) for path in paths]


def cost_of(run: Path) -> dict[str, float]:
    """Seconds and steps of both stages, and the AUC of the ranker on the test part."""
    fitted = [
        json.loads((run / stage / "finished.json").read_text())
        for stage in ("retrieval", "ranking")
    ]
    return {
        "CPU s of training": sum(one["seconds"] for one in fitted),
        "steps": sum(one["steps"] for one in fitted),
        "auc": json.loads((run / "metrics.json").read_text())["ranking/test/auc"],
    }


def command(work: Path, *words: str, allowed: Sequence[int] = (0,)) -> int:
    """Run a command of twotower in a folder, its training clock counting CPU seconds."""
    done = subprocess.run([sys.executable, "-c", CPU_CLOCK, *words], cwd=work, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"twotower {' '.join(words)}: exit status {done.returncode}")
    return done.returncode


def keep(rows: Sequence[Mapping[str, Any]], given: argparse.Namespace) -> None:
    """Write what `render.py` reads."""
    columns = {
        "version": "",
        "worlds": "",
        **{f"{name}, of anew": "" for name in SHARES},
        **FIGURES,
    }
    scale = f"--users {given.users} --items {given.items} --slates {given.slates:g}"
    seeds, epochs = (" ".join(map(str, of)) for of in (given.seeds, given.epochs))
    keep_rows(
        f"retrain_{given.users}",
        f"Retraining after a shift of tastes: means over worlds of {given.users:,} users, "
        "with 95 % intervals",
        f"retrain.py {scale} --seeds {seeds} --epochs {epochs}".strip() + " --keep",
        {**columns, "exit status": ""},
        rows,
        where="one thread",
    )


if __name__ == "__main__":
    main()
