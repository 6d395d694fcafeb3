"""Long tables in pieces: nothing is lost, doubled or moved, whatever the files look like."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from twotower.data.files import read_raw
from twotower.data.pieces import list_pieces
from twotower.data.schema import DataError
from twotower.data.workers import Budget, Scratch, Threads

COUNT = 1000
TABLE = pa.table(
    {
        "user_id": [f"u{n % 37}" for n in range(COUNT)],
        "note": [None if n % 9 == 0 else f'say "{n}",\nthen' for n in range(COUNT)],
        "number": [str(n) for n in range(COUNT)],
    }
)


def scratch(folder, rows):
    folder.mkdir(exist_ok=True)
    budget = Budget(rows_per_block=rows, rows_per_bucket=9)
    return Scratch(folder=folder, workers=Threads(), budget=budget)


def as_csv(table):
    cells = [
        ['"' + str(v).replace('"', '""') + '"' if v is not None else "" for v in column.to_pylist()]
        for column in table.columns
    ]
    lines = [",".join(row) for row in zip(*cells, strict=True)]
    return "\n".join([",".join(table.column_names), *lines]) + "\n"


def write_parquet(path):
    pq.write_table(TABLE, path, row_group_size=90)


def write_one_group(path):
    pq.write_table(TABLE, path)


def write_feather(path):
    feather.write_feather(TABLE, str(path), chunksize=70)


def write_stream(path):
    with ipc.new_stream(str(path), TABLE.schema) as stream:
        stream.write_table(TABLE, max_chunksize=400)


def write_csv(path):
    path.write_text(as_csv(TABLE), encoding="utf-8")


def write_gzip(path):
    path.write_bytes(gzip.compress(as_csv(TABLE).encode()))


@pytest.mark.parametrize("rows", [17, 64, 250, 10_000])
@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("t.parquet", write_parquet),
        ("t.parquet", write_one_group),
        ("t.feather", write_feather),
        ("t.arrow", write_stream),
        ("t.csv", write_csv),
        ("t.csv.gz", write_gzip),
    ],
)
def test_pieces_together_are_the_table(tmp_path, name, writer, rows):
    writer(tmp_path / name)
    raw = list_pieces(str(tmp_path / name), scratch(tmp_path / "scratch", rows))
    read = [piece.read() for piece in raw.pieces]
    whole = read_raw(str(tmp_path / name))
    assert pa.concat_tables([piece.data for piece in read]).to_pydict() == TABLE.to_pydict()
    assert (raw.text, raw.parts) == (whole.text, whole.parts)
    assert max(piece.data.num_rows for piece in read) <= rows
    starts = np.cumsum([0, *(piece.data.num_rows for piece in read)])[:-1]
    assert [piece.first for piece in read] == starts.tolist()
    assert {piece.parts[0][0] for piece in read} == {name}


def test_small_files_are_read_together(tmp_path):
    (tmp_path / "log" / "day=1").mkdir(parents=True)
    (tmp_path / "log" / "day=2").mkdir()
    sizes = {"day=1/a": 30, "day=1/b": 0, "day=1/c": 30, "day=2/a": 50, "day=2/b": 7}
    first = 0
    for name, size in sizes.items():
        table = pa.table({"n": range(first, first + size)})
        pq.write_table(table, tmp_path / "log" / f"{name}.parquet", row_group_size=20)
        first += size
    raw = list_pieces(str(tmp_path / "log"), scratch(tmp_path / "scratch", 64))
    read = [piece.read() for piece in raw.pieces]
    assert pa.concat_tables([piece.data for piece in read]).to_pydict() == {
        "n": list(range(117)),
        "day": ["1"] * 60 + ["2"] * 57,
    }
    assert [piece.parts for piece in read] == [
        (("day=1/a.parquet", 30), ("day=1/c.parquet", 30)),
        (("day=2/a.parquet", 50), ("day=2/b.parquet", 7)),
    ]
    assert raw.parts == tuple((f"{name}.parquet", size) for name, size in sizes.items())


def test_files_may_differ_in_columns_and_in_width_of_integers(tmp_path):
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({"a": pa.array([1, 2], pa.int32())}), tmp_path / "log" / "0.parquet")
    pq.write_table(pa.table({"a": [2**60], "b": ["x"]}), tmp_path / "log" / "1.parquet")
    raw = list_pieces(str(tmp_path / "log"), scratch(tmp_path / "scratch", 2))
    tables = [piece.read().data for piece in raw.pieces]
    assert [table.schema for table in tables] == [raw.data.schema] * 2
    assert pa.concat_tables(tables).to_pydict() == {"a": [1, 2, 2**60], "b": [None, None, "x"]}


def test_an_empty_table_has_one_piece_without_rows(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n")
    raw = list_pieces(str(tmp_path / "t.csv"), scratch(tmp_path / "scratch", 2))
    assert [piece.read().data.num_rows for piece in raw.pieces] == [0]
    assert raw.data.column_names == ["a", "b"]


def test_damage_inside_a_file_is_found_when_it_is_read(tmp_path):
    write_parquet(tmp_path / "t.parquet")
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    content[4:600] = b"\xff" * 596
    (tmp_path / "t.parquet").write_bytes(bytes(content))
    raw = list_pieces(str(tmp_path / "t.parquet"), scratch(tmp_path / "scratch", 90))
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as parquet: "):
        raw.pieces[0].read()
    assert raw.pieces[-1].read().data.num_rows == 10
