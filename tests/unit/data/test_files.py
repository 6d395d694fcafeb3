"""Files to a raw table."""

import gzip
import logging

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from twotower.data.files import read_raw
from twotower.data.schema import DataError

ROWS = {"user_id": ["1", "2", None], "note": ["a,b", 'say "x"\nthen', "ü"]}
CSV = 'user_id,note\n1,"a,b"\n2,"say ""x""\nthen"\n,ü\n'


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def write_csv(path):
    write(path, CSV)


def write_csv_with_mark(path):
    path.write_bytes(b"\xef\xbb\xbf" + CSV.encode())


def write_gzip(path):
    path.write_bytes(gzip.compress(CSV.encode()))


def write_parquet(path):
    pq.write_table(pa.table(ROWS), path)


def write_feather(path):
    feather.write_feather(pa.table(ROWS), str(path))


def write_stream(path):
    with ipc.new_stream(str(path), pa.table(ROWS).schema) as stream:
        stream.write_table(pa.table(ROWS))


@pytest.mark.parametrize(
    ("name", "writer", "untyped"),
    [
        ("t.csv", write_csv, True),
        ("T.CSV", write_csv_with_mark, True),
        ("t.csv.gz", write_gzip, True),
        ("t.parquet", write_parquet, False),
        ("t.feather", write_feather, False),
        ("t.arrow", write_feather, False),
        ("t.ipc", write_stream, False),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, writer, untyped):
    writer(tmp_path / name)
    raw = read_raw(str(tmp_path / name))
    assert raw.data.to_pydict() == ROWS
    assert raw.text == (frozenset(ROWS) if untyped else frozenset())
    assert raw.parts == ((name, 3),)


def test_dictionary_encoding_is_undone(tmp_path):
    encoded = pa.table({"user_id": pa.array(["a", "b", "a"]).dictionary_encode()})
    pq.write_table(encoded, tmp_path / "t.parquet")
    assert read_raw(str(tmp_path / "t.parquet")).data.schema.field("user_id").type == pa.string()


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write(tmp_path / "b.csv", "user_id\n3\n")
    write(tmp_path / "a.csv", "user_id\n1\n2\n")
    write(tmp_path / "_SUCCESS", "")
    write(tmp_path / ".a.csv.crc", "x")
    write(tmp_path / ".hidden" / "c.csv", "user_id\n9\n")
    write(tmp_path / "README.txt", "about")
    raw = read_raw(str(tmp_path))
    assert raw.data.to_pydict() == {"user_id": ["1", "2", "3"]}
    assert raw.parts == (("a.csv", 2), ("b.csv", 1))


def test_a_pattern_takes_files_and_folders(tmp_path):
    write(tmp_path / "day=2" / "a.csv", "user_id\n2\n")
    write(tmp_path / "day=1" / "a.csv", "user_id\n1\n")
    write(tmp_path / "other" / "a.csv", "user_id\n9\n")
    expected = {"user_id": ["1", "2"], "day": ["1", "2"]}
    assert read_raw(str(tmp_path / "day=*")).data.to_pydict() == expected
    assert read_raw(str(tmp_path / "day=*" / "*.csv")).data.to_pydict() == expected


def test_partitions_become_untyped_columns(tmp_path):
    for part, user in (
        ("split=test", 2),
        ("split=a%2Fb", 1),
        ("split=__HIVE_DEFAULT_PARTITION__", 3),
    ):
        (tmp_path / part).mkdir()
        pq.write_table(pa.table({"user_id": [user]}), tmp_path / part / "0.parquet")
    raw = read_raw(str(tmp_path))
    assert raw.data.to_pydict() == {"user_id": [3, 1, 2], "split": [None, "a/b", "test"]}
    assert raw.text == {"split"}


def test_a_column_of_the_file_comes_before_the_folder(tmp_path):
    (tmp_path / "user_id=7").mkdir()
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "user_id=7" / "0.parquet")
    assert read_raw(str(tmp_path)).data.to_pydict() == {"user_id": [1]}


def test_parts_may_differ_in_width_of_integers_and_in_columns(tmp_path, caplog):
    pq.write_table(pa.table({"user_id": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"user_id": [2**60 + 1], "age": [3]}), tmp_path / "b.parquet")
    with caplog.at_level(logging.WARNING):
        raw = read_raw(str(tmp_path))
    assert raw.data.to_pydict() == {"user_id": [1, 2**60 + 1], "age": [None, 3]}
    assert "a.parquet has no age" in caplog.text


def problem(location, match):
    with pytest.raises(DataError, match=match) as caught:
        read_raw(str(location))
    return caught.value


def test_parts_that_disagree_about_a_type_are_refused(tmp_path):
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"user_id": ["x"]}), tmp_path / "b.parquet")
    problem(tmp_path, "disagree about a column: .*user_id")


def test_a_missing_file_is_reported_with_names_like_it(tmp_path):
    write(tmp_path / "ratings.csv", CSV)
    problem(
        tmp_path / "rating.csv", r"rating\.csv: no such file or folder; did you mean ratings\.csv"
    )
    problem(tmp_path / "x", "no such file or folder; .* has ratings.csv")
    problem(tmp_path / "nowhere" / "x.csv", "there is no folder .*nowhere")
    problem(tmp_path / "*.parquet", "no such file or folder")


def test_unknown_formats_are_refused(tmp_path):
    write(tmp_path / "t.json", "{}")
    problem(tmp_path / "t.json", r"t\.json: not a supported format; allowed: \.parquet, \.csv")
    problem(tmp_path, "a folder without a table; allowed: ")


def test_several_formats_in_one_table_are_refused(tmp_path):
    write_csv(tmp_path / "a.csv")
    write_parquet(tmp_path / "b.parquet")
    problem(tmp_path, "files of several formats; allowed: one format a table")


@pytest.mark.parametrize(
    ("name", "kind"), [("t.parquet", "parquet"), ("t.feather", "arrow"), ("t.csv.gz", "csv")]
)
@pytest.mark.parametrize("content", [b"", b"not what it seems"])
def test_damaged_files_are_named(tmp_path, name, kind, content):
    (tmp_path / name).write_bytes(content)
    expected = f"{name}: (cannot be read as {kind}|the file is empty)"
    problem(tmp_path / name, expected)


def test_all_damaged_files_of_a_folder_are_named(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        write(tmp_path / name, "x")
    assert len(problem(tmp_path, "a.parquet").problems) == 2


def test_csv_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"user_id\n" + b"1\n" * 9000 + b"\xff\n")
    problem(tmp_path / "t.csv", "t.csv: cannot be read as csv: .*UTF8")


def test_an_empty_csv_is_refused(tmp_path):
    problem(write(tmp_path / "t.csv", ""), "the file is empty; a header and at least one row")


def test_rows_with_more_or_fewer_cells_are_numbered(tmp_path):
    text = 'a,b\n1,2\n3\n"x\ny",4\n\n5,6,7\n8,9\n'
    problem(
        write(tmp_path / "t.csv", text),
        r"t\.csv: 2 rows with more or fewer cells than the header, at data row 2, 4 "
        r"\(from 1, header not counted\); allowed: 2 cells a row",
    )


def test_one_ragged_row_among_many_is_found(tmp_path):
    rows = ["1,2"] * 300_000
    rows[250_000] = "1"
    problem(write(tmp_path / "t.csv", "a,b\n" + "\n".join(rows)), "1 row with .* data row 250001 ")


def test_a_column_without_a_name_is_left_out(tmp_path, caplog):
    """The first column of a table that was written with its row numbers."""
    path = tmp_path / "t.csv"
    path.write_text(",user_id,item_id\n0,7,8\n1,9,10\n")
    assert read_raw(str(path)).data.to_pydict() == {"user_id": ["7", "9"], "item_id": ["8", "10"]}
    assert f"{path}: column 1 has no name and is left out" in caplog.text


def test_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("user_id,item_id,item_id\n0,7,8\n")
    with pytest.raises(DataError, match=r"t\.csv has several columns called item_id; allowed: a"):
        read_raw(str(path))


def test_an_arrow_file_whose_offsets_lead_elsewhere_is_refused(tmp_path):
    """Nothing is read from where they lead."""
    path = tmp_path / "t.arrow"
    table = pa.table({"a": pa.array(["a", "b"])})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    right, wrong = (np.array(ends, np.int32).tobytes() for ends in ([0, 1, 2], [0, 1, 1 << 30]))
    assert right in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(right, wrong))
    with pytest.raises(DataError, match=r"t\.arrow: cannot be read as arrow"):
        read_raw(str(path))
