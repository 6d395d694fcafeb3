"""Files of a run folder: whole or not there, and none that belong to other data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.metadata import version

import pytest

from twotower.data.schema import DataError
from twotower.training.run_folder import (
    point_latest,
    start_run,
    versions,
    write_json,
    write_metrics,
    write_whole,
)


def test_start_writes_what_is_known(world, tmp_path):
    folder = tmp_path / "runs" / "a"
    start_run(folder, "seed: 3\n", world.prepared)
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "features", "prepared.json", "versions.json")
    }
    assert (folder / "config.yaml").read_text() == "seed: 3\n"
    where = json.loads((folder / "prepared.json").read_text())
    assert where == {
        "folder": str(world.prepared.folder.resolve()),
        "fingerprint": world.prepared.manifest["fingerprint"],
    }
    copied = {path.name: path.read_bytes() for path in (folder / "features").iterdir()}
    features = world.prepared.folder / "features"
    assert copied == {path.name: path.read_bytes() for path in features.iterdir()}


def test_start_again_on_the_same_data(world, tmp_path):
    for _ in range(2):
        start_run(tmp_path, "seed: 3\n", world.prepared)


def test_start_again_on_other_data_changes_nothing(world, tmp_path):
    start_run(tmp_path, "seed: 3\n", world.prepared)
    other = replace(world.prepared, manifest={**world.prepared.manifest, "fingerprint": "other"})
    with pytest.raises(DataError, match=r"the run began on prepared data \w+, .* other; start a"):
        start_run(tmp_path, "seed: 4\n", other)
    assert (tmp_path / "config.yaml").read_text() == "seed: 3\n"


def test_versions(monkeypatch):
    found = versions()
    assert found["torch"] == version("torch")
    assert found["python"].startswith("3.")
    monkeypatch.setattr("twotower.training.run_folder.LIBRARIES", ("no-such-library",))
    assert versions()["no-such-library"] == "not installed"


def test_metrics_that_are_no_numbers_are_null(tmp_path):
    write_metrics(tmp_path, {"a": 0.5, "b": math.nan, "c": math.inf})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text) == {"a": 0.5, "b": None, "c": None}
    assert "NaN" not in text


def test_latest_moves_on(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point_latest(tmp_path / name)
        assert (tmp_path / "latest").resolve() == tmp_path / name
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "latest"}


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}

    def full_disk(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, "half")
    assert json.loads(path.read_text()) == {"a": 1}
