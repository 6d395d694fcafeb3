"""How often concept drift is found that is not there, and how soon drift that is.

    python benchmarks/monitoring/concept_power.py FOLDER [--runs 40]

FOLDER/bundle is made when it is not there: the demo's world, both stages. Then the bundle serves in
that world: users come, everyone several times a window, and are shown 10 items that are drawn from
the bundle's 20 best for them in an order that favours the best; clicks are drawn from the world's
truth. A run has a reference window, then 5 windows without drift, then 2 with drift:

- `taste shift`: tastes turn towards the next topic, so far that the click rate of what is shown
  falls by 10 %; the log goes on to show what the bundle recommends.
- `calibration shift`: every click is lost with a chance that leaves 10/11 of them, as with a pixel
  that does not load: the bundle expects 10 % too many.

The detectors over windows see those windows too. Windows of a run have the same users, and the
bundle knows nothing of what happened in them. The bundle scores every impression that can be shown
once, by the usual way. Recall is left out: the lists do not change. What a run found is a line of
FOLDER/concept_power_*.jsonl, and a run that is there is not made again, so that several processes
may share the runs (`--first`, `--runs`).
"""

from __future__ import annotations

import argparse
import json
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow as pa
from kept import keep_rows

from twotower.cli.main import main as twotower
from twotower.data.schema import ITEM_ID, LABEL, MICROSECONDS, TIMESTAMP, USER_ID
from twotower.data.synthetic import SyntheticSource
from twotower.data.world import Drift, World
from twotower.export.bundle import open_bundle
from twotower.monitoring.concept_drift import Measured, compare, measure
from twotower.monitoring.concept_history import WindowFigures, sequential_findings, window_figures
from twotower.monitoring.concept_settings import ConceptSettings
from twotower.monitoring.scoring import BundleModels
from twotower.monitoring.windows import Window
from twotower.serving.batch_scores import user_queries

SLATE, POOL = 10, 20
LOSS = 0.10
CLICK_RATE = 0.38  # of what is shown, all slots together
SETTINGS = (1000, 600, 450, 300)  # sessions of a window
NUM_CLEAN, NUM_DRIFTED = 5, 2
DEVICES = ("phone", "desktop", "tablet")
RATE = 0.025  # half of 5 % of a whole report
COLUMNS = {
    "impressions": ",.0f",
    "clicks, about": ",.0f",
    "windows without drift": ",.0f",
    "false alarms": ".1%",
    "runs": ",.0f",
    "taste shift found in 1 window": ".0%",
    "taste shift found in 2 windows": ".0%",
    "calibration shift found in 1 window": ".0%",
    "calibration shift found in 2 windows": ".0%",
}
WORLD = {"num_users": 2000, "num_items": 1000, "num_days": 30, "slates_per_user": 20.0}


def source(drift: Drift | None = None) -> SyntheticSource:
    """The demo's world."""
    return SyntheticSource(**WORLD, slate_size=SLATE, seed=0, drift=drift)


def make_bundle(folder: Path) -> Path:
    """Train and export, unless it was done."""
    if not (folder / "bundles" / "demo" / "current").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with chdir(folder):
            flags = ("experiment=demo", "trainer.accelerator=cpu", "quiet=true")
            done = twotower(["train", *flags])
            done = done or twotower(
                ["export", "run=runs/demo/latest", "index=flat", "index.device=cpu", "quiet=true"]
            )
            if done:
                raise SystemExit(done)
    return folder / "bundles" / "demo"


class PooledModels(BundleModels):
    """A bundle whose probabilities are looked up by user, place in the pool and slot."""

    def __init__(self, folder: Path) -> None:
        super().__init__(open_bundle(make_bundle(folder)), num_threads=1)
        self.table: np.ndarray | None = None
        kept = folder / "pool.npz"
        if not kept.exists():
            self.pool = self.best()
            np.savez(kept, pool=self.pool, table=self.scores())
        with np.load(kept) as arrays:
            self.pool, self.table = arrays["pool"], arrays["table"]
        self.recommender = None  # its lists do not change, and it would be asked again every window

    def best(self) -> np.ndarray:
        """The items (U, POOL) that are best for each user."""
        rows = np.arange(len(self.bundle.users.ids))
        queries, seen = user_queries(self.recommender, rows, self.last_event + 1)
        lists = [
            self.recommender.rank(
                {name: values[start : start + 500] for name, values in queries.items()},
                POOL,
                seen.between(start, min(start + 500, len(rows))),
            ).rows
            for start in range(0, len(rows), 500)
        ]
        return np.concatenate(lists)

    def scores(self) -> np.ndarray:
        """Probabilities (U, POOL, SLATE) of everything that can be shown, by the usual way."""
        shape = (len(self.pool), POOL, SLATE)
        users, places, slots = (index.ravel() for index in np.indices(shape))
        window = self.window(users, places, slots, np.zeros(len(users)), 0)
        return super().probabilities(window, self.rows(window, 1.0)).reshape(shape)

    def window(self, users, places, slots, clicks, number: int) -> Window:
        """Impressions as a window; an hour of its own, since the hour is a feature of no model."""
        start = self.last_event + 3600 * (1 + number)
        items = self.pool[users, places]
        of_users = (users * 7 + 3) % 10  # everybody has one device
        devices = np.where(of_users < 6, 0, np.where(of_users < 9, 1, 2))
        table = pa.table(
            {
                USER_ID: self.bundle.users.ids.take(pa.array(users)),
                ITEM_ID: self.bundle.items.ids.take(pa.array(items)),
                TIMESTAMP: pa.array(np.full(len(users), start * MICROSECONDS)),
                LABEL: pa.array(np.asarray(clicks, np.float32)),
                "position": pa.array(slots + 1),
                "device": pa.DictionaryArray.from_arrays(pa.array(devices), list(DEVICES)).cast(
                    pa.string()
                ),
                "place": pa.array(places),
            }
        )
        return Window(interactions=table, start=start, end=start + 3600)

    def probabilities(self, window: Window, rows):
        """See `BundleModels`."""
        if self.table is None:
            return super().probabilities(window, rows)
        table = window.interactions
        places, slots = table["place"].to_numpy(), table["position"].to_numpy() - 1
        return self.table[rows.user_rows, places, slots]


def draw(models: PooledModels, world: World, rng, sessions: int, number: int, **change) -> Window:
    """One window of the bundle in service.

    Args:
        models: The bundle.
        world: The truth; of a world with drift the end of its period.
        rng: Random numbers.
        sessions: Slates.
        number: Of the window.
        change: `kept`: share of the clicks that are logged.
    """
    rates = np.random.default_rng(1).gamma(1.0, 1.0, len(models.pool))  # the same in every window
    users = rng.choice(len(models.pool), sessions, p=rates / rates.sum())
    favour = -np.arange(POOL) / 12 + rng.gumbel(size=(sessions, POOL))
    places = np.argsort(-favour, axis=1)[:, :SLATE]  # (sessions, SLATE)
    users, places = np.repeat(users, SLATE), places.ravel()
    slots = np.tile(np.arange(SLATE), sessions)
    chance = world.click_probability(users, models.pool[users, places], slots + 1)
    clicks = rng.random(len(chance)) < chance * change.get("kept", 1.0)
    return models.window(users, places, slots, clicks, number)


def click_rate(models: PooledModels, world: World) -> float:
    """Expected click rate of what is shown."""
    users = np.repeat(np.arange(len(models.pool)), POOL)
    weights = np.exp(-np.tile(np.arange(POOL), len(models.pool)) / 12)
    slots = np.ones(len(users), np.int64)
    chance = world.click_probability(users, models.pool.ravel(), slots)
    return float(np.average(chance, weights=weights))


def shift_that_costs(models: PooledModels, loss: float) -> tuple[World, float]:
    """The world whose tastes have turned so far that the click rate falls by a share."""
    before = click_rate(models, source().world)
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        world = source(Drift(start_share=0.5, taste_shift=middle)).world
        low, high = (
            (low, middle) if click_rate(models, world) < (1 - loss) * before else (middle, high)
        )
    return world, middle


def judged(
    measured: Measured, reference: Measured, past: list[WindowFigures], settings: ConceptSettings
) -> tuple[set[str], WindowFigures]:
    """What alerts in a window: slices as `slice`, detectors and figures by name."""
    figures = window_figures(measured, reference, settings)
    findings = compare(measured, reference, settings)
    findings += sequential_findings([*past, figures], settings)
    names = {
        one.statistic if one.subject == "all" else f"slice {one.statistic}"
        for one in findings
        if one.alert
    }
    return names, figures


def run(models, worlds, settings, sessions: int, seed: int) -> dict:
    """One run: which windows alert, and why."""
    rng = np.random.default_rng([seed, 17])

    def measured(number: int, world: World, **change) -> Measured:
        return measure(models, draw(models, world, rng, sessions, number, **change), settings)

    reference = measured(0, worlds["none"])
    past: list[WindowFigures] = []
    found: dict = {"none": []}
    for number in range(1, NUM_CLEAN + 1):
        names, figures = judged(measured(number, worlds["none"]), reference, past, settings)
        past.append(figures)
        found["none"].append(sorted(names))
    for kind, world, change in (
        ("taste", worlds["taste"], {}),
        ("calibration", worlds["none"], {"kept": 1 / (1 + LOSS)}),
    ):
        then, found[kind] = list(past), []
        for number in range(NUM_CLEAN + 1, NUM_CLEAN + 1 + NUM_DRIFTED):
            names, figures = judged(measured(number, world, **change), reference, then, settings)
            then.append(figures)
            found[kind].append(sorted(names))
    return found


def summary(runs: list[dict]) -> dict:
    """False alarms, and in how many runs each drift was found in its first or second window."""
    clean = [names for one in runs for names in one["none"]]
    row: dict = {
        "windows without drift": len(clean),
        "false alarms": sum(bool(names) for names in clean) / len(clean),
        "runs": len(runs),
    }
    for kind in ("taste", "calibration"):
        delays = [next((n for n, w in enumerate(one[kind], 1) if w), 0) for one in runs]
        row[f"{kind} shift found in 1 window"] = delays.count(1) / len(runs)
        row[f"{kind} shift found in 2 windows"] = 1 - delays.count(0) / len(runs)
    return row


def all_runs(
    models: PooledModels, worlds: dict, made: Path, seeds: range, sessions: int
) -> list[dict]:
    """Runs of one size of windows; what was made before is not made again."""
    settings = ConceptSettings(false_alarm_rate=RATE)
    lines = made.read_text().splitlines() if made.exists() else []
    for seed in seeds:
        if any(json.loads(line)["seed"] == seed for line in lines):
            continue
        found = run(models, worlds, settings, sessions, seed)
        with made.open("a") as file:
            file.write(json.dumps({"seed": seed, **found}) + "\n")
    return [json.loads(line) for line in made.read_text().splitlines()]


def main(folder: Path, seeds: range) -> None:
    """Make what is missing, run, print, keep."""
    models = PooledModels(folder)
    world, _ = shift_that_costs(models, LOSS)
    worlds = {"none": source().world, "taste": world}
    rows = []
    for sessions in SETTINGS:
        made = folder / f"concept_power_{sessions}.jsonl"
        runs = all_runs(models, worlds, made, seeds, sessions)
        clicks = sessions * SLATE * CLICK_RATE
        rows.append(
            {
                "impressions": sessions * SLATE,
                "clicks, about": round(clicks, -2),
                **summary(runs),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    keep_rows(
        "concept_power",
        f"Concept drift: false alarms, {RATE:.1%} asked for, and delay of shifts of 10 %",
        "concept_power.py FOLDER",
        COLUMNS,
        rows,
        where="one thread",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    main(given.folder, range(given.first, given.first + given.runs))
