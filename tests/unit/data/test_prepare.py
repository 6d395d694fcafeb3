"""Prepared folders: what is in them, when they are rebuilt, and that nothing held out leaks in."""

import ast
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.leakage import FittedOn, LeakError
from twotower.data.prepare import prepare
from twotower.data.prepared import open_prepared
from twotower.data.schema import TEST, TRAIN, VALIDATION, DataError, Label, Tables
from twotower.data.split import GivenSplit, LeaveOneOut, TemporalSplit
from twotower.data.tables import TableSource
from twotower.features.frequency import ItemFrequency
from twotower.features.infer import AutoSpec, GivenSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec, History

BIG = 2**53 + 1
LOG = {
    "user_id": [BIG, BIG + 1, BIG, BIG, BIG + 1],
    "item_id": ["007", "7", "ü x", "7", "007"],
    "split": pa.array([0, 0, 1, 2, 2], pa.int8()),
}


def folders(root):
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@pytest.fixture
def files(tmp_path):
    """Tables in files and how to prepare them."""
    (tmp_path / "log.csv").write_text(
        "user_id,item_id,timestamp,rating\n"
        + "".join(f"{row % 3},{row % 4},{row},{row % 2}\n" for row in range(20))
    )
    (tmp_path / "items.csv").write_text("item_id,price\n0,1.5\n1,2.5\n2,1.0\n3,4.0\n")

    def run(**changes):
        source = {
            "interactions": str(tmp_path / "log.csv"),
            "items": str(tmp_path / "items.csv"),
            "label": Label(column="rating"),
        }
        options = {
            "source": TableSource(**(source | changes.pop("source", {}))),
            "splitter": TemporalSplit(),
            "encoders": PipelineFactory(provider=AutoSpec()),
            "root": tmp_path / "prepared",
        }
        return prepare(**(options | changes))

    return run


def test_ids_come_out_as_they_went_in(prepare_tables):
    prepared = prepare_tables(Tables(interactions=pa.table(LOG)))
    again = open_prepared(prepared.folder)
    assert again.users.ids.to_pylist() == [BIG, BIG + 1]
    assert again.items.ids.to_pylist() == ["007", "7", "ü x"]
    rows = again.interactions.item_rows
    assert again.interactions.rows.tolist() == [0, 2, 3, 1, 4]
    assert again.items.ids.take(pa.array(rows)).to_pylist() == ["007", "ü x", "7", "7", "007"]
    assert again.events.offsets.tolist() == [0, 3, 5]
    assert again.users.columns["user_id"].tolist() == [1, 2]


def test_all_or_interacted(prepare_tables):
    items = pa.table({"item_id": ["new", "7"], "price": [3.0, 4.0]})
    tables = Tables(interactions=pa.table(LOG), items=items)
    by_default = prepare_tables(tables)
    assert by_default.items.ids.to_pylist() == ["new", "7", "007", "ü x"]
    assert by_default.num_catalogue == 3  # "ü x" is known from the validation part alone
    interacted = prepare_tables(tables, catalogue="interacted")
    assert interacted.items.ids.to_pylist() == ["7", "007", "ü x", "new"]
    assert interacted.num_catalogue == 3
    with pytest.raises(ValueError, match="catalogue: got 'some'; allowed: all, interacted"):
        prepare_tables(tables, catalogue="some")


def test_items_without_features_and_items_without_rows(prepare_tables):
    items = pa.table({"item_id": ["new", "7"], "price": [3.0, 4.0], "brand": ["a", "b"]})
    prepared = prepare_tables(Tables(interactions=pa.table(LOG), items=items))
    assert prepared.items.table.to_pydict() == {
        "item_id": ["new", "7", "007", "ü x"],
        "price": [3.0, 4.0, None, None],
        "brand": ["a", "b", None, None],
    }
    # the training part knows one price, 4, and one brand, b
    assert prepared.items.columns["price"].tolist() == [[-1, 0], [0, 0], [0, 1], [0, 1]]
    assert prepared.items.columns["brand"].tolist() == [0, 1, 0, 0]
    assert prepared.items.columns["item_id"].tolist() == [0, 2, 1, 0]


def test_a_flat_table(prepare_tables):
    table = pa.table(
        {
            "label": pa.array([0, 1, 1, 0], pa.float32()),
            "split": pa.array([0, 0, 1, 2], pa.int8()),
            "site": ["a", "b", "b", "c"],
        }
    )
    prepared = prepare_tables(Tables(interactions=table, label=Label(), context=("site",)))
    assert (prepared.users, prepared.items, prepared.events) == (None, None, None)
    assert prepared.num_catalogue == 0
    assert prepared.interactions.user_rows is None
    assert prepared.interactions.context["site"].tolist() == [1, 2, 2, 0]
    assert prepared.has_impressions
    with pytest.raises(DataError, match=r"stages=\[ranking\]"):
        prepared.require_events()


def test_further_outcomes_go_with_their_rows_and_into_no_feature(prepare_tables, caplog):
    """Users 2, 1, 2, 1 in the table: sorted by user, as they appear, its rows are 0, 2, 1, 3."""
    table = pa.table(
        {
            "user_id": [2, 1, 2, 1],
            "item_id": [5, 6, 6, 5],
            "timestamp": [0, 1, 2, 3],
            "label": pa.array([1, 0, 1, 1], pa.float32()),
            "split": pa.array([0, 0, 1, 2], pa.int8()),
            "watched": pa.array([30.0, 29.5, 0.0, 31.0], pa.float32()),
        }
    )
    label = Label(tasks={"watched": 30})
    prepared = prepare_tables(Tables(interactions=table, label=label))
    assert prepared.interactions.rows.tolist() == [0, 2, 1, 3]
    outcomes = prepared.interactions.tasks
    assert {name: won.tolist() for name, won in outcomes.items()} == {
        "watched": [True, False, False, True]
    }
    assert prepared.manifest["label"]["tasks"] == {"watched": 30}
    assert "watched" not in caplog.text  # nobody is told to declare it as a context column
    spec = FeatureSpec(features=(Feature(name="watched", side="context", kind="numeric"),))
    with pytest.raises(DataError, match="feature `watched`: no column `watched` on the context"):
        prepare_tables(
            Tables(interactions=table, label=label), features=GivenSpec(given=spec), version="2"
        )


def test_counts(files):
    prepared = files()
    assert prepared.manifest["counts"] == {
        "interactions": 20,
        "negatives": 10,
        "events": 10,
        "rejected": 0,
        "train": 16,
        "validation": 2,
        "test": 2,
        "catalogue": 4,
    }
    assert prepared.manifest["label"]["positive_from"] == 1.0
    assert prepared.training.last_timestamp == 15_000_000
    assert prepared.training == FittedOn.rows(np.arange(16), np.arange(16) * 1_000_000)


def test_rejected_rows_are_kept(files, tmp_path):
    with (tmp_path / "log.csv").open("a") as log:
        log.write(",3,21,1\n")
    prepared = files(source={"on_bad_rows": "quarantine"})
    assert prepared.manifest["counts"]["rejected"] == 1
    rejected = pq.read_table(prepared.folder / "rejected.parquet").to_pylist()
    assert [row["row"] for row in rejected] == [21]
    assert len(prepared.interactions.rows) == 20


def test_threads_parse_no_source(files, tmp_path, monkeypatch):
    """Two that do so at once fail now and then; NumPy's headers are parsed as source."""
    files()  # imports what is imported late, one thread at a time
    parse, parsed = ast.parse, []

    def seen(source, *arguments, **options):
        if threading.current_thread() is not threading.main_thread():
            parsed.append(source)
        return parse(source, *arguments, **options)

    monkeypatch.setattr(ast, "parse", seen)
    files(root=tmp_path / "again")
    assert parsed == []


def test_the_same_inputs_are_prepared_once(files, tmp_path, caplog):
    first = files()
    stamp = os.stat(first.folder / "manifest.json").st_mtime_ns
    log = tmp_path / "log.csv"
    log.write_bytes(log.read_bytes())  # written anew, but with the same content
    with caplog.at_level(logging.INFO):
        second = files()
    assert "up to date" in caplog.text
    assert second.folder == first.folder
    assert os.stat(second.folder / "manifest.json").st_mtime_ns == stamp


def test_whatever_matters_makes_another_folder(files, tmp_path):
    made = [files().folder]
    made.append(files(splitter=LeaveOneOut()).folder)
    made.append(files(splitter=TemporalSplit(test_share=0.2)).folder)
    made.append(files(catalogue="interacted").folder)
    made.append(files(encoders=PipelineFactory(provider=AutoSpec(min_count=2))).folder)
    ids = FeatureSpec(features=(Feature(name="item_id", side="item", kind="id"),))
    made.append(files(encoders=PipelineFactory(provider=GivenSpec(given=ids))).folder)
    wide = replace(ids, features=(replace(ids.features[0], dim=8),))
    made.append(files(encoders=PipelineFactory(provider=GivenSpec(given=wide))).folder)
    made.append(files(source={"items": None}).folder)
    made.append(files(source={"label": Label(column="rating", positive_from=0.5)}).folder)
    items = tmp_path / "items.csv"
    items.write_text(items.read_text().replace("2.5", "2.6"))
    made.append(files().folder)
    assert len(set(made)) == len(made)
    assert folders(tmp_path / "prepared") == sorted(folder.name for folder in made)


def test_any_changed_byte_is_noticed_and_mended(files, caplog):
    prepared = files()
    names = [p.relative_to(prepared.folder) for p in prepared.folder.rglob("*") if p.is_file()]
    before = {name: (prepared.folder / name).read_bytes() for name in names}
    assert {"manifest.json", "features/features.json", "items/price.npy"} <= set(map(str, names))
    for name in names:
        content = bytearray(before[name])
        content[len(content) // 2] ^= 1
        (prepared.folder / name).write_bytes(bytes(content))
        with pytest.raises(DataError, match=f"{name}: changed since it was written"):
            open_prepared(prepared.folder)
        caplog.clear()
        assert files().folder == prepared.folder
        assert f"{name}: changed since it was written" in caplog.text
        assert [r.levelname for r in caplog.records if "Preparing again" in r.message] == [
            "WARNING"
        ]
        assert (prepared.folder / name).read_bytes() == before[name]


def test_every_byte_of_the_manifest_counts(files):
    path = files().folder / "manifest.json"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), 200, replace=False):
        if content[place : place + 1].isspace():
            continue
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(0, 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(DataError, match=r"changed since it was written|this release reads"):
            open_prepared(path.parent)
    path.write_bytes(content)
    open_prepared(path.parent)


def test_a_missing_file_is_mended(files, caplog):
    folder = files().folder
    (folder / "events" / "offsets.npy").unlink()
    assert files().events.offsets.tolist()[0] == 0
    assert "offsets.npy: missing" in caplog.text


def test_a_folder_of_other_data_under_the_name_is_replaced(files, tmp_path, caplog):
    first, other = files().folder, files(splitter=LeaveOneOut()).folder
    for path in sorted(other.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    other.rmdir()
    first.rename(other)
    prepared = files(splitter=LeaveOneOut())
    assert "belongs to other data" in caplog.text
    assert np.bincount(prepared.interactions.split).tolist() != [16, 2, 2]


@pytest.mark.parametrize(
    "point", ["prepare.write_manifest", "build.align", "build.check_leaks", "build.write_arrow"]
)
def test_a_killed_build_leaves_nothing(files, tmp_path, monkeypatch, point):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"twotower.data.{point}", die)
        with pytest.raises(KeyboardInterrupt):
            files()
    assert folders(tmp_path / "prepared") == []
    assert files().num_catalogue == 4


def test_a_killed_rebuild_leaves_what_was_there(files, tmp_path, monkeypatch):
    folder = files().folder
    (folder / "events" / "split.npy").unlink()
    before = sorted(folder.rglob("*"))

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("twotower.data.prepare.write_manifest", die)
    with pytest.raises(KeyboardInterrupt):
        files()
    assert folders(tmp_path / "prepared") == [folder.name]
    assert sorted(folder.rglob("*")) == before


def test_what_a_killed_process_left_is_removed(files, tmp_path):
    left = tmp_path / "prepared" / ".preparing"
    (left / "interactions").mkdir(parents=True)
    prepared = files()
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [prepared.folder.name]
    assert prepared.folder.stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_one_process_builds_and_the_others_wait_for_it(files, tmp_path, caplog):
    caplog.set_level("INFO")
    with ThreadPoolExecutor(4) as pool:
        prepared = [started.result() for started in [pool.submit(files) for _ in range(4)]]
    assert len({one.folder for one in prepared}) == 1
    assert caplog.text.count("Prepared data written") == 1


def test_bad_tables_leave_nothing(files, tmp_path):
    (tmp_path / "items.csv").write_text("item_id\n0\n0\n")
    with pytest.raises(DataError, match="an id that an earlier row has"):
        files()
    assert not (tmp_path / "prepared").exists()


def test_a_bad_feature_leaves_nothing(files, tmp_path):
    spec = FeatureSpec(features=(Feature(name="colour", side="item", kind="categorical"),))
    with pytest.raises(DataError, match="no column `colour` on the item side"):
        files(encoders=PipelineFactory(provider=GivenSpec(given=spec)))
    assert folders(tmp_path / "prepared") == []


@dataclass(frozen=True)
class GreedyFactory:
    """Fits on all rows of the log."""

    tables: Tables

    def fingerprint(self):
        return "greedy"

    def fit(self, part):
        count = self.tables.interactions.num_rows
        seen = FittedOn.rows(
            np.arange(count), self.tables.interactions.column("timestamp").to_numpy()
        )
        spec = FeatureSpec(features=(Feature(name="item_id", side="item", kind="id"),))
        everything = replace(part, interactions=self.tables.interactions, fitted_on=seen)
        return FeaturePipeline.fit(spec, everything)


def test_an_encoder_that_saw_all_rows_is_found_out(files, tmp_path):
    tables = TableSource(
        interactions=str(tmp_path / "log.csv"), label=Label(column="rating")
    ).read()
    with pytest.raises(
        LeakError, match=r"leak: the feature pipeline was fitted on 20 rows.* 16 .*af"
    ):
        files(encoders=GreedyFactory(tables))
    assert folders(tmp_path / "prepared") == []


# What is fitted must not move when anything after the cut does.

CUT, TEST_CUT = 70, 85
SPEC = FeatureSpec(
    features=(
        Feature(name="user_id", side="user", kind="id"),
        Feature(name="age", side="user", kind="numeric"),
        Feature(name="country", side="user", kind="categorical"),
        Feature(name="item_id", side="item", kind="id", min_count=2),
        Feature(name="price", side="item", kind="numeric", log=True),
        Feature(name="genres", side="item", kind="tags"),
        Feature(name="image", side="item", kind="vector"),
        Feature(name="load", side="context", kind="numeric"),
        Feature(name="device", side="context", kind="categorical"),
        Feature(name="timestamp", side="context", kind="time"),
    ),
    history=History(length=3),
)


def canary_log():
    """Columns of a log in random order; users and items of the last fifth occur there alone."""
    rng = np.random.default_rng(5)
    times = rng.permutation(100)
    late = times >= CUT
    users = np.where(late & (rng.random(100) < 0.5), 20 + times % 7, rng.integers(0, 20, 100))
    items = np.where(late & (rng.random(100) < 0.5), 30 + times % 9, rng.integers(0, 30, 100))
    return {
        "user_id": users,
        "item_id": items,
        "timestamp": times,
        "label": rng.integers(0, 2, 100).astype(np.float32),
        "load": rng.normal(size=100),
        "device": rng.choice(["phone", "desktop"], 100),
    }


def canary_sides(log):
    rng = np.random.default_rng(6)
    users = {
        "user_id": rng.permutation(40),
        "age": rng.normal(40, 10, 40),
        "country": rng.choice(["DE", "FR", "KE"], 40),
    }
    items = {
        "item_id": rng.permutation(60),
        "price": rng.lognormal(size=60),
        "genres": [["a", "b", "c"][: 1 + k % 3] for k in range(60)],
        "image": list(rng.normal(size=(60, 4))),
    }
    return users, items


def change_labels(log, users, items, late):
    log["label"][late] = 1 - log["label"][late]


def change_items(log, users, items, late):
    log["item_id"][late] = 50 + np.arange(late.sum()) % 10


def change_users(log, users, items, late):
    log["user_id"][late] = 1000 + np.arange(late.sum())


def change_times(log, users, items, late):
    log["timestamp"][late & (log["timestamp"] >= TEST_CUT)] += 10_000


def change_context(log, users, items, late):
    log["load"][late] = 1e6
    log["device"][late] = "watch"


def change_attributes(log, users, items, late):
    for side, table, attributes in (
        ("user_id", users, {"age": 1e6, "country": "XX"}),
        ("item_id", items, {"price": 1e6}),
    ):
        unseen = ~np.isin(table[side], log[side][~late])
        assert unseen.any()
        for name, value in attributes.items():
            table[name] = np.where(unseen, value, table[name])


def change_genres(log, users, items, late):
    seen = set(log["item_id"][~late].tolist())
    for place, item in enumerate(items["item_id"].tolist()):
        if item not in seen:
            items["genres"][place] = ["new", "tags", "and", "many", "of", "them"]


def drop_rows(log, users, items, late):
    keep = ~late | (log["timestamp"] % 3 == 0)
    for name in list(log):
        log[name] = log[name][keep]


@pytest.mark.parametrize("features", [GivenSpec(given=SPEC), AutoSpec()], ids=["given", "auto"])
@pytest.mark.parametrize("with_sides", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        change_labels,
        change_items,
        change_users,
        change_times,
        change_context,
        change_attributes,
        change_genres,
        drop_rows,
    ],
)
def test_nothing_fitted_moves_with_what_comes_after_the_cut(
    prepare_tables, tmp_path, change, with_sides, features
):
    if not with_sides and isinstance(features, GivenSpec):
        kept = tuple(f for f in SPEC.features if f.side == "context" or f.kind == "id")
        features = GivenSpec(given=replace(SPEC, features=kept))

    def fitted(change, version):
        log = canary_log()
        users, items = canary_sides(log)
        late = log["timestamp"] >= CUT
        if change is not None:
            change(log, users, items, late)
        tables = Tables(
            interactions=pa.table(log),
            users=pa.table(users) if with_sides else None,
            items=pa.table(items) if with_sides else None,
            label=Label(),
            context=("load", "device"),
        )
        splitter = TemporalSplit(
            validation_from="1970-01-01T00:00:00.000070", test_from="1970-01-01T00:00:00.000085"
        )
        prepared = prepare_tables(tables, splitter=splitter, features=features, version=version)
        train = np.flatnonzero(prepared.interactions.split == TRAIN)
        frequency = ItemFrequency.count(prepared, train)
        ids = prepared.items.ids.to_pylist()
        probability = frequency.probability().tolist()
        seen = {i: p for i, p in zip(ids, probability, strict=False) if p}
        digest = FeaturePipeline.load(prepared.folder / "features").digest()
        return digest, seen, frequency.fitted_on.digest, prepared.training.digest

    before, after = fitted(None, "before"), fitted(change, "after")
    if change is drop_rows:  # rows after the dropped ones have other numbers in the table
        before, after = before[:2], after[:2]
    assert after == before


def test_the_canary_sings_when_a_training_row_changes(prepare_tables):
    """The comparison above can fail: one label, one number, one attribute before the cut."""
    digests = set()
    for version in ("nothing", "load", "age", "item"):
        log = canary_log()
        users, items = canary_sides(log)
        row = int(np.flatnonzero(log["timestamp"] == 3)[0])
        if version == "load":
            log["load"][row] += 0.5
        if version == "age":
            users["age"][users["user_id"] == log["user_id"][row]] += 0.5
        if version == "item":
            log["item_id"][row] = 59
        tables = Tables(
            interactions=pa.table(log),
            users=pa.table(users),
            items=pa.table(items),
            label=Label(),
            context=("load", "device"),
        )
        prepared = prepare_tables(
            tables,
            splitter=TemporalSplit(validation_share=0.15, test_share=0.15),
            features=GivenSpec(given=SPEC),
            version=version,
        )
        digests.add(FeaturePipeline.load(prepared.folder / "features").digest())
    assert len(digests) == 4


def test_parts_are_those_of_the_splitter(prepare_tables):
    prepared = prepare_tables(Tables(interactions=pa.table(LOG)), splitter=GivenSplit())
    split = dict(
        zip(prepared.interactions.rows.tolist(), prepared.interactions.split.tolist(), strict=True)
    )
    assert split == {0: TRAIN, 1: TRAIN, 2: VALIDATION, 3: TEST, 4: TEST}
