"""Judges windows of logs against a bundle, one after the other, and writes down what it found.

Folder of a bundle's monitoring:

=====================  ========================================================================
``history.jsonl``      a line a window, see `twotower.monitoring.history`
``reference.npz``      figures that concept drift is held against
``report.html``        page about the latest window, with the course of the figures
``drift.prom``         the latest window for Prometheus
``tensorboard/``       all windows
``<start>/``           findings, profile and page of a window
=====================  ========================================================================

Concept drift needs a window without drift to be held against: one that is given, or else the first
one that can be judged, of which itself only the calibration is judged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from twotower.data.schema import LABEL, DataError
from twotower.export.bundle import Bundle
from twotower.monitoring.board import write_events
from twotower.monitoring.concept_drift import Measured, Pending, compare, measure, pending, promised
from twotower.monitoring.concept_history import (
    WindowFigures,
    sequential_findings,
    window_figures,
)
from twotower.monitoring.concept_settings import ConceptSettings, NoConceptDrift
from twotower.monitoring.data_drift import DataDriftSettings, data_drift
from twotower.monitoring.finding_files import since_when, window_folder, write_findings
from twotower.monitoring.findings import Finding
from twotower.monitoring.history import (
    JUDGED,
    PENDING,
    UNLABELLED,
    UNUSABLE,
    Entry,
    append_history,
    read_history,
)
from twotower.monitoring.measured_file import load_measured, save_measured
from twotower.monitoring.model_drift import ModelDriftSettings, model_drift
from twotower.monitoring.profile import Profile
from twotower.monitoring.prometheus import prometheus_text
from twotower.monitoring.reference import Reference
from twotower.monitoring.report import Report, write_report
from twotower.monitoring.scoring import BundleModels
from twotower.monitoring.sequential import require_river
from twotower.monitoring.traffic_profile import profile_traffic
from twotower.monitoring.window_profile import WindowProfiler
from twotower.monitoring.window_scores import with_scores
from twotower.monitoring.windows import Window, read_window

REFERENCE_FILE, PROMETHEUS_FILE, TENSORBOARD = "reference.npz", "drift.prom", "tensorboard"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A window that was judged.

    Args:
        entry: What is known of it.
        folder: Where the findings are.
    """

    entry: Entry
    folder: Path


class Judge:
    """Judges the windows of one bundle.

    Args:
        bundle: The bundle.
        profiler: Makes profiles of its windows.
        root: Folder of all that is monitored.
        data: How data drift is looked for; its false-alarm rate is that of the whole report, of
            which concept drift has half where it is looked for.
        concept: How concept drift is looked for, if at all.
        reference: Window that concept drift is held against, or None for the first one.
        previous: Another version of the bundle that it is compared with, or None.
        model: When the two versions are too far apart.
    """

    def __init__(
        self,
        bundle: Bundle,
        profiler: WindowProfiler,
        *,
        root: Path,
        data: DataDriftSettings,
        concept: ConceptSettings | NoConceptDrift,
        reference: str | None = None,
        previous: Bundle | None = None,
        model: ModelDriftSettings | None = None,
    ) -> None:
        label = profiler.form.label
        self.bundle = bundle
        self.folder = root / bundle.manifest.name
        self._root = root
        self._profiler = profiler
        self._looks_for_concept = isinstance(concept, ConceptSettings)
        self._data_alone = data
        half = data.false_alarm_rate / 2
        self._data = replace(data, false_alarm_rate=half) if self._looks_for_concept else data
        settings = concept if isinstance(concept, ConceptSettings) else ConceptSettings()
        settings = replace(settings, false_alarm_rate=half)
        if label is not None:
            settings = replace(settings, positive_from=label.positive_from)
        self._concept = settings
        if self._looks_for_concept:
            require_river()
        self._previous = None if previous is None else BundleModels(previous)
        self._model = model or ModelDriftSettings()
        self._models = BundleModels(bundle)
        self._reference = Reference.of(bundle)
        self._measured = self._given_reference(reference)

    def judge(
        self, location: str, name: str | None = None, *, now: float | None = None
    ) -> Judgement:
        """Judge a window and write down what was found.

        Args:
            location: File, pattern or folder.
            name: Of the window in the history; by default the time of its start.
            now: The present, epoch seconds; by the clock when None.

        Raises:
            DataError: When the window cannot be used; nothing is written.
        """
        present = time.time() if now is None else now
        profile = self._profiler.profile(location, now=now)
        folder = window_folder(self._root, self.bundle.manifest.name, profile.span)
        name = name or folder.name
        progress = self._profiler.progress
        window = read_window(location, self._profiler.form, now=now, progress=progress)
        positive_from = self._concept.positive_from
        profile = with_scores(profile, window, self._models, self._profiler, positive_from)
        settings = self._data if self._can_judge(window) else self._data_alone
        findings = [*data_drift(profile, self._reference, settings)]
        waits = pending(window, self._concept, present)
        figures = None
        if waits is None and self._can_judge(window):
            found, figures = self._concept_drift(window, name)
            findings += found
        if self._previous is not None:
            findings += self._model_drift(window)
        findings = since_when(findings, folder)
        entry = Entry(
            window=name,
            bundle=self.bundle.manifest.version,
            start=window.start,
            end=window.end,
            rows=profile.num_rows,
            labels=self._labels(window, waits),
            reason=self._reason(window, waits),
            until=None if waits is None else waits.until,
            figures=figures,
            findings=findings,
        )
        write_findings(folder, self.bundle.manifest, profile, findings)
        self._publish(entry, folder, profile)
        return Judgement(entry=entry, folder=folder)

    def judge_traffic(self, traffic: Path, *, now: float | None = None) -> Judgement:
        """Judge what a server kept of its requests; it has no labels, so data drift alone.

        Args:
            traffic: What the server kept.
            now: The present, epoch seconds; by the clock when None.

        Raises:
            DataError: When it cannot be used; nothing is written.
        """
        profile = profile_traffic(traffic, self.bundle, self._reference)
        folder = window_folder(self._root, self.bundle.manifest.name, profile.span)
        findings = since_when(data_drift(profile, self._reference, self._data_alone), folder)
        present = int(time.time() if now is None else now)
        start, end = profile.span or (present, present)
        entry = Entry(
            window=folder.name,
            bundle=self.bundle.manifest.version,
            start=start,
            end=end,
            rows=profile.num_rows,
            labels=UNLABELLED,
            reason="what a server keeps has no labels",
            findings=findings,
        )
        write_findings(folder, self.bundle.manifest, profile, findings)
        self._publish(entry, folder, profile)
        return Judgement(entry=entry, folder=folder)

    def note_unusable(self, name: str, error: DataError, now: float) -> Entry:
        """Write down that a window cannot be used, so that it is not taken for one without drift.

        Args:
            name: Of the window.
            error: Why.
            now: The present, epoch seconds.
        """
        entry = Entry(
            window=name,
            bundle=self.bundle.manifest.version,
            start=int(now),
            end=int(now),
            rows=0,
            labels=UNUSABLE,
            reason=str(error),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._publish(entry, self.folder, None)
        return entry

    def _given_reference(self, location: str | None) -> Measured | None:
        path = self.folder / REFERENCE_FILE
        if location is None:
            return load_measured(path, self.bundle.manifest.version)
        window = read_window(location, self._profiler.form)
        waits = pending(window, self._concept, time.time())
        if waits is not None:
            raise DataError([f"{location}: cannot be the reference: {waits.reason}"])
        return measure(self._models, window, self._concept)

    def _can_judge(self, window: Window) -> bool:
        if not self._looks_for_concept:
            return False
        has_label = LABEL in window.interactions.column_names
        return has_label or self._models.recommender is not None

    def _labels(self, window: Window, waits: Pending | None) -> str:
        if not self._can_judge(window):
            return UNLABELLED
        return JUDGED if waits is None else PENDING

    def _reason(self, window: Window, waits: Pending | None) -> str:
        if not self._looks_for_concept:
            return "it was left out (concept_drift=none)"
        if not self._can_judge(window):
            return (
                "the window has no labels, and the bundle no retrieval whose recall could be taken"
            )
        return "" if waits is None else waits.reason

    def _concept_drift(self, window: Window, name: str) -> tuple[list[Finding], WindowFigures]:
        measured = measure(self._models, window, self._concept)
        if self._measured is None:
            self._measured = measured
            self.folder.mkdir(parents=True, exist_ok=True)
            save_measured(self.folder / REFERENCE_FILE, measured, self.bundle.manifest.version)
            figures = window_figures(measured, measured, self._concept)
            return compare(measured, promised(measured), self._concept), figures
        figures = window_figures(measured, self._measured, self._concept)
        version = self.bundle.manifest.version
        past = [
            entry.figures
            for entry in read_history(self.folder)
            if entry.figures is not None
            and entry.start < window.start
            and entry.bundle == version
            and entry.window != name
        ]
        findings = compare(measured, self._measured, self._concept)
        return findings + sequential_findings([*past, figures], self._concept), figures

    def _model_drift(self, window: Window) -> list[Finding]:
        """What the other version finds of what users took in the window, and how far it is."""
        if self._previous is None:
            return []
        rows = self._models.rows(window, self._concept.positive_from)
        known = bool((rows.taken & (rows.user_rows >= 0) & (rows.item_rows >= 0)).any())
        return model_drift(self._previous, self._models, self._model, rows if known else None)

    def _publish(self, entry: Entry, folder: Path, profile: Profile | None) -> None:
        """History first: what is on the disk then can be made again from it."""
        append_history(self.folder, entry)
        known = [one for one in read_history(self.folder) if one.window != entry.window]
        report = Report(
            bundle=self.bundle.manifest.name,
            entries=[*known, entry],
            profile=profile,
            reference=self._reference.training,
            scores=self._reference.validation,
            pipeline=self.bundle.pipeline,
        )
        write_report({folder, self.folder}, report)
        staging = self.folder / f".{PROMETHEUS_FILE}.staging"
        staging.write_text(prometheus_text(report.bundle, report.entries), encoding="utf-8")
        staging.replace(self.folder / PROMETHEUS_FILE)
        write_events(self.folder / TENSORBOARD, entry)
