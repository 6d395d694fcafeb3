"""What a server keeps of its requests, and the profile of it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from twotower.data.schema import DataError
from twotower.export.bundle import Bundle, open_bundle
from twotower.monitoring.data_drift import DataDriftSettings, data_drift
from twotower.monitoring.reference import Reference
from twotower.monitoring.traffic_profile import profile_traffic
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Request
from twotower.serving.traffic import TrafficRecorder

ALL = 1e9  # a second


@pytest.fixture(scope="module")
def bundle(tiny_run) -> Bundle:
    return open_bundle(tiny_run.bundle)


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return Recommender(bundle)


def requests(bundle: Bundle, count: int, **context: object) -> list[Request]:
    users = bundle.users.ids.to_pylist()
    devices = ("phone", "phone", "desktop", None)
    return [
        Request(
            user=users[n % len(users)],
            k=3 + n % 3,
            seconds=1_700_000_000.0 + n,
            context={"device": devices[n % 4], **context},
        )
        for n in range(count)
    ]


def served(recommender: Recommender, folder: Path, asked: list[Request], **settings: float):
    recorder = TrafficRecorder(folder, recommender.bundle, **({"per_second": ALL} | settings))
    recommender.observe = recorder.record
    try:
        answers = [recommender.answer(asked[n : n + 5]) for n in range(0, len(asked), 5)]
    finally:
        recommender.observe = None
        recorder.close()
    return [one for some in answers for one in some]


def test_a_profile_of_what_was_asked_and_shown(bundle, recommender, tmp_path) -> None:
    asked = requests(bundle, 200)
    answers = served(recommender, tmp_path, asked, rows_of_a_file=64)
    files = sorted(tmp_path.rglob("*.npz"))
    assert len(files) >= 3
    assert {path.parent.parent.name for path in files} == {bundle.manifest.version}
    reference = Reference.of(bundle)
    profile = profile_traffic(tmp_path, bundle, reference)
    assert profile.num_rows == 200
    assert profile.span == (1_700_000_000, 1_700_000_200)
    values = bundle.pipeline.transforms["device"].vocabulary.values.to_pylist()
    column = profile.columns["context.device"]
    expected = Counter(one.context["device"] for one in asked)
    assert column.counts.sum(axis=0).tolist() == [expected[value] for value in values]
    assert column.null.sum() == expected[None]
    shown = Counter(item.item_id for answer in answers for item in answer.items)
    ids = bundle.items.ids.to_pylist()
    assert profile.exposures.tolist() == [shown[item] for item in ids]
    names = bundle.users.table["country"].to_pylist()
    countries = dict(zip(bundle.users.ids.to_pylist(), names, strict=True))
    by_country = Counter(countries[one.user] for one in asked)
    values = bundle.pipeline.transforms["country"].vocabulary.values.to_pylist()
    found = profile.columns["user.country"].counts.sum(axis=0).tolist()
    assert found == [by_country[value] for value in values]
    assert np.count_nonzero(profile.rows) > 50  # one group a user


def test_a_client_that_sends_something_else_is_an_alert(bundle, recommender, tmp_path) -> None:
    served(recommender, tmp_path, requests(bundle, 600, device="fridge"))
    profile = profile_traffic(tmp_path, bundle, Reference.of(bundle))
    findings = data_drift(profile, Reference.of(bundle), DataDriftSettings())
    assert not [one for one in findings if one.subject.startswith("item.")]
    assert not [one for one in findings if "position" in one.subject]
    alarms = {one.subject for one in findings if one.alert}
    assert alarms == {"context.device"}


def test_users_that_the_bundle_does_not_know(bundle, recommender, tmp_path) -> None:
    item = bundle.items.ids[0].as_py()
    asked = [Request(history=[item], seconds=5.0, context={"device": "phone"})] * 40
    served(recommender, tmp_path, [*asked, Request()])  # of the last nothing is known: popular
    profile = profile_traffic(tmp_path, bundle, Reference.of(bundle))
    assert profile.num_rows == 40
    assert profile.columns["user.user_id"].null.sum() == 40


def test_no_more_are_kept_than_is_asked_for(bundle, recommender, tmp_path, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("twotower.serving.traffic.time.monotonic", lambda: now[0])
    recorder = TrafficRecorder(tmp_path, bundle, per_second=2.0)
    one = recommender.encoder.asked(0, requests(bundle, 1)[0])
    rows = np.zeros((1, 3), np.int64)
    for _ in range(1000):  # ten seconds, a hundred requests each
        recorder.record([one], rows)
        now[0] += 0.01
    assert 20 <= len(recorder._kept) <= 23
    recorder.close()
    recorder.record([one], rows)
    assert len(recorder._kept) == 0
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_requests_are_written_after_a_minute(bundle, recommender, tmp_path, monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("twotower.serving.traffic.time.monotonic", lambda: now[0])
    recorder = TrafficRecorder(tmp_path, bundle, per_second=ALL)
    one = recommender.encoder.asked(0, requests(bundle, 1)[0])
    recorder.record([one], np.zeros((1, 3), np.int64))
    now[0] += 61
    recorder.record([one], np.zeros((1, 3), np.int64))
    assert recorder._kept == []
    recorder.close()
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_days_that_are_too_old_are_removed(bundle, recommender, tmp_path) -> None:
    """Of all bundles; what the server did not write stays."""
    today = datetime.now(UTC).date()
    kept, old = (tmp_path / "other" / f"{today - timedelta(days=n)}" for n in (2, 3))
    noted = tmp_path / "noted" / old.name
    for folder in (kept, old, noted):
        folder.mkdir(parents=True)
        (folder / "12-00-00-000000-7.npz").write_bytes(b"x")
    (noted / "notes.txt").write_text("mine")
    (tmp_path / "gone" / old.name).mkdir(parents=True)
    served(recommender, tmp_path, requests(bundle, 10), days=2)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*")}
    version = bundle.manifest.version
    assert found == {f"other/{kept.name}", f"noted/{noted.name}", f"{version}/{today}"}
    assert not (tmp_path / "gone").exists()
    assert [path.name for path in noted.iterdir()] == ["notes.txt"]
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_a_full_disk_does_not_stop_the_server(bundle, recommender, tmp_path, caplog) -> None:
    (tmp_path / bundle.manifest.version).write_text("a file where the folder should be")
    with caplog.at_level(logging.ERROR):
        answers = served(recommender, tmp_path, requests(bundle, 10))
    assert len(answers) == 10
    assert "10 requests are not kept" in caplog.text


def test_what_is_no_traffic_is_refused(bundle, recommender, tmp_path) -> None:
    reference = Reference.of(bundle)
    with pytest.raises(DataError, match="there is none; a server keeps it"):
        profile_traffic(tmp_path, bundle, reference)
    served(recommender, tmp_path, requests(bundle, 10))
    other = replace(bundle, manifest=replace(bundle.manifest, version="other"))
    with pytest.raises(DataError, match=f"there is traffic of {bundle.manifest.version}"):
        profile_traffic(tmp_path, other, reference)
    (path,) = tmp_path.rglob("*.npz")
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    document = json.loads(arrays["document"].tobytes()) | {"version": 9}
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez(path.with_name("new.npz"), **arrays)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="no traffic, or damaged") as error:
        profile_traffic(tmp_path, bundle, reference)
    assert "traffic of version 9, this release reads 1" in str(error.value)
