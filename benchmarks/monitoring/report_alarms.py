"""How often a whole report, of data drift and concept drift, alarms without drift.

    python benchmarks/monitoring/report_alarms.py FOLDER [--runs 40] [--keep]

The bundle in service of `concept_power.py`. A run draws what the bundle's reference would be if it
had learned from its own lists (12,000 sessions as the training part, 2,000 as the validation part),
a reference window for concept drift, and then five windows without drift, a thousand sessions each,
with the same users. Every window is judged as `twotower monitor` does: features, scores of the
ranker and figures by slice and over windows, with half of the rate for each kind of drift.
Runs that are there, in FOLDER/report_alarms.jsonl, are not made again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from concept_power import NUM_CLEAN, PooledModels, draw, judged, source
from kept import keep_rows

from twotower.monitoring.concept_drift import Measured, measure
from twotower.monitoring.concept_history import WindowFigures
from twotower.monitoring.concept_settings import ConceptSettings
from twotower.monitoring.data_drift import DataDriftSettings, data_drift
from twotower.monitoring.profile import Profile
from twotower.monitoring.reference import Reference, window_form
from twotower.monitoring.window_profile import Known, WindowProfiler
from twotower.monitoring.window_scores import with_scores
from twotower.monitoring.windows import Window

RATE = 0.05
TRAINING, VALIDATION, SESSIONS = 12_000, 2_000, 1_000
LEAST = ("min_psi", "min_jensen_shannon", "min_ks", "min_chi_squared", "min_rate")


@dataclass(frozen=True)
class Asked:
    """What is an alert.

    Args:
        data: Of data drift.
        concept: Of concept drift.
    """

    data: DataDriftSettings
    concept: ConceptSettings


USUAL = Asked(
    DataDriftSettings(false_alarm_rate=RATE / 2), ConceptSettings(false_alarm_rate=RATE / 2)
)
CHANCE = Asked(
    replace(USUAL.data, **dict.fromkeys(LEAST, 0.0)), replace(USUAL.concept, tolerance=0.0)
)
SETTINGS = {"more than chance, and large enough to matter": USUAL, "more than chance": CHANCE}


def main(folder: Path, runs: int, keep: bool) -> None:
    """Run, print, keep."""
    models = PooledModels(folder)
    reference = Reference.of(models.bundle)
    profiler = WindowProfiler(Known.of(models.bundle), reference, window_form(reference))
    counts = {name: Counter() for name in SETTINGS}
    made = folder / "report_alarms.jsonl"
    lines = made.read_text().splitlines() if made.exists() else []
    for seed in range(runs):
        if seed == len(lines):
            lines.append(json.dumps(one_run(models, profiler, seed)))
            made.write_text("\n".join(lines))
        for name, of in json.loads(lines[seed]).items():
            counts[name] += Counter(of)
    print({name: dict(of) for name, of in counts.items()}, flush=True)
    rows = [
        {
            "an alert is": name,
            "windows": of["windows"],
            **{kind: of[kind] / of["windows"] for kind in ("data", "concept", "report")},
        }
        for name, of in counts.items()
    ]
    if keep:
        keep_rows(
            "report_alarms",
            f"False alarms of whole reports, {RATE:.0%} asked for: windows of "
            f"{10 * SESSIONS:,} impressions without drift",
            f"report_alarms.py FOLDER --runs {runs} --keep",
            {
                "an alert is": "",
                "windows": ",.0f",
                **dict.fromkeys(("data", "concept", "report"), ".1%"),
            },
            rows,
            where="one thread",
        )


def one_run(models: PooledModels, profiler: WindowProfiler, seed: int) -> dict[str, Counter]:
    """How many windows of a run alarm, by settings and kind of drift."""
    counts = {name: Counter() for name in SETTINGS}
    rng, world = np.random.default_rng([seed, 23]), source().world

    def window(number: int, sessions: int) -> Window:
        return draw(models, world, rng, sessions, number)

    def profile(of: Window) -> Profile:
        found = replace(profiler.profile_rows(of.interactions), span=(of.start, of.end))
        return with_scores(found, of, models, profiler, 1.0)

    reference = Reference(
        training=profile(window(0, TRAINING)), validation=profile(window(1, VALIDATION))
    )
    usual = window(2, SESSIONS)
    measured: dict[str, Measured] = {
        name: measure(models, usual, asked.concept) for name, asked in SETTINGS.items()
    }
    past: dict[str, list[WindowFigures]] = {name: [] for name in SETTINGS}
    for number in range(3, 3 + NUM_CLEAN):
        now = window(number, SESSIONS)
        profiled = profile(now)
        for name, asked in SETTINGS.items():
            found = data_drift(profiled, reference, asked.data)
            of_data = any(one.alert for one in found)
            names, figures = judged(
                measure(models, now, asked.concept), measured[name], past[name], asked.concept
            )
            past[name].append(figures)
            counts[name] += Counter(
                windows=1, data=of_data, concept=bool(names), report=of_data or bool(names)
            )
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--keep", action="store_true", help="write the figures for RESULTS.md")
    given = parser.parse_args()
    main(given.folder, given.runs, given.keep)
