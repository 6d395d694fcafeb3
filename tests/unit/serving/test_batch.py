"""A batch gives every user what a request gives, and a killed one ends like one that was not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.workers import Threads
from twotower.export.bundle import Bundle, open_bundle
from twotower.serving import batch_scores
from twotower.serving.batch import BatchResult, BatchSettings, run_batch
from twotower.serving.batch_scores import open_recommender
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Filter, Request
from twotower.serving.store import StoreReader
from twotower.serving.store_lmdb import LmdbStore
from twotower.serving.store_version import NoStore

pytest.importorskip("lmdb", reason="LMDB is not installed (the extra `batch`)")

NOON = int(time.time()) // 86_400 * 86_400 - 43_200
WORKERS = Threads(num_threads=1)
K = 12


class Place:
    """Where a test writes."""

    def __init__(self, folder: Path) -> None:
        self.home, self.stores = folder / "batches" / "tiny", folder / "stores"

    @property
    def store(self) -> LmdbStore:
        return LmdbStore(path=str(self.stores), name="tiny")

    def run(self, bundle: Path, store: object = None, **changes: object) -> BatchResult:
        settings = replace(BatchSettings(k=K, seconds=NOON, chunk_size=50), **changes)
        return run_batch(bundle, self.home, store or self.store, settings, WORKERS)

    def reader(self) -> StoreReader:
        return StoreReader(values=self.store.values(), clock=lambda: NOON + 60)

    def rows(self) -> list[dict]:
        paths = sorted((self.home / "current" / "lists").glob("*.parquet"))
        return pa.concat_tables(pq.read_table(path) for path in paths).to_pylist()

    def files(self) -> dict[str, bytes]:
        paths = sorted((self.home / "current" / "lists").glob("*.parquet"))
        return {path.name: path.read_bytes() for path in paths}

    def values(self, users: list) -> list[object]:
        values = self.store.values()
        return [values.read(str(user).encode()) for user in users]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def users_of(bundle: Bundle) -> list:
    return bundle.users.ids.to_pylist()


@pytest.mark.parametrize("run", ["tiny_run", "csv_run"])
def test_lists_are_those_of_requests(run: str, request, place: Place) -> None:
    bundle = request.getfixturevalue(run).bundle
    recommender = Recommender(open_bundle(bundle))
    users = users_of(recommender.bundle)
    result = place.run(bundle)
    report = result.report
    assert report["users"] == report["scored_now"] == len(users)
    assert (report["failed"], report["reasons"]) == (0, {})
    answers = recommender.answer([Request(user=user, k=K, seconds=NOON) for user in users])
    rows = {row["user_id"]: row for row in place.rows()}
    assert list(rows) == sorted(users, key=str)
    assert report["short"] == sum(len(answer.items) < K for answer in answers)
    reader = place.reader()
    for user, answer in zip(users, answers, strict=True):
        items = [item.item_id for item in answer.items]
        row, found = rows[user], reader.lookup(user)
        assert row["item_id"] == [item.item_id for item in found.items] == items
        assert found.status == "found"
        scores = [item.retrieval_score for item in answer.items]
        assert row["score"] == pytest.approx(scores, abs=1e-5)
        probabilities = [item.probability for item in answer.items]
        stored = [item.probability for item in found.items]
        if recommender.bundle.ranker is None:
            assert row["probability"] is None
            assert stored == [None] * len(items)
            stored = [item.retrieval_score for item in found.items]
            assert [item.retrieval_rank for item in found.items] == list(range(1, len(items) + 1))
            assert stored == pytest.approx(scores, abs=1e-5)
        else:
            assert row["probability"] == pytest.approx(probabilities, abs=1e-5)
            assert stored == pytest.approx(probabilities, abs=1e-5)
    somebody = reader.lookup("somebody else")
    expected = recommender.recommend(k=K)
    assert [item.item_id for item in somebody.items] == [item.item_id for item in expected]


def test_filters_are_those_of_requests(tiny_run, place: Place, bundle) -> None:
    genre = bundle.items.table.column("category")[4].as_py()
    rule = Filter(column="category", operator="in", values=[genre])
    report = place.run(tiny_run.bundle, filters=[rule]).report
    assert report["filters"] == [{"column": "category", "operator": "in", "values": [genre]}]
    recommender = Recommender(bundle)
    passes = bundle.items.table.column("category").to_pylist()
    names = bundle.items.ids.to_pylist()
    among = {name for name, one in zip(names, passes, strict=True) if one == genre}
    assert 3 < len(among) < 40
    for row in place.rows()[::7]:
        request = Request(user=row["user_id"], k=K, seconds=NOON, filters=[rule])
        (answer,) = recommender.answer([request])
        assert row["item_id"] == [item.item_id for item in answer.items]
        assert set(row["item_id"]) <= among
    popular = {item.item_id for item in place.reader().lookup("nobody").items}
    assert popular <= among
    assert len(popular) == min(K, len(among))
    assert place.run(tiny_run.bundle, filters=[rule]).report["scored_now"] == 0
    assert place.run(tiny_run.bundle).report["scored_now"] == 120  # is another run


def test_filters_that_cannot_be_are_refused(tiny_run, place: Place) -> None:
    rule = Filter(column="colour", operator="in", values=["red"])
    with pytest.raises(ValueError, match=r"filters\[0\].column: unknown column `colour`"):
        place.run(tiny_run.bundle, filters=[rule])
    assert not place.home.exists()


@pytest.mark.parametrize("seconds", [NOON, NOON - 8 * 3600])
def test_the_time_of_the_requests_is_that_of_the_batch(tiny_run, place: Place, seconds) -> None:
    recommender = Recommender(open_bundle(tiny_run.bundle))
    place.run(tiny_run.bundle, NoStore(name="x"), seconds=seconds)
    row = place.rows()[3]
    expected = recommender.recommend(user=row["user_id"], k=K, seconds=seconds)
    assert row["probability"] == pytest.approx([item.probability for item in expected], abs=1e-6)


def test_lists_do_not_depend_on_the_chunks(tiny_run, place: Place, tmp_path, monkeypatch) -> None:
    rows = []
    for number, (chunk_size, block) in enumerate([(1000, 1024), (50, 1024), (7, 3)]):
        monkeypatch.setattr(batch_scores, "BLOCK", block)
        other = Place(tmp_path / str(number))
        other.run(tiny_run.bundle, NoStore(name="x"), chunk_size=chunk_size)
        assert len(other.files()) == -(-120 // chunk_size)
        rows.append(other.rows())
    for other in rows[1:]:
        for row, same in zip(rows[0], other, strict=True):
            assert (row["user_id"], row["item_id"]) == (same["user_id"], same["item_id"])
            assert row["score"] == pytest.approx(same["score"], abs=1e-6)
            assert row["probability"] == pytest.approx(same["probability"], abs=1e-6)


def test_lists_that_are_longer_than_the_candidates(tiny_run, place: Place, bundle) -> None:
    report = place.run(tiny_run.bundle, k=100).report
    events = [bundle.item_rows[a:b] for a, b in pairwise(bundle.offsets)]
    left = {
        user: len(bundle.items) - len(set(seen.tolist()))
        for user, seen in zip(users_of(bundle), events, strict=True)
    }
    assert {row["user_id"]: len(row["item_id"]) for row in place.rows()} == left
    assert report["short"] == len(bundle.users)


def test_the_same_run_again_writes_the_same(tiny_run, bundle, tmp_path: Path) -> None:
    first, second = Place(tmp_path / "1"), Place(tmp_path / "2")
    for one in (first, second):
        one.run(tiny_run.bundle)
    users = [*users_of(bundle), "nobody"]
    assert len(first.files()) == 3
    assert first.files() == second.files()
    assert first.values(users) == second.values(users)
    again = first.run(tiny_run.bundle).report
    assert (again["scored_now"], again["users"]) == (0, 120)
    assert first.files() == second.files()
    assert first.values(users) == second.values(users)


def test_without_a_time_it_is_now(tiny_run, place: Place) -> None:
    before = int(time.time())
    report = place.run(tiny_run.bundle, NoStore(name="x"), seconds=None).report
    assert before <= report["written_at"] <= time.time()
    assert report["expires_at"] == report["written_at"] + 7 * 86_400


class Killed(BaseException):
    """Stands for a signal: nothing of ours catches it."""


def killed_at(monkeypatch, place: Place, run: Callable[[], object], number: int) -> None:
    """Run, and stop before chunk `number` is written."""
    write = batch_scores.write_table

    def dying(table: pa.Table, path: Path) -> None:
        if path.name == f"part-{number:06}.parquet":
            raise Killed
        write(table, path)

    with monkeypatch.context() as patch:
        patch.setattr(batch_scores, "write_table", dying)
        with pytest.raises(Killed):
            run()


def test_a_run_that_was_left_goes_on_with_its_time(tiny_run, place: Place, monkeypatch) -> None:
    clock = NOON - 5000
    monkeypatch.setattr("twotower.serving.batch.time.time", lambda: clock)
    run = lambda **changes: place.run(tiny_run.bundle, seconds=None, **changes)  # noqa: E731
    killed_at(monkeypatch, place, run, 1)
    assert not (place.home / "current").exists()
    clock += 4000
    other = run(k=5).report  # is another run, and removes what nobody went on with
    assert (other["written_at"], other["scored_now"]) == (clock, 120)
    killed_at(monkeypatch, place, run, 2)
    clock += 1000
    report = run().report
    assert (report["written_at"], report["scored_now"], report["users"]) == (clock - 1000, 20, 120)
    assert place.reader().lookup(place.rows()[0]["user_id"]).written_at == clock - 1000
    assert len(list(place.home.glob("[!.]*"))) == 2  # the run and `current`


def test_a_run_that_was_left_long_ago_is_begun_anew(tiny_run, place: Place, monkeypatch) -> None:
    clock = NOON - 90_000
    monkeypatch.setattr("twotower.serving.batch.time.time", lambda: clock)
    run = lambda: place.run(tiny_run.bundle, seconds=None)  # noqa: E731
    killed_at(monkeypatch, place, run, 2)
    clock += 86_400
    report = run().report
    assert (report["written_at"], report["scored_now"]) == (clock, 120)


def test_a_file_that_was_changed_is_scored_again(tiny_run, bundle, tmp_path, monkeypatch) -> None:
    undisturbed, place = Place(tmp_path / "1"), Place(tmp_path / "2")
    undisturbed.run(tiny_run.bundle)
    killed_at(monkeypatch, place, lambda: place.run(tiny_run.bundle), 2)
    [folder] = place.home.glob("[!.]*")
    (folder / "lists" / "part-000001.parquet").write_bytes(b"cut")
    with (folder / "progress.jsonl").open("a") as file:
        file.write('{"number": 2, "dig')  # killed in the middle of a line
    assert place.run(tiny_run.bundle).report["scored_now"] == 70
    assert place.files() == undisturbed.files()
    users = users_of(bundle)
    assert place.values(users) == undisturbed.values(users)


def test_files_are_loaded_into_another_store_without_scoring(tiny_run, place, monkeypatch) -> None:
    place.run(tiny_run.bundle, NoStore(name="x"))
    monkeypatch.setattr(Recommender, "rank", None)
    report = place.run(tiny_run.bundle).report
    assert report["scored_now"] == 0
    assert place.reader().lookup(place.rows()[5]["user_id"]).status == "found"


@pytest.fixture
def moved(tiny_run, tmp_path: Path) -> Path:
    """A copy of the bundle, and beside it a later version of other vectors."""
    home = tmp_path / "bundles" / "tiny"
    shutil.copytree(tiny_run.bundle, home, symlinks=True)
    return home


def later_version(home: Path, resign: Callable[..., None]) -> Path:
    """A version in which everybody's history is another one."""
    folder = home / "2099-01-01_00-00-00"
    shutil.copytree((home / "current").resolve(), folder)
    path = folder / "events" / "item_rows.npy"
    np.save(path, np.load(path)[::-1])
    resign(folder, version=folder.name)
    return folder


@pytest.fixture
def resign() -> Callable[..., None]:
    from twotower.export import manifest as names
    from twotower.export.manifest import file_digests, read_manifest

    def signed(folder: Path, **changes: object) -> None:
        manifest = replace(read_manifest(folder), files=file_digests(folder), **changes)
        (folder / names.MANIFEST).write_bytes(manifest.to_bytes())

    return signed


def test_a_moved_bundle_is_not_mixed(moved: Path, place: Place, resign, monkeypatch) -> None:
    current = moved / "current"
    killed_at(monkeypatch, place, lambda: place.run(current, seconds=None), 1)
    folder = later_version(moved, resign)
    current.unlink()
    current.symlink_to(folder.name)
    report = place.run(current, seconds=None).report
    assert (report["bundle_version"], report["scored_now"]) == (folder.name, 120)
    recommender = Recommender(open_bundle(folder))
    for row in place.rows()[::10]:
        expected = recommender.recommend(user=row["user_id"], k=K, seconds=report["written_at"])
        assert row["item_id"] == [item.item_id for item in expected]
        assert place.reader().lookup(row["user_id"]).version == folder.name


def test_a_bundle_that_is_replaced_during_a_run_stops_it(moved, place, resign) -> None:
    folder = (moved / "current").resolve()
    run = place.run

    class Replaces(Threads):
        def map(self, function, inputs):
            resign(folder, created="another time")
            return super().map(function, inputs)

    settings = BatchSettings(k=K, seconds=NOON, chunk_size=50)
    with pytest.raises(ValueError, match="was replaced since this run began"):
        run_batch(folder, place.home, place.store, settings, Replaces(num_threads=1))
    assert run(folder).report["scored_now"] == 120
    open_recommender.cache_clear()


def test_users_whom_the_models_refuse_are_reported(tiny_run, bundle, place, monkeypatch) -> None:
    bad = {users_of(bundle)[row] for row in (0, 60, 61)}
    rank = Recommender.rank
    queries = batch_scores.user_queries

    def marked(recommender, rows, seconds):
        columns, seen = queries(recommender, rows, seconds)
        names = [recommender.bundle.users.ids[int(row)].as_py() for row in rows]
        return columns | {"names": np.array(names)}, seen

    def refusing(self, columns, k, excluded, allowed):
        if bad & set(columns["names"].tolist()):
            raise ValueError("no vector")
        return rank(self, columns, k, excluded, allowed=allowed)

    undisturbed = Place(place.home / "undisturbed")
    undisturbed.run(tiny_run.bundle)
    with monkeypatch.context() as patch:
        patch.setattr(batch_scores, "user_queries", marked)
        patch.setattr(Recommender, "rank", refusing)
        refused = place.run(tiny_run.bundle)
        assert refused.path is None
        assert refused.report["users"] == 100  # it stopped before the last chunk
        assert not (place.home / "current").exists()
        assert place.reader().lookup("x").status == "missing"
        result = place.run(tiny_run.bundle, max_failed_share=0.025)
    report = result.report
    assert (report["users"], report["failed"], report["scored_now"]) == (120, 3, 20)
    assert report["reasons"] == {"no vector": {"users": 3, "examples": sorted(bad)}}
    assert json.loads(result.path.read_text()) == report
    for row, expected in zip(place.rows(), undisturbed.rows(), strict=True):
        found = place.reader().lookup(row["user_id"])
        if row["user_id"] in bad:
            assert (row["item_id"], row["error"]) == (None, "no vector")
            assert found.status == "fallback"
        else:
            assert (row["item_id"], row["error"]) == (expected["item_id"], None)
            assert found.status == "found"


def test_probabilities_that_are_no_numbers_are_not_stored(tiny_run, place, monkeypatch) -> None:
    rank = Recommender.rank

    def broken(self, columns, k, excluded, allowed):
        ranked = rank(self, columns, k, excluded, allowed=allowed)
        ranked.probabilities[:, 0] = np.nan
        return ranked

    monkeypatch.setattr(Recommender, "rank", broken)
    result = place.run(tiny_run.bundle, k=79)
    [reason] = result.report["reasons"]
    assert reason == "the ranker gives a probability that is not finite"
    assert result.path is None


def test_ids_that_a_store_cannot_keep_are_reported(tiny_run, bundle, place, monkeypatch) -> None:
    ids = users_of(bundle)
    ids[7], ids[9] = "x" * 512, ""
    users = replace(bundle.users, ids=pa.array(ids))
    recommender = Recommender(replace(bundle, users=users))
    monkeypatch.setattr(batch_scores, "open_recommender", lambda _: recommender)
    monkeypatch.setattr("twotower.serving.batch.open_recommender", lambda _: recommender)
    report = place.run(tiny_run.bundle, max_failed_share=0.5).report
    assert report["reasons"] == {
        "an id must have 1 to 511 bytes, got 0": {"users": 1, "examples": [""]},
        "an id must have 1 to 511 bytes, got 512": {"users": 1, "examples": ["x" * 512]},
    }


def test_a_bundle_without_users_is_refused(tiny_run, bundle, place, monkeypatch) -> None:
    recommender = Recommender(replace(bundle, users=None))
    monkeypatch.setattr("twotower.serving.batch.open_recommender", lambda _: recommender)
    with pytest.raises(ValueError, match="knows no users; train with a table that has `user_id`"):
        place.run(tiny_run.bundle)


def test_earlier_runs_are_removed(tiny_run, place: Place) -> None:
    (place.home / "mine").mkdir(parents=True)
    names = [place.run(tiny_run.bundle, k=k, keep=2).report["namespace"] for k in (3, 4, 5)]
    assert len(set(names)) == 3
    there = {path.name for path in place.home.glob("[!.]*")}
    assert there == {*names[1:], "current", "mine"}
    assert (place.home / "current").resolve().name == names[2]
    assert place.run(tiny_run.bundle, k=4, keep=2).report["scored_now"] == 0
    assert (place.home / "current").resolve().name == names[1]
    assert len(place.reader().lookup(place.rows()[0]["user_id"]).items) == 4


def test_runs_of_a_name_take_turns(tiny_run, place: Place) -> None:
    class Meanwhile(Threads):
        def map(self, function, inputs):
            with pytest.raises(ValueError, match="another batch run of this name is going on"):
                place.run(tiny_run.bundle)
            return super().map(function, inputs)

    settings = BatchSettings(k=K, seconds=NOON)
    result = run_batch(tiny_run.bundle, place.home, place.store, settings, Meanwhile())
    assert result.report["users"] == 120


def test_settings_out_of_range_are_named_together() -> None:
    with pytest.raises(ValueError, match=r"k must be at least 1, got 0\nchunk_size must .*got -1"):
        BatchSettings(k=0, chunk_size=-1)
    for changes, message in (
        ({"k": 65_536}, "k must be at most 65535, got 65536"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"ttl_days": 0}, "ttl_days must be above 0, or null for never, got 0"),
        ({"max_failed_share": 1.5}, "max_failed_share must be 0 to 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            BatchSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": 1000}, "expire after 7 days, which have passed"),
        ({"seconds": -5, "ttl_days": None}, "from 1970 to 2106, got -5"),
        ({"seconds": 2**32, "ttl_days": None}, "from 1970 to 2106, got 4294967296"),
    ],
)
def test_times_that_cannot_be_are_refused(tiny_run, place, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        place.run(tiny_run.bundle, **changes)
    assert not place.stores.exists()


def test_a_bundle_that_cannot_recommend_is_refused(click_run, place: Place) -> None:
    with pytest.raises(ValueError, match="holds no retrieval stage"):
        place.run(click_run.bundle)


def test_a_batch_loads_no_torch(tiny_run, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from twotower.cli.main import main\n"
        f"bundle = 'bundle=' + {str(tiny_run.bundle)!r}\n"
        "assert main(['batch', bundle, 'k=3', 'quiet=true']) == 0\n"
        "assert main(['lookup', 'name=tiny', 'user=u000001', 'quiet=true']) == 0\n"
        "print([n for n in ('torch', 'pytorch_lightning', 'matplotlib', 'redis') "
        "if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.split() == ["[]"], done.stderr
