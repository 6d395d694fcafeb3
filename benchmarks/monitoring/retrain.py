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
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
JUDGED = "two_stage/ndcg@10"
CROSSED = ("old_queries_new_items", "new_queries_old_items")
HELD_OUT = 0.1  # of a window: its test part, which is not broken
DATA = ["data=tables", "data.label.column=label", "data.context=[position,device]"]
EXPORT = ["index=flat", "index.device=cpu", "gates.max_calibration_error=null", "quiet=true"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run all seeds and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("retrain-benchmark"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--slates", type=float, default=40, help="a user, in both windows")
    parser.add_argument("--device", default="AMD EPYC (Zen 4), one core")
    options = parser.parse_args(argv)
    found = []
    for seed in options.seeds:
        work = options.work.resolve() / f"seed-{seed}"
        work.mkdir(parents=True, exist_ok=True)
        found.append(one_seed(work, seed, options))
        print(json.dumps(found[-1], indent=1), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(kept(found, options), indent=1) + "\n")


COLUMNS = {
    "seed": "",
    "version": "",
    "seconds": ".1f",
    "steps": ",",
    "share_of_seconds": ".0%",
    "two_stage/ndcg@10": ".4f",
    "two_stage/recall@10": ".4f",
    "two_stage/recall@100": ".4f",
    "retrieval/recall@200": ".4f",
    "new_items_recall@200": ".4f",
    "share_of_quality": ".1%",
    "old_queries_new_items": ".4f",
    "new_queries_old_items": ".4f",
    "status": "",
}


def kept(found: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The form of all results: a table of what each version is worth."""
    rows: list[dict[str, Any]] = []
    for one in found:
        first = next(iter(one["warm"].values()))
        old = {c["name"]: c["old"]["value"] for c in first["old_and_warm"]}
        cold = {c["name"]: c["old"]["value"] for c in first["cold_and_warm"]}
        shown = {"seed": one["seed"]}
        rows.append(shown | {"version": "before the shift"} | figures(old))
        cost = {what: sum(of_stage.values()) for what, of_stage in one["cold"].items()}
        rows.append(shown | {"version": "cold", **cost} | figures(cold))
        for epochs, warm in one["warm"].items():
            values = {c["name"]: c["new"]["value"] for c in warm["cold_and_warm"]}
            values |= {c["name"]: c["new"]["value"] for c in warm["old_and_warm"]}
            cost = {what: sum(of_stage.values()) for what, of_stage in warm["cost"].items()}
            rows.append(
                shown
                | {"version": f"warm, {epochs} epochs", **cost, "status": str(warm["status"])}
                | {"share_of_seconds": warm["share_of_cold"]["seconds"]}
                | {"share_of_quality": values[JUDGED] / cold[JUDGED]}
                | {name: warm["space"]["recall"][name] for name in CROSSED}
                | figures(values)
            )
        broken = {"version": "warm, shuffled items", "status": str(one["broken"]["status"])}
        rows.append(shown | broken)
    scale = f"--users {options.users} --items {options.items} --slates {options.slates:g}"
    seeds, epochs = (" ".join(map(str, given)) for given in (options.seeds, options.epochs))
    return {
        "title": "Retraining after a shift of tastes",
        "command": f"python benchmarks/monitoring/retrain.py {scale} --seeds {seeds} "
        f"--epochs {epochs} --out benchmarks/results/monitoring/retrain.json",
        "device": options.device,
        "date": datetime.now(UTC).date().isoformat(),
        "columns": COLUMNS,
        "rows": rows,
        "seeds": list(found),
    }


def figures(values: Mapping[str, float]) -> dict[str, float]:
    """Those of a row."""
    named = {name.replace("retrieval/new_items", "new_items"): v for name, v in values.items()}
    return {name: named[name] for name in COLUMNS if name in named}


def one_seed(work: Path, seed: int, options: argparse.Namespace) -> dict[str, object]:
    """Figures of one world."""
    write_world(work, seed, options.users, options.items, options.slates)
    train(work, "world", "before", seed)
    train(work, "cold", "after", seed)
    cold = figures_of(work / "runs" / "cold" / "latest")
    warm = {str(epochs): one_length(work, epochs, cold) for epochs in options.epochs}
    shop = work / f"epochs-{options.epochs[-1]}"
    before = (shop / "bundles" / "world" / "current").resolve()
    status = retrain(work, shop, "broken", options.epochs[-1])
    return {
        "seed": seed,
        "world": {"users": options.users, "items": options.items, "slates": options.slates},
        "cold": cold,
        "warm": warm,
        "broken": {
            "status": status,
            "published_as_before": (shop / "bundles" / "world" / "current").resolve() == before,
            "reasons": newest_report(shop)["reasons"],
        },
    }


def one_length(work: Path, epochs: int, cold: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What a retraining of so many epochs gives, beside the training anew."""
    shop = work / f"epochs-{epochs}"
    if shop.exists():
        shutil.rmtree(shop)
    shutil.copytree(work / "bundles", shop / "bundles", symlinks=True)
    status = retrain(work, shop, "after", epochs)
    report = newest_report(shop)
    compared = compare_bundles(
        Recommender(open_bundle(work / "bundles" / "cold")),
        Recommender(open_bundle(shop / "bundles" / "world")),
        load_run(Path(report["run"])).prepared,
        EvaluationSettings(ks=(10, 20, 100)),
    )
    warm = figures_of(Path(report["run"]))
    return {
        "status": status,
        "cost": warm,
        "share_of_cold": {
            what: sum(warm[what].values()) / sum(cold[what].values())
            for what in ("seconds", "steps")
        },
        "quality_of_cold": {one.name: one.new.value / one.old.value for one in compared},
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


def train(work: Path, name: str, window: str, seed: int) -> None:
    """Train both stages anew and publish; what is there is not made again."""
    if (work / "bundles" / name / "current").exists():
        return
    tables = {"interactions": window, "users": "users", "items": f"items-{window}"}
    paths = [f"data.{kind}={work / file}.parquet" for kind, file in tables.items()]
    settings = ["training.ranking.batch_size=512", "trainer.accelerator=cpu", "quiet=true"]
    command(work, "train", f"name={name}", f"seed={seed}", *DATA, *paths, *settings)
    command(work, "export", f"run={work / 'runs' / name / 'latest'}", *EXPORT)


def retrain(work: Path, shop: Path, window: str, epochs: int) -> int:
    """Retrain the bundle that is published in a folder; the exit status."""
    items = "after" if window == "broken" else window
    return command(
        shop,
        *("retrain", "bundle=bundles/world", f"interactions={work / window}.parquet"),
        *(f"items={work}/items-{items}.parquet", f"max_epochs={epochs}", *EXPORT),
        allowed=(0, 3),
    )


def newest_report(shop: Path) -> dict[str, Any]:
    """What the last retraining in a folder said."""
    reports = shop.glob("runs/world/retrain-*/retrain.json")
    report: dict[str, Any] = json.loads(max(reports, key=lambda p: p.stat().st_mtime).read_text())
    return report


def figures_of(run: Path) -> dict[str, dict[str, float]]:
    """Seconds and steps of training by stage, evaluation of the epochs included."""
    found: dict[str, dict[str, float]] = {"seconds": {}, "steps": {}}
    for stage in ("retrieval", "ranking"):
        fitted = json.loads((run / stage / "finished.json").read_text())
        for what, of_what in found.items():
            of_what[stage] = fitted[what]
    return found


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
