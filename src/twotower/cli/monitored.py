"""What `monitor` judges windows with, and how it follows a folder of them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from twotower.config import ConfigError, Refused, build
from twotower.data.schema import DataError
from twotower.export.bundle import open_bundle
from twotower.monitoring.findings import Finding
from twotower.monitoring.history import UNUSABLE, Entry
from twotower.monitoring.judge import Judge
from twotower.monitoring.reference import Reference, window_form
from twotower.monitoring.watch import Watch
from twotower.monitoring.window_profile import Described, Known, WindowProfiler

if TYPE_CHECKING:
    from omegaconf import DictConfig


def check_what(cfg: DictConfig) -> None:
    """Refuse a config that does not say what is to be judged.

    Args:
        cfg: The composed config of `monitor`.

    Raises:
        ConfigError: With all that is wrong.
    """
    problems = []
    if (cfg.interactions is None) == (cfg.traffic is None):
        problems.append(
            "monitor: give one of interactions=<window of logs> and traffic=<what a server kept>, "
            f"got interactions={cfg.interactions} and traffic={cfg.traffic}"
        )
    if cfg.watch not in (True, False, "once"):
        problems.append(f"watch: got {cfg.watch!r}; allowed: true, false, once")
    elif cfg.watch and cfg.traffic is not None:
        problems.append("watch: follows a folder of interactions, not traffic")
    if not cfg.poll_seconds > 0:
        problems.append(f"poll_seconds: must be above 0, got {cfg.poll_seconds}")
    if not 0 < cfg.false_alarm_rate < 1:
        problems.append(f"false_alarm_rate: must lie between 0 and 1, got {cfg.false_alarm_rate}")
    problems += [
        f"{area}.false_alarm_rate: the rate is one of the whole report; say "
        "false_alarm_rate=<share of windows>"
        for area in ("data_drift", "concept_drift")
        if "false_alarm_rate" in cfg[area]
    ]
    if problems:
        raise ConfigError(problems)


def open_judge(cfg: DictConfig) -> Judge:
    """What judges windows as a config says.

    Args:
        cfg: The composed and checked config of `monitor`.
    """
    bundle = open_bundle(Path(cfg.bundle))
    reference = Reference.of(bundle)
    form = window_form(
        reference,
        columns=dict(cfg.columns),
        on_bad_rows=cfg.on_bad_rows,
        max_repeated=cfg.max_repeated,
    )
    described = Described(users=cfg["users"], items=cfg["items"])
    return Judge(
        bundle,
        WindowProfiler(
            Known.of(bundle), reference, form, described=described, progress=not cfg.quiet
        ),
        root=Path(cfg.output_dir),
        data=replace(build(cfg.data_drift), false_alarm_rate=cfg.false_alarm_rate),
        concept=build(cfg.concept_drift),
        reference=cfg.reference,
        previous=None if cfg.previous is None else open_bundle(Path(cfg.previous)),
        model=build(cfg.model_drift),
    )


def watch_folder(cfg: DictConfig, judge: Judge) -> list[Finding]:
    """Judge windows as they arrive: until interrupted, or one round.

    Args:
        cfg: The composed and checked config of `monitor`.
        judge: What judges them.

    Returns:
        All comparisons of the last window of the round.

    Raises:
        DataError: When a window of the round cannot be used.
        Refused: When one of them alerts.
    """
    # A window that somebody has put there to be judged once is whole.
    settle = 0.0 if cfg.watch == "once" else min(5.0, float(cfg.poll_seconds))
    watch = Watch(judge, Path(cfg.interactions), settle_seconds=settle)
    console = Console(quiet=cfg.quiet)
    entries: list[Entry] = []
    while True:
        for entry in watch.round():
            entries.append(entry)
            console.print(_line(entry), highlight=False, soft_wrap=True)
        if cfg.watch == "once":
            break
        entries.clear()
        time.sleep(float(cfg.poll_seconds))
    console.print(f"written: {judge.folder}", highlight=False, soft_wrap=True)
    if unusable := [one for one in entries if one.labels == UNUSABLE]:
        raise DataError([one.reason for one in unusable])
    if alarming := [one for one in entries if one.num_alerts]:
        names = ", ".join(one.window for one in alarming)
        raise Refused(f"{len(alarming)} windows alert: {names}; see {judge.folder}")
    return list(entries[-1].findings) if entries else []


def _line(entry: Entry) -> str:
    """What is said of a window."""
    if entry.labels == UNUSABLE:
        return f"{entry.window}: cannot be used: {entry.reason}"
    said = f"{entry.window}: {entry.num_alerts} of {len(entry.findings)} comparisons alert"
    return f"{said}; concept drift is not judged: {entry.reason}" if entry.reason else said
