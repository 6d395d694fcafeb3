import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.schema import TRAIN, VALIDATION, DataError
from twotower.monitoring import profile as module
from twotower.monitoring.accumulate import groups_of
from twotower.monitoring.profile import Profile
from twotower.monitoring.reference import window_form
from twotower.monitoring.sketches import RANK_ERROR
from twotower.monitoring.window_profile import Described, Known, WindowProfiler


def exact(profile):
    """Everything of a profile that must be the same to the last row."""
    columns = {
        name: (c.counts.tolist(), c.rows.tolist(), c.null.tolist(), c.unseen.tolist())
        for name, c in profile.columns.items()
    }
    return columns, profile.rows.tolist(), profile.exposures.tolist()


def by_id(table, key, column):
    return dict(zip(table[key].to_pylist(), table[column].to_pylist(), strict=True))


def test_a_profile_counts_what_a_loop_counts(small):
    rows = small.log.slice(1000, 2000)
    profile = small.profiler.profile_rows(rows)
    assert profile.num_rows == 2000
    devices = Counter(rows["device"].to_pylist())
    vocabulary = small.pipeline.transforms["device"].vocabulary.values.to_pylist()
    column = profile.columns["context.device"]
    assert column.counts.sum(axis=0).tolist() == [devices[value] for value in vocabulary]
    assert column.null.sum() == devices[None]
    countries = by_id(small.tables.users, "user_id", "country")
    by_country = Counter(countries[user] for user in rows["user_id"].to_pylist())
    vocabulary = small.pipeline.transforms["country"].vocabulary.values.to_pylist()
    found = profile.columns["user.country"].counts.sum(axis=0)
    assert found.tolist() == [by_country[value] for value in vocabulary]
    tags = by_id(small.tables.items, "item_id", "tags")
    by_tag = Counter(tag for item in rows["item_id"].to_pylist() for tag in tags[item])
    vocabulary = small.pipeline.transforms["tags"].vocabulary.values.to_pylist()
    found = profile.columns["item.tags"].counts.sum(axis=0)
    assert found.tolist() == [by_tag[value] for value in vocabulary]
    shown = Counter(rows["item_id"].to_pylist())
    ids = small.prepared.items.ids.to_pylist()[: small.prepared.num_catalogue]
    assert profile.exposures.tolist() == [shown[item] for item in ids]
    labels = profile.columns["label"].counts.sum(axis=0)
    clicks = sum(rows["label"].to_pylist())
    assert labels.tolist() == [2000 - clicks, clicks]
    speeds = [v for v in rows["speed"].to_pylist() if v is not None]
    transform = small.pipeline.transforms["speed"]
    edges = small.reference.training.bins["context.speed"].edges
    standard = (np.array(speeds) - transform.mean) / transform.scale
    expected = np.bincount(np.searchsorted(edges, standard.astype(np.float32), side="right"))
    assert profile.columns["context.speed"].counts.sum(axis=0).tolist() == expected.tolist()


def test_events_of_a_user_are_in_one_group(small):
    rows = small.log.slice(0, 500)
    user = rows["user_id"][0].as_py()
    own = rows.filter(pa.array([u == user for u in rows["user_id"].to_pylist()]))
    profile = small.profiler.profile_rows(own)
    (group,) = np.flatnonzero(profile.rows)
    assert group == groups_of(pa.chunked_array([pa.array([user])]))[0]
    for column in profile.columns.values():
        assert column.counts.sum() == column.counts[group].sum()


def test_training_and_windows_are_profiled_alike(small):
    """The encoded columns of the prepared data set and the raw rows of a log, one code each."""
    for part, expected in (
        (TRAIN, small.reference.training),
        (VALIDATION, small.reference.validation),
    ):
        found = small.profiler.profile_rows(small.log.filter(pa.array(small.part == part)))
        assert found.num_rows == expected.num_rows > 500
        assert np.array_equal(found.exposures, expected.exposures)
        for name, column in found.columns.items():
            other = expected.columns[name]
            assert np.array_equal(column.counts, other.counts), name
            assert np.array_equal(column.null + column.unseen, other.null + other.unseen), name
            if found.bins[name].told_apart:
                assert np.array_equal(column.unseen, other.unseen), name
            assert column.quantiles.count == other.quantiles.count, name


@pytest.mark.parametrize("cuts", [(700,), (1, 2, 999), (100, 200, 300, 400, 1500)])
def test_profiles_of_parts_add_up_to_that_of_the_whole(small, cuts):
    rows = small.log.slice(0, 3000)
    whole = small.profiler.profile_rows(rows)
    bounds = [0, *cuts, 3000]
    parts = [small.profiler.profile_rows(rows.slice(a, b - a)) for a, b in pairwise(bounds)]
    merged = small.profiler.profile_rows(rows.slice(0, 0))
    for part in reversed(parts):
        merged = merged.merge(part)
    assert exact(merged) == exact(whole)
    numbers = np.sort(np.array([v for v in rows["speed"].to_pylist() if v is not None]))
    transform = small.pipeline.transforms["speed"]
    for rank in (0.05, 0.5, 0.95):
        (found,) = merged.columns["context.speed"].quantiles.at([rank])
        value = found * transform.scale + transform.mean
        assert np.searchsorted(numbers, value) / len(numbers) == pytest.approx(
            rank, abs=1.5 * RANK_ERROR
        )


def test_a_file_is_profiled_piece_by_piece(small, tmp_path):
    rows = small.log.slice(0, 3000).rename_columns(
        ["click" if n == "label" else n for n in small.log.column_names]
    )
    seconds = pa.array(rows["timestamp"].to_numpy() // 1_000_000)
    rows = rows.set_column(rows.column_names.index("timestamp"), "timestamp", seconds)
    pq.write_table(rows.slice(0, 1234), tmp_path / "a.parquet")
    pq.write_table(rows.slice(1234), tmp_path / "b.parquet")
    found = small.profiler.profile(str(tmp_path), rows_per_block=100)
    assert exact(found) == exact(small.profiler.profile_rows(small.log.slice(0, 3000)))
    assert found.span == (seconds[0].as_py(), seconds[2999].as_py() + 1)


def test_new_ids_and_values_are_unseen(small):
    rows = small.log.slice(0, 1000)
    ids = [f"n{i}" if n % 10 == 0 else i for n, i in enumerate(rows["item_id"].to_pylist())]
    place = rows.column_names.index("item_id")
    profile = small.profiler.profile_rows(rows.set_column(place, "item_id", pa.array(ids)))
    before = small.profiler.profile_rows(rows)
    column = profile.columns["item.item_id"]
    usual = before.columns["item.item_id"].unseen.sum()
    assert 90 <= column.unseen.sum() - usual * 0.9 <= 110
    assert column.rows.sum() == 1000
    assert profile.exposures.sum() == 900
    # Of an item that nobody knows, nothing else is known either: it has no price to be missing.
    assert profile.columns["item.price"].rows.sum() == 900
    assert profile.columns["item.price"].null.sum() == 0
    assert set(column.top_unseen.top(200)) >= {i for i in ids if i.startswith("n")}
    devices = ["fridge"] * 100 + rows["device"].to_pylist()[100:]
    place = rows.column_names.index("device")
    profile = small.profiler.profile_rows(rows.set_column(place, "device", pa.array(devices)))
    column = profile.columns["context.device"]
    assert column.unseen.sum() == 100
    assert column.null.sum() == sum(d is None for d in devices)
    assert column.top_unseen.top(1) == {"fridge": 100}


def test_newer_items_have_features_and_exposures_stay_those_of_the_catalogue(small, tmp_path):
    items = small.tables.items
    renamed = pa.array([f"n{i}" for i in items["item_id"].to_pylist()])
    both = pa.concat_tables([items, items.set_column(0, "item_id", renamed)])
    pq.write_table(both, tmp_path / "items.parquet")
    known = Known(pipeline=small.pipeline, users=small.prepared.users, items=small.prepared.items)
    described = Described(items=str(tmp_path / "items.parquet"))
    form = window_form(small.reference)
    profiler = WindowProfiler(known, small.reference, form, described=described)
    rows = small.log.slice(0, 500)
    place = rows.column_names.index("item_id")
    new = pa.array([f"n{i}" for i in rows["item_id"].to_pylist()])
    found = profiler.profile_rows(pa.concat_tables([rows, rows.set_column(place, "item_id", new)]))
    old = small.profiler.profile_rows(rows)
    assert np.array_equal(
        found.columns["item.category"].counts, 2 * old.columns["item.category"].counts
    )
    assert found.columns["item.item_id"].unseen.sum() >= 500
    assert np.array_equal(found.exposures, old.exposures)


def test_a_profile_is_read_as_it_was_written(small, tmp_path):
    profile = replace(
        small.profiler.profile_rows(small.log.slice(0, 800)), span=(5, 9), facts={"rejected": 2}
    )
    profile.save(tmp_path / "p.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.npz"]
    found = Profile.load(tmp_path / "p.npz")
    assert exact(found) == exact(profile)
    assert (found.span, found.facts, found.digest()) == ((5, 9), {"rejected": 2}, profile.digest())
    quantiles = found.columns["context.speed"].quantiles
    assert quantiles.at([0.1, 0.9]) == profile.columns["context.speed"].quantiles.at([0.1, 0.9])
    again = found.merge(profile)
    assert again.num_rows == 1600
    assert again.span == (5, 9)


def test_what_is_no_profile_is_refused(small, tmp_path, monkeypatch):
    path = tmp_path / "p.npz"
    with pytest.raises(DataError, match="no profile, or damaged"):
        Profile.load(path)
    small.reference.training.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="no profile, or damaged"):
        Profile.load(path)
    path.write_bytes(content)
    monkeypatch.setattr(module, "PROFILE_VERSION", 2)
    with pytest.raises(DataError, match="a profile of version 1, this release reads 2"):
        Profile.load(path)
    monkeypatch.undo()
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    document = json.loads(arrays["document"].tobytes())
    document["bins"][3]["edges"] = [1.0]
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="damaged: its bins have the digest"):
        Profile.load(path)


def test_profiles_with_other_bins_do_not_mix(small):
    profile = small.profiler.profile_rows(small.log.slice(0, 10))
    bins = dict(profile.bins)
    bins["item.price"] = replace(bins["item.price"], edges=(0.0,))
    with pytest.raises(ValueError, match="profiles with other bins"):
        profile.merge(Profile.empty(bins, len(profile.exposures)))
