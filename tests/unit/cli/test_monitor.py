"""`twotower monitor`: windows of the tiny world against its bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from twotower.cli.load_run import load_run
from twotower.cli.main import main
from twotower.data.synthetic import SyntheticSource
from twotower.export.bundle import open_bundle
from twotower.export.manifest import read_manifest
from twotower.export.writer import bundle_writer
from twotower.monitoring.finding_files import read_findings
from twotower.monitoring.profile import Profile
from twotower.serving.recommender import Recommender
from twotower.serving.traffic import TrafficRecorder

DAY = 86_400 * 1_000_000


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def later(tiny_run) -> pa.Table:
    """The last six days of the tiny world, as a log has them."""
    world = {k: v for k, v in load_run(tiny_run.run).config.data.items() if not k.startswith("_")}
    log = SyntheticSource(**world).read().interactions
    times = log["timestamp"].to_numpy()
    last = log.filter(pa.array(times >= times.max() // DAY * DAY - 5 * DAY))
    seconds = pc.divide(last["timestamp"], 1_000_000)
    last = last.set_column(last.column_names.index("timestamp"), "timestamp", seconds)
    return last.rename_columns(["click" if n == "label" else n for n in last.column_names])


def monitor(bundle: Path, rows: pa.Table, *overrides: str) -> int:
    pq.write_table(rows, "window.parquet")
    given = [f"bundle={bundle}", "interactions=window.parquet", *overrides]
    return main(["monitor", *given])


def changed(rows: pa.Table, name: str, values: object) -> pa.Table:
    place = rows.column_names.index(name)
    return rows.set_column(place, name, pa.array(values))


def document(folder: Path) -> dict:
    (path,) = (folder / "monitoring" / "tiny").glob("*/findings.json")
    return json.loads(path.read_text())


def test_a_window_without_drift(tiny_run, later: pa.Table, tmp_path: Path, capsys) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny_run.bundle.rglob("*")}
    assert monitor(tiny_run.bundle, later) == 0
    out = capsys.readouterr().out
    assert "0 of " in out
    assert "written: monitoring/tiny/" in out
    found = document(tmp_path)
    assert found["alerts"] == 0
    assert found["window"]["rows"] == len(later)
    assert found["bundle"]["name"] == "tiny"
    subjects = {one["subject"] for one in found["findings"]}
    assert {"user.country", "item.price", "item.image_vector[3]", "context.device"} <= subjects
    assert "label" not in subjects
    assert {p: p.stat().st_mtime_ns for p in tiny_run.bundle.rglob("*")} == before


def test_a_broken_feature_is_an_alert_that_says_what_to_do(
    tiny_run, later: pa.Table, tmp_path: Path, capsys
) -> None:
    words = np.where(np.arange(len(later)) % 3 == 0, "Phone", later["device"].to_pylist())
    assert monitor(tiny_run.bundle, changed(later, "device", words)) == 3
    said = capsys.readouterr()
    assert "refused: " in said.err
    assert "context.device" in said.err
    assert "context.device: Values (such as Phone) that training did not see" in said.out
    alarms = [one for one in document(tmp_path)["findings"] if one["alert"]]
    assert {one["subject"] for one in alarms} == {"context.device"}
    (missing,) = [one for one in alarms if one["statistic"] == "missing_rate"]
    assert missing["value"] == pytest.approx(1 / 3, abs=0.01)
    assert missing["reference"] == 0
    assert missing["p_value"] <= 0.05
    assert missing["since"] == document(tmp_path)["window"]["start"]


def test_an_alert_began_when_it_began(tiny_run, later: pa.Table, tmp_path: Path) -> None:
    broken = changed(later, "device", ["Phone"] * len(later))
    seconds = broken["timestamp"].to_numpy()
    middle = int(np.median(seconds))
    first = broken.filter(pa.array(seconds < middle))
    assert monitor(tiny_run.bundle, first, "quiet=true") == 3
    assert monitor(tiny_run.bundle, broken.filter(pa.array(seconds >= middle)), "quiet=true") == 3
    found = (tmp_path / "monitoring" / "tiny").glob("*/findings.json")
    folders = sorted(path.parent for path in found)
    assert len(folders) == 2
    (since,) = {
        one.since
        for one in read_findings(folders[1])
        if one.alert and one.subject.endswith("device")
    }
    assert since == int(first["timestamp"].to_numpy().min())
    assert Profile.load(folders[1] / "profile.npz").num_rows < len(later)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop_columns(["device"]), "column `device` is missing"),
        (lambda t: t.drop_columns(["click"]), "column `click` is missing"),
        (lambda t: t.slice(0, 0), "the table is empty"),
        (lambda t: pa.concat_tables([t, t]), "repeat an earlier row in every column"),
        (lambda t: changed(t, "click", pa.nulls(len(t), pa.float32())), "labels are null"),
        (lambda t: changed(t, "timestamp", [4_000_000_000] * len(t)), "now it is"),
        (lambda t: changed(t, "user_id", list(range(len(t)))), "ids of type int64"),
        (lambda t: changed(t, "position", ["first"] * len(t)), "feature `position` of kind "),
    ],
)
def test_a_bad_window_is_one_message_and_no_verdict(
    tiny_run, later: pa.Table, tmp_path: Path, capsys, damage, message: str
) -> None:
    assert monitor(tiny_run.bundle, damage(later)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "monitoring").exists()


def test_settings_and_bundles_that_cannot_be(tiny_run, later, tmp_path, capsys) -> None:
    assert monitor(tiny_run.bundle, later, "data_drift.leave_out=[device]") == 2
    assert "leave_out: no column device; allowed: user.user_id" in capsys.readouterr().err
    assert monitor(tiny_run.bundle, later, "false_alarm_rate=0") == 2
    assert "false_alarm_rate: must lie between 0 and 1, got 0" in capsys.readouterr().err
    for area in ("data_drift", "concept_drift"):
        assert monitor(tiny_run.bundle, later, f"+{area}.false_alarm_rate=0.01") == 2
        said = f"{area}.false_alarm_rate: the rate is one of the whole report; say false_alarm_rate"
        assert said in capsys.readouterr().err
    assert monitor(tiny_run.bundle, later, "data_drift.min_ks=-1") == 2
    assert "`min_ks` must be at least 0" in capsys.readouterr().err
    assert monitor(tiny_run.bundle, later, "data_drift.num_draws=100") == 2
    assert "a false-alarm rate of 0.025; at least 200" in capsys.readouterr().err


def test_a_bundle_from_before_there_was_monitoring(tiny_run, later, tmp_path, capsys) -> None:
    old = (tiny_run.bundle / "current").resolve()
    with bundle_writer(tmp_path / "old", "tiny") as writer:
        leave_out = shutil.ignore_patterns("reference", "manifest.json")
        shutil.copytree(old, writer.folder, ignore=leave_out, dirs_exist_ok=True)
        copy = writer.finish(replace(read_manifest(old), version=writer.version))
    assert monitor(copy, later) == 2
    assert "holds no reference/training.npz; export the run again" in capsys.readouterr().err


def test_too_few_rows_or_users_are_no_verdict(tiny_run, later, tmp_path, capsys) -> None:
    assert monitor(tiny_run.bundle, later.slice(0, 50)) == 2
    assert "the window has 50 rows of about" in capsys.readouterr().err
    one = changed(later, "user_id", [later["user_id"][0].as_py()] * len(later))
    assert monitor(tiny_run.bundle, one) == 2
    assert f"{len(later)} rows of about 1 groups of users; allowed" in capsys.readouterr().err


def test_a_flat_click_table(click_run, tmp_path, capsys) -> None:
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "site": [f"s{n}" for n in rng.integers(0, 5, 400)],
            "price": rng.normal(size=400),
            "click": (rng.random(400) < 0.3).astype(np.int64),
        }
    )
    assert monitor(click_run.bundle, table, "quiet=true") == 0
    moved = changed(table, "price", table["price"].to_numpy() + 2.0)
    assert monitor(click_run.bundle, moved) == 3
    out = capsys.readouterr().out
    assert "context.price is distributed differently" in out
    assert "context.site" not in out.split("alert from")[0]


def test_the_traffic_of_a_server(tiny_run, later, tmp_path, capsys) -> None:
    bundle = open_bundle(tiny_run.bundle)
    recommender = Recommender(bundle)
    recorder = TrafficRecorder(tmp_path / "traffic", bundle, per_second=1e9)
    recommender.observe = recorder.record
    for user in bundle.users.ids.to_pylist() * 3:
        recommender.recommend(user=user, context={"device": "fridge"})
    recorder.close()
    assert main(["monitor", f"bundle={tiny_run.bundle}", "traffic=traffic"]) == 3
    assert document(tmp_path)["window"]["rows"] == 3 * len(bundle.users)
    assert {one["subject"] for one in document(tmp_path)["findings"] if one["alert"]} == {
        "context.device"
    }
    assert monitor(tiny_run.bundle, later, "traffic=traffic") == 2
    assert main(["monitor", f"bundle={tiny_run.bundle}"]) == 2
    assert capsys.readouterr().err.count("give one of interactions=") == 2


def test_a_log_whose_columns_are_called_otherwise(csv_run, tmp_path, capsys) -> None:
    bundle, rng = open_bundle(csv_run.bundle), np.random.default_rng(0)
    users = bundle.users.ids.to_pylist() * 8
    items = bundle.items.ids.take(pa.array(rng.integers(0, 30, len(users))))
    times = [1_700_100_000 + n for n in range(len(users))]
    columns = {"visitor": users, "item_id": items, "timestamp": times}
    pacsv.write_csv(pa.table(columns), "window.csv")
    given = [f"bundle={csv_run.bundle}", "interactions=window.csv"]
    assert main(["monitor", *given]) == 2
    assert "column `user_id` is missing" in capsys.readouterr().err
    assert main(["monitor", *given, "columns.user_id=visitor", "quiet=true"]) == 0
    unseen = {
        one["subject"]: one["value"]
        for one in document(tmp_path)["findings"]
        if one["statistic"] == "unseen_rate"
    }
    assert unseen["user.user_id"] == 0  # integers beyond 2^53, one by one


def test_users_that_are_newer_than_the_bundle(tiny_run, later, tmp_path, capsys) -> None:
    users = sorted(set(later["user_id"].to_pylist()))
    columns = {"age_group": "18-24", "country": "DE", "interests": ["jazz"]}
    newer = pa.table({"user_id": users} | {n: [v] * len(users) for n, v in columns.items()})
    pq.write_table(newer, "users.parquet")
    assert monitor(tiny_run.bundle, later, "users=users.parquet") == 3
    alarms = {one["subject"] for one in document(tmp_path)["findings"] if one["alert"]}
    assert alarms == {"user.age_group", "user.country", "user.interests"}
    pq.write_table(newer.drop_columns(["country"]), "users.parquet")
    assert monitor(tiny_run.bundle, later, "users=users.parquet") == 2
    assert "column `country` is missing" in capsys.readouterr().err
