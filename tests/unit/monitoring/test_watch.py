"""Windows that arrive in a folder: each judged once, late labels, bad windows, killed watches."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.schema import DataError, Tables
from twotower.export.bundle import Bundle
from twotower.monitoring.concept_settings import ConceptSettings, NoConceptDrift
from twotower.monitoring.data_drift import DataDriftSettings
from twotower.monitoring.history import (
    HISTORY_FILE,
    JUDGED,
    PENDING,
    UNLABELLED,
    UNUSABLE,
    read_history,
)
from twotower.monitoring.judge import Judge
from twotower.monitoring.reference import Reference, window_form
from twotower.monitoring.watch import Watch
from twotower.monitoring.window_profile import Known, WindowProfiler

DAY = 86_400
# The tiny bundle is hardly trained, and calibrated as badly; its data drift is no matter here.
CONCEPT = ConceptSettings(min_users=5, min_successes=5, tolerance=0.3, recall_users=20)
DATA = DataDriftSettings(
    **{f"min_{n}": 9 for n in ("psi", "jensen_shannon", "ks", "chi_squared", "rate")},
    num_draws=200,
)


@pytest.fixture(autouse=True)
def _river() -> None:
    pytest.importorskip("river", reason="needs the extra `monitor`")


@pytest.fixture(scope="session")
def parts(log: Tables) -> list[pa.Table]:
    """The log cut by user, as files have it: windows between which nothing drifts."""
    table = log.interactions
    seconds = table["timestamp"].to_numpy() // 1_000_000
    table = table.set_column(table.column_names.index("timestamp"), "timestamp", pa.array(seconds))
    table = table.rename_columns(["click" if n == "label" else n for n in table.column_names])
    numbers = np.array([int(user[1:]) for user in table["user_id"].to_pylist()])
    return [table.filter(pa.array(numbers % 3 == part)) for part in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "windows").mkdir()
    return tmp_path / "windows"


@pytest.fixture
def make(bundle: Bundle, tmp_path: Path):
    """A new judge, as a process that starts has it."""
    reference = Reference.of(bundle)
    profiler = WindowProfiler(Known.of(bundle), reference, window_form(reference))

    def judge(concept=CONCEPT, **given) -> Judge:
        return Judge(
            bundle, profiler, root=tmp_path / "monitoring", data=DATA, concept=concept, **given
        )

    return judge


def put(folder: Path, name: str, rows: pa.Table, months: int = 0) -> None:
    """A window arrives as a whole: it is renamed to its name."""
    times = pa.array(rows["timestamp"].to_numpy() + months * 30 * DAY)
    rows = rows.set_column(rows.column_names.index("timestamp"), "timestamp", times)
    pq.write_table(rows, folder / f".{name}")
    (folder / f".{name}").rename(folder / name)


def with_clicks(rows: pa.Table, clicks) -> pa.Table:
    column = pa.array(clicks, pa.float32())
    return rows.set_column(rows.column_names.index("click"), "click", column)


def without_clicks(rows: pa.Table, share: float) -> pa.Table:
    clicks = rows["click"].to_numpy().copy()
    clicks[np.random.default_rng(0).random(len(clicks)) < share] = 0
    return with_clicks(rows, clicks)


def looked(judge: Judge, folder: Path, **given):
    return list(Watch(judge, folder, settle_seconds=0).round(**given))


def test_windows_are_judged_once_and_drift_is_found(make, parts, folder) -> None:
    put(folder, "1.parquet", parts[0])
    put(folder, "2.parquet", parts[1], months=1)
    (folder / "_SUCCESS").write_text("")
    judge = make()
    entries = looked(judge, folder)
    assert [(e.window, e.labels, e.num_alerts) for e in entries] == [
        ("1.parquet", JUDGED, 0),
        ("2.parquet", JUDGED, 0),
    ]
    assert looked(judge, folder) == []
    assert looked(make(), folder) == []
    put(folder, "3.parquet", without_clicks(parts[2], 0.7), months=2)
    put(folder, "4.parquet", without_clicks(parts[2], 0.7), months=3)
    third, fourth = looked(make(), folder)
    for entry in (third, fourth):
        (ctr,) = [f for f in entry.findings if (f.subject, f.statistic) == ("all", "ctr")]
        assert ctr.alert
        assert ctr.since == third.start  # where the run of alerts began
    assert [e.window[0] for e in read_history(judge.folder)] == ["1", "2", "3", "4"]
    assert "4.parquet" in (judge.folder / "report.html").read_text()
    version = judge.bundle.manifest.version
    line = f'twotower_drift_alerts{{bundle="tiny",version="{version}"}} {fourth.num_alerts}.0'
    assert line in (judge.folder / "drift.prom").read_text()
    assert len(list((judge.folder / "tensorboard").iterdir())) == 4
    assert len(list(judge.folder.glob("*/report.html"))) == 4


def test_a_watch_that_was_killed_goes_on(make, parts, folder) -> None:
    """In the middle of a line: the window is judged again, and comes out the same."""
    put(folder, "1.parquet", parts[0])
    put(folder, "2.parquet", parts[1], months=1)
    judge = make()
    looked(judge, folder)
    path = judge.folder / HISTORY_FILE
    before = path.read_bytes()
    path.write_bytes(before[:-40])
    (again,) = looked(make(), folder)
    assert again.window == "2.parquet"
    assert path.read_bytes() == before


def test_a_window_waits_for_its_labels_and_is_then_judged(make, parts, folder) -> None:
    put(folder, "1.parquet", parts[0])
    os.utime(folder / "1.parquet", (0, 0))  # it came before the present of this test
    settings = replace(CONCEPT, label_delay=1000)
    judge = make(settings)
    end = int(parts[0]["timestamp"].to_numpy().max()) + 1
    (waits,) = looked(judge, folder, now=end + 999)
    assert (waits.labels, waits.until) == (PENDING, end + 1000)
    assert [f for f in waits.findings if f.area == "concept"] == []
    assert [f for f in waits.findings if f.area == "data"]
    assert "No drift found" not in (judge.folder / "report.html").read_text()
    assert looked(judge, folder, now=end + 999) == []
    (judged,) = looked(judge, folder, now=end + 1000)
    assert judged.labels == JUDGED
    assert [e.labels for e in read_history(judge.folder)] == [JUDGED]


def test_labels_that_are_overdue_are_waited_for(make, parts, folder) -> None:
    clicks = parts[0]["click"].to_pylist()
    half = [None if row % 2 else click for row, click in enumerate(clicks)]
    put(folder, "1.parquet", with_clicks(parts[0], half))
    judge = make()
    watch = Watch(judge, folder, settle_seconds=0)
    (waits,) = watch.round()
    assert waits.labels == PENDING
    assert "have not come" in waits.reason
    assert list(watch.round()) == []  # as long as the file is the same
    put(folder, "1.parquet", parts[0])
    (judged,) = watch.round()
    assert judged.labels == JUDGED


def test_a_bad_window_is_written_down_and_the_others_are_judged(make, parts, folder) -> None:
    put(folder, "1.parquet", parts[0].drop_columns(["click"]))
    put(folder, "2.parquet", parts[1])
    judge = make()
    bad, good = looked(judge, folder)
    assert (bad.labels, good.labels) == (UNUSABLE, JUDGED)
    assert "`click` is missing" in bad.reason
    assert looked(judge, folder) == []


def test_a_window_that_is_being_written_is_left(make, parts, folder) -> None:
    put(folder, "1.parquet", parts[0])
    watch = Watch(make(), folder, settle_seconds=3600)
    assert list(watch.round()) == []


def test_a_reference_that_is_given(make, parts, folder, tmp_path) -> None:
    put(tmp_path, "usual.parquet", parts[0])
    put(folder, "1.parquet", without_clicks(parts[1], 0.7))
    (entry,) = looked(make(reference=str(tmp_path / "usual.parquet")), folder)
    assert {"ctr", "calibration"} <= {f.statistic for f in entry.findings if f.alert}
    with pytest.raises(DataError, match=r"cannot be the reference: its labels mature"):
        make(replace(CONCEPT, label_delay=10**10), reference=str(tmp_path / "usual.parquet"))


def test_another_version_of_the_bundle(make, bundle, parts, folder) -> None:
    put(folder, "1.parquet", parts[0])
    (entry,) = looked(make(previous=bundle), folder)
    found = {f.statistic: f for f in entry.findings if f.area == "model"}
    assert found["neighbour_overlap@10"].value == 1
    assert found["vector_shift"].value == pytest.approx(0, abs=1e-6)


def test_concept_drift_that_is_left_out(make, parts, folder) -> None:
    put(folder, "1.parquet", parts[0])
    judge = make(NoConceptDrift())
    (entry,) = looked(judge, folder)
    assert entry.labels == UNLABELLED
    assert {f.area for f in entry.findings} == {"data"}
    assert "concept_drift=none" in (judge.folder / "report.html").read_text()


def test_a_folder_that_is_not_there(make, tmp_path) -> None:
    with pytest.raises(DataError, match="nowhere: no folder"):
        Watch(make(), tmp_path / "nowhere")
