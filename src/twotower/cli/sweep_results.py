"""What a sweep found: a table on the screen, ``results.csv``, the command of the best trial."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from twotower.cli.sweep_space import Space, short_names
from twotower.training.run_folder import write_whole

RESULTS = "results.csv"
SECONDS, REASON = "seconds", "reason"  # what is kept with a trial
STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """All trials that have ended: the done ones, the stopped ones, the failed ones."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    order = list(STATES)
    ended = study.get_trials(states=order)
    return sorted(
        ended, key=lambda trial: (order.index(trial.state), sign * (trial.value or 0), trial.number)
    )


def write_results(study: optuna.Study, folder: Path, objective: str, space: Space) -> None:
    """Write ``results.csv``, whole or not at all; a row a trial, in order.

    Args:
        study: The study.
        folder: Of the sweep.
        objective: Name of the figure that trials are judged by.
        space: What is searched.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", objective, SECONDS, *space.distributions, REASON])
    for trial in sorted(best_first(study), key=lambda trial: trial.number):
        known = trial.user_attrs
        values = [trial.params.get(key, "") for key in space.distributions]
        value = "" if trial.value is None else trial.value
        ends = known[SECONDS], *values, known.get(REASON, "")
        writer.writerow([trial.number, STATES[trial.state], value, *ends])
    write_whole(folder / RESULTS, text.getvalue())


def results_table(study: optuna.Study, objective: str, space: Space) -> Table:
    """All trials, the best first, and what they cost."""
    trials = best_first(study)
    counts = [f"{sum(t.state == s for t in trials)} {word}" for s, word in STATES.items()]
    seconds = sum(trial.user_attrs[SECONDS] for trial in trials)
    better = study.direction.name.lower().removesuffix("imize") + "imum"
    table = Table(
        title=f"Trials by {escape(objective)}, {better} first",
        caption=f"{len(trials)} trials: {', '.join(counts)}; {seconds / 60:.1f} minutes",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    names = short_names(list(space.distributions))
    for column in ("trial", "value", "state", "seconds", *names):
        table.add_column(column, justify="left" if column == "state" else "right", overflow="fold")
    if any(REASON in trial.user_attrs for trial in trials):
        table.add_column("reason", overflow="fold")
    for trial in trials:
        shown = space.shown(trial.params)
        values = [shown.get(name, "") for name in names]
        table.add_row(
            str(trial.number),
            "" if trial.value is None else f"{trial.value:.4f}",
            STATES[trial.state],
            f"{trial.user_attrs[SECONDS]:.0f}",
            *(f"{v:.3g}" if isinstance(v, float) else escape(str(v)) for v in values),
            *([escape(trial.user_attrs[REASON])] if REASON in trial.user_attrs else []),
        )
    return table


def print_results(
    study: optuna.Study, folder: Path, objective: str, space: Space, config_dirs: Sequence[str]
) -> None:
    """Print the table and where to look next.

    Args:
        study: The study.
        folder: Of the sweep.
        objective: Name of the figure that trials are judged by.
        space: What is searched.
        config_dirs: Folders of configs that were given on the command line.
    """
    console = Console()
    console.print(results_table(study, objective, space))
    lines = [f"results:  {folder / RESULTS}", f"compare:  tensorboard --logdir {folder}"]
    best = best_first(study)[0]
    if best.state == TrialState.COMPLETE:
        flags = [part for path in config_dirs for part in ("--config-dir", path)]
        command = shlex.join(["twotower", "train", *space.overrides(best.params), *flags])
        lines += [f"best run: {folder / str(best.number)}", f"again:    {command}"]
        lines += [f"next:     twotower export run={folder / str(best.number)}"]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
