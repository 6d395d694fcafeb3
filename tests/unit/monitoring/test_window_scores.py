"""Scores of a window: those of the validation part for its rows, and others when it differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.cli.load_run import load_run
from twotower.data.schema import TIMESTAMP, VALIDATION, Tables
from twotower.export.bundle import Bundle
from twotower.monitoring import window_scores
from twotower.monitoring.concept_settings import NoConceptDrift
from twotower.monitoring.data_drift import DataDriftSettings, data_drift
from twotower.monitoring.judge import Judge
from twotower.monitoring.profile import Profile
from twotower.monitoring.reference import Reference, window_form
from twotower.monitoring.scoring import BundleModels
from twotower.monitoring.window_profile import Described, Known, WindowProfiler
from twotower.monitoring.window_scores import with_scores
from twotower.monitoring.windows import Window

SCORE = "score"


@pytest.fixture(scope="module")
def profiler(bundle: Bundle) -> WindowProfiler:
    reference = Reference.of(bundle)
    return WindowProfiler(Known.of(bundle), reference, window_form(reference))


@pytest.fixture(scope="module")
def validation(tiny_run, log: Tables) -> Window:
    """The rows of the validation part, as a log has them."""
    prepared = load_run(tiny_run.run).prepared
    inside = np.asarray(prepared.interactions.split) == VALIDATION
    times = np.asarray(prepared.interactions.timestamps)[inside]
    known = log.interactions[TIMESTAMP].to_numpy()
    rows = np.flatnonzero((known >= times.min()) & (known <= times.max()))
    table = log.interactions.take(pa.array(rows))
    start, end = int(times.min()) // 1_000_000, int(times.max()) // 1_000_000 + 1
    return Window(interactions=table, start=start, end=end)


def profiled(profiler: WindowProfiler, models: BundleModels, window: Window) -> Profile:
    profile = profiler.profile_rows(window.interactions)
    return with_scores(profile, window, models, profiler, positive_from=1.0)


def test_scores_of_the_validation_part_are_those_of_the_reference(
    bundle, models, profiler, validation
) -> None:
    profile = profiled(profiler, models, validation)
    kept = Reference.of(bundle).validation
    assert profile.num_rows == len(validation.interactions)  # rows are counted once
    assert np.array_equal(profile.columns[SCORE].counts, kept.columns[SCORE].counts)
    assert np.array_equal(profile.columns[SCORE].rows, kept.columns[SCORE].rows)
    (psi,) = [
        one
        for one in data_drift(profile, Reference.of(bundle))
        if (one.subject, one.statistic) == (SCORE, "psi")
    ]
    assert psi.value == pytest.approx(0, abs=1e-12)
    assert not psi.alert


def test_the_lower_half_of_the_scores_is_a_drift(bundle, models, profiler, validation) -> None:
    rows = models.rows(validation, 1.0)
    scores = models.probabilities(validation, rows)
    lower = np.flatnonzero(scores < np.median(scores))
    table = validation.interactions.take(pa.array(lower))
    profile = profiled(profiler, models, replace(validation, interactions=table))
    found = {
        one.statistic: one
        for one in data_drift(profile, Reference.of(bundle))
        if one.subject == SCORE
    }
    assert set(found) == {"psi", "jensen_shannon", "ks"}
    assert all(one.alert for one in found.values())
    assert found["ks"].value == pytest.approx(0.5, abs=0.05)
    assert "look at the features first" in found["psi"].advice


def test_of_a_long_window_some_rows_are_scored(models, profiler, validation, monkeypatch) -> None:
    monkeypatch.setattr(window_scores, "MAX_SCORED", 100)
    profile = profiled(profiler, models, validation)
    assert profile.columns[SCORE].rows.sum() == 100
    assert profile.num_rows == len(validation.interactions)


def test_items_may_be_newer_than_the_bundle(
    bundle, models, profiler, validation, log, tmp_path
) -> None:
    pq.write_table(log.items, tmp_path / "items.parquet")
    newer = WindowProfiler(
        Known.of(bundle),
        Reference.of(bundle),
        profiler.form,
        described=Described(items=str(tmp_path / "items.parquet")),
    )
    own, others = (profiled(one, models, validation) for one in (profiler, newer))
    assert np.array_equal(own.columns[SCORE].counts, others.columns[SCORE].counts)
    assert np.array_equal(own.exposures, others.exposures)
    assert own.exposures.sum() > 0


def test_the_report_compares_scores(bundle, profiler, validation, tmp_path: Path) -> None:
    table = validation.interactions
    seconds = pa.array(table[TIMESTAMP].to_numpy() // 1_000_000)
    table = table.set_column(table.column_names.index(TIMESTAMP), TIMESTAMP, seconds)
    names = ["click" if name == "label" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names), tmp_path / "window.parquet")
    judge = Judge(
        bundle,
        profiler,
        root=tmp_path / "monitoring",
        data=DataDriftSettings(),
        concept=NoConceptDrift(),
    )
    entry = judge.judge(str(tmp_path / "window.parquet")).entry
    assert SCORE in {one.subject for one in entry.findings}
    assert not [one for one in entry.findings if one.alert and one.subject == SCORE]
