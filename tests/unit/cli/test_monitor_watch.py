"""`twotower monitor` over a folder of windows: delay, bad windows, reference, other version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.cli.load_run import load_run
from twotower.cli.main import main
from twotower.data.synthetic import SyntheticSource
from twotower.monitoring.history import JUDGED, PENDING, UNUSABLE, read_history

DAY = 86_400
# The tiny bundle is hardly trained, and calibrated as badly.
SETTINGS = (
    *("concept_drift.min_users=5", "concept_drift.min_successes=5"),
    *("concept_drift.tolerance=0.3", "quiet=true"),
)


@pytest.fixture(scope="session")
def users_of_the_world(tiny_run) -> list[pa.Table]:
    """The log of the tiny world, cut by user: windows between which nothing drifts."""
    world = {k: v for k, v in load_run(tiny_run.run).config.data.items() if not k.startswith("_")}
    log = SyntheticSource(**world).read().interactions
    seconds = log["timestamp"].to_numpy() // 1_000_000
    log = log.set_column(log.column_names.index("timestamp"), "timestamp", pa.array(seconds))
    log = log.rename_columns(["click" if n == "label" else n for n in log.column_names])
    numbers = np.array([int(user[1:]) for user in log["user_id"].to_pylist()])
    return [log.filter(pa.array(numbers % 3 == part)) for part in range(3)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "windows").mkdir()
    return tmp_path / "windows"


def watch(tiny_run, *overrides: str) -> int:
    given = ["interactions=windows", "watch=once", "data_drift.min_psi=9", *SETTINGS]
    given += [f"data_drift.min_{name}=9" for name in ("jensen_shannon", "ks", "chi_squared")]
    return main(
        ["monitor", f"bundle={tiny_run.bundle}", *given, "data_drift.min_rate=1", *overrides]
    )


def history():
    return read_history(Path("monitoring/tiny"))


def put(folder: Path, name: str, rows: pa.Table, later_by: int = 0) -> None:
    """A window arrives as a whole: it is renamed to its name."""
    times = pa.array(rows["timestamp"].to_numpy() + later_by)
    rows = rows.set_column(rows.column_names.index("timestamp"), "timestamp", times)
    pq.write_table(rows, folder / f".{name}")
    (folder / f".{name}").rename(folder / name)


def without_clicks(rows: pa.Table, share: float) -> pa.Table:
    clicks = rows["click"].to_numpy().copy()
    clicks[np.random.default_rng(0).random(len(clicks)) < share] = 0
    return rows.set_column(rows.column_names.index("click"), "click", pa.array(clicks))


def test_windows_are_judged_once_and_drift_is_found(tiny_run, users_of_the_world, folder) -> None:
    parts = users_of_the_world
    put(folder, "1.parquet", parts[0])
    put(folder, "2.parquet", parts[1], later_by=30 * DAY)
    (folder / "_SUCCESS").write_text("")
    assert watch(tiny_run) == 0
    assert [(e.window, e.labels, e.num_alerts) for e in history()] == [
        ("1.parquet", JUDGED, 0),
        ("2.parquet", JUDGED, 0),
    ]
    lines = Path("monitoring/tiny/history.jsonl").read_bytes()
    assert watch(tiny_run) == 0
    assert Path("monitoring/tiny/history.jsonl").read_bytes() == lines
    put(folder, "3.parquet", without_clicks(parts[2], 0.7), later_by=60 * DAY)
    put(folder, "4.parquet", without_clicks(parts[2], 0.7), later_by=90 * DAY)
    assert watch(tiny_run) == 3
    *_, third, fourth = history()
    ctr = [f for f in fourth.findings if (f.subject, f.statistic) == ("all", "ctr")]
    assert ctr[0].alert
    assert ctr[0].since == third.start  # where the run of alerts began
    root = Path("monitoring/tiny")
    assert "4.parquet" in (root / "report.html").read_text()
    assert (
        f'twotower_drift_alerts{{bundle="tiny",version="{fourth.bundle}"}}'
        in (root / "drift.prom").read_text()
    )
    assert len(list((root / "tensorboard").iterdir())) == 4
    assert len(list(root.glob("*/report.html"))) == 4


def test_a_watch_that_was_killed_goes_on(tiny_run, users_of_the_world, folder) -> None:
    """Between the findings and the end of the history's line."""
    put(folder, "1.parquet", users_of_the_world[0])
    put(folder, "2.parquet", users_of_the_world[1], later_by=30 * DAY)
    assert watch(tiny_run) == 0
    path = Path("monitoring/tiny/history.jsonl")
    whole, before = path.read_bytes(), history()
    path.write_bytes(whole[:-40])
    assert [e.window for e in history()] == ["1.parquet"]
    assert watch(tiny_run) == 0
    assert [e.to_json() for e in history()] == [e.to_json() for e in before]


def test_a_window_waits_for_its_labels(tiny_run, users_of_the_world, folder) -> None:
    put(folder, "1.parquet", users_of_the_world[0])
    delay = "concept_drift.label_delay=4000000000"
    assert watch(tiny_run, delay) == 0
    (waits,) = history()
    assert waits.labels == PENDING
    assert waits.until == waits.end + 4_000_000_000
    assert not [f for f in waits.findings if f.area == "concept"]
    page = Path("monitoring/tiny/report.html").read_text()
    assert "No drift found" not in page
    assert watch(tiny_run, delay) == 0
    assert len(Path("monitoring/tiny/history.jsonl").read_bytes().splitlines()) == 1
    # Too many labels are missing although they should have come.
    labels = [
        None if n % 2 else v for n, v in enumerate(users_of_the_world[1]["click"].to_pylist())
    ]
    rows = users_of_the_world[1]
    rows = rows.set_column(
        rows.column_names.index("click"), "click", pa.array(labels, pa.float32())
    )
    put(folder, "2.parquet", rows, later_by=30 * DAY)
    assert watch(tiny_run, delay) == 0
    assert history()[1].labels == PENDING


def test_a_bad_window_is_reported_and_the_others_are_judged(
    tiny_run, users_of_the_world, folder, capsys
) -> None:
    rows = users_of_the_world[0]
    put(folder, "1.parquet", rows)
    pq.write_table(rows.drop_columns(["click"]), folder / "0.parquet")
    assert watch(tiny_run) == 2
    assert "click" in capsys.readouterr().err
    found = {e.window: e for e in history()}
    assert found["0.parquet"].labels == UNUSABLE
    assert found["1.parquet"].labels == JUDGED
    assert watch(tiny_run) == 0  # each is told once


def test_a_reference_that_is_given(tiny_run, users_of_the_world, folder) -> None:
    pq.write_table(users_of_the_world[0], "usual.parquet")
    put(folder, "1.parquet", without_clicks(users_of_the_world[1], 0.7))
    assert watch(tiny_run, "reference=usual.parquet") == 3
    (entry,) = history()
    assert {"ctr", "calibration"} <= {f.statistic for f in entry.findings if f.alert}


def test_another_version_of_the_bundle(tiny_run, users_of_the_world, folder, tmp_path) -> None:
    put(folder, "1.parquet", users_of_the_world[0])
    assert watch(tiny_run, f"previous={tiny_run.bundle}") == 0
    (entry,) = history()
    found = {f.statistic: f for f in entry.findings if f.area == "model"}
    assert found["neighbour_overlap@10"].value == 1
    assert found["vector_shift"].value == pytest.approx(0, abs=1e-6)


def test_what_watch_may_be(tiny_run, folder, capsys) -> None:
    assert watch(tiny_run, "watch=sometimes") == 2
    assert "watch: got 'sometimes'; allowed: true, false, once" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert watch(tiny_run) == 2
    assert "windows: no folder" in capsys.readouterr().err


def test_every_line_is_json(tiny_run, users_of_the_world, folder) -> None:
    put(folder, "1.parquet", users_of_the_world[0])
    assert watch(tiny_run) == 0
    for line in Path("monitoring/tiny/history.jsonl").read_text().splitlines():
        assert json.loads(line)["version"] == 1
