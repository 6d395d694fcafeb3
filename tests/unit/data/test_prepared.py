"""Opening a prepared folder, and what it answers."""

import json
import logging

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.prepared import (
    Events,
    checksum,
    history_before,
    open_prepared,
    read_arrow,
    read_manifest,
    write_arrow,
    write_manifest,
)
from twotower.data.schema import TEST, TRAIN, VALIDATION, DataError, Label, Tables


def tables_of(seed, *, count=120, label=False):
    rng = np.random.default_rng(seed)
    columns = {
        "user_id": rng.integers(0, 9, count),
        "item_id": rng.integers(0, 14, count),
        "timestamp": rng.integers(0, 30, count),
        "split": pa.array(rng.integers(0, 3, count), pa.int8()),
    }
    if label:
        columns["label"] = pa.array(rng.integers(0, 2, count), pa.float32())
    return Tables(interactions=pa.table(columns), label=Label() if label else None)


def test_an_opened_folder_is_what_was_written(prepare_tables):
    written = prepare_tables(tables_of(0, label=True))
    opened = open_prepared(written.folder)
    assert opened.manifest == written.manifest
    for name in ("rows", "split", "labels", "history_end", "user_rows", "timestamps"):
        values = getattr(opened.interactions, name)
        assert values.tolist() == getattr(written.interactions, name).tolist()
    assert opened.items.table == written.items.table
    assert len(opened.users) == 9
    assert opened.has_impressions
    assert opened.num_catalogue == written.num_catalogue > 0


def test_large_columns_are_mapped(prepare_tables):
    prepared = prepare_tables(tables_of(1, count=3000))
    assert isinstance(prepared.interactions.timestamps, np.memmap)
    assert isinstance(prepared.events.item_rows, np.memmap)
    assert not isinstance(prepared.events.offsets, np.memmap)  # smaller than a page
    assert not prepared.interactions.timestamps.flags.writeable


def test_ends_of_parts_against_a_count():
    offsets = np.array([0, 4, 4, 7])
    split = np.array([0, 0, 1, 2, 1, 1, 2], np.int8)
    events = Events(offsets=offsets, item_rows=split, interactions=split, split=split)
    assert events.part_end(TRAIN).tolist() == [2, 4, 4]
    assert events.part_end(VALIDATION).tolist() == [3, 4, 6]
    assert events.part_end(TEST).tolist() == [4, 4, 7]


def test_histories_of_an_evaluation_end_before_the_part(prepare_tables):
    prepared = prepare_tables(tables_of(2))
    events = prepared.events
    for part in (VALIDATION, TEST):
        ends = history_before(prepared, part)
        for user in range(len(prepared.users)):
            mine = events.split[events.offsets[user] : events.offsets[user + 1]].tolist()
            before = sum(code < part for code in mine)
            assert ends[user] == events.offsets[user] + before


def test_training_events(prepare_tables):
    prepared = prepare_tables(tables_of(3, label=True))
    log, events = prepared.interactions, prepared.events
    rows = events.interactions[prepared.train_events()]
    expected = np.flatnonzero((log.split == TRAIN) & log.positive)
    assert rows.tolist() == expected.tolist()
    assert prepared.training.num_rows == (log.split == TRAIN).sum()


def test_there_is_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"no prepared data set here \(no manifest.json\)"):
        open_prepared(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"version": 0}), "version 0, this release reads 2; delete the folder"),
        (json.dumps({}), "version None, this release reads 2"),
        (json.dumps({"version": 2}), "manifest.json: changed since it was written"),
        ("{", "manifest.json: changed since it was written"),
        ("[1]", "manifest.json: changed since it was written"),
        ("null", "manifest.json: changed since it was written"),
    ],
)
def test_bad_manifests_are_refused(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


def test_a_manifest_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="changed since it was written"):
        read_manifest(tmp_path)


def test_a_manifest_comes_back(tmp_path):
    document = {"counts": {"events": None, "train": 3}, "label": {"minimum": 0.1}}
    write_manifest(tmp_path, document)
    assert read_manifest(tmp_path) == {"version": 2} | document


def test_all_damaged_files_are_named(prepare_tables):
    folder = prepare_tables(tables_of(4)).folder
    (folder / "events" / "offsets.npy").unlink()
    (folder / "users" / "table.arrow").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_prepared(folder)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        str(folder / "events" / "offsets.npy"),
        str(folder / "users" / "table.arrow"),
    ]


def test_checksums_tell_bytes_apart(tmp_path):
    for name, content in (
        ("a", b"x" * 3_000_000),
        ("b", b"x" * 3_000_000),
        ("c", b"x" * 2_999_999),
    ):
        (tmp_path / name).write_bytes(content)
    a, b, c = (checksum(tmp_path / name) for name in "abc")
    assert a == b != c


def test_arrow_files_outlive_their_opening(tmp_path):
    table = pa.table({"id": ["a", None], "tags": [["x"], []]})
    write_arrow(tmp_path / "t.arrow", table)
    read = read_arrow(tmp_path / "t.arrow")
    (tmp_path / "t.arrow").unlink()
    assert read == table


def test_a_log_with_users_alone_has_no_events(prepare_tables, caplog):
    columns = {"user_id": [1, 2, 3], "label": pa.array([1, 0, 1], pa.float32())}
    columns["split"] = pa.array([0, 1, 2], pa.int8())
    with caplog.at_level(logging.WARNING):
        prepared = prepare_tables(Tables(interactions=pa.table(columns), label=Label()))
    assert prepared.events is None
    assert prepared.interactions.history_end.tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="retrieval needs `user_id` and `item_id`"):
        prepared.train_events()
