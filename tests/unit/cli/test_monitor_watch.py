"""`twotower monitor watch=once`: its exit status, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from twotower.cli.load_run import load_run
from twotower.cli.main import main
from twotower.data.synthetic import SyntheticSource
from twotower.monitoring.history import UNUSABLE, read_history


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("river", reason="needs the extra `monitor`")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "windows").mkdir()


def watch(tiny_run, *overrides: str) -> int:
    given = ["interactions=windows", "watch=once", "data_drift.num_draws=200", *overrides]
    return main(["monitor", f"bundle={tiny_run.bundle}", *given])


def test_bad_windows_and_alerts_are_the_exit_status(tiny_run, capsys) -> None:
    world = {k: v for k, v in load_run(tiny_run.run).config.data.items() if not k.startswith("_")}
    log = SyntheticSource(**world).read().interactions
    pq.write_table(log.slice(0, 1500), "windows/1.parquet")  # clicks are called `label` here
    assert watch(tiny_run) == 2
    captured = capsys.readouterr()
    assert "1.parquet: cannot be used: " in captured.out
    assert "column `click`" in captured.err
    (entry,) = read_history(Path("monitoring/tiny"))
    assert entry.labels == UNUSABLE
    (Path("windows") / "1.parquet").unlink()
    log = log.rename_columns(["click" if n == "label" else n for n in log.column_names])
    days = log.set_column(2, "timestamp", (log["timestamp"].to_numpy() // 1_000_000)[None, :][0:1])
    broken = days.set_column(days.column_names.index("device"), "device", [["Phone"] * len(days)])
    pq.write_table(broken, "windows/2.parquet")
    assert watch(tiny_run) == 3
    captured = capsys.readouterr()
    assert "1 windows alert: 2.parquet" in captured.err
    assert "2.parquet: " in captured.out
    assert watch(tiny_run) == 0  # nothing is new


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["watch=sometimes"], "watch: got 'sometimes'; allowed: true, false, once"),
        (["traffic=somewhere"], "give one of interactions=<window of logs> and traffic="),
        (["interactions=nowhere"], "nowhere: no folder"),
        (["poll_seconds=0"], "poll_seconds: must be above 0, got 0"),
    ],
)
def test_what_is_refused(tiny_run, overrides, message, capsys) -> None:
    assert watch(tiny_run, *overrides) == 2
    assert message in capsys.readouterr().err
