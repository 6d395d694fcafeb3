"""The user's own tables as a source."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from twotower.data.schema import DataError, Label
from twotower.data.tables import TableSource, declared_label

DATA = Path(os.environ.get("TWOTOWER_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
BIG = 2**53 + 1
IDS = [BIG, BIG + 1, 2**63 - 1]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    rows = "".join(f"{user},{user},{time}\n" for time, user in enumerate(IDS))
    path.write_text("visitorid,itemid,ts\n" + rows)
    return path


COLUMNS = {"user_id": "visitorid", "item_id": "itemid", "timestamp": "ts"}


def test_ids_above_2_to_the_53_survive_in_every_format(log, tmp_path):
    table = pa.table({"visitorid": IDS, "itemid": IDS, "ts": [0, 1, 2]})
    pq.write_table(table, tmp_path / "log.parquet")
    feather.write_feather(table, str(tmp_path / "log.feather"))
    for name in ("log.csv", "log.parquet", "log.feather"):
        tables = TableSource(interactions=str(tmp_path / name), columns=COLUMNS).read()
        assert tables.interactions.to_pydict() == {
            "user_id": IDS,
            "item_id": IDS,
            "timestamp": [0, 1_000_000, 2_000_000],
        }


def test_text_ids_survive(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n007,ü x,2020-01-01\n12,b,2020-01-02\n")
    table = TableSource(interactions=str(path)).read().interactions
    assert table.column("user_id").to_pylist() == ["007", "12"]
    assert table.column("item_id").to_pylist() == ["ü x", "b"]


def test_one_bad_cell_in_many_rows_is_reported_with_its_row(tmp_path):
    lines = ["1,2,3"] * 200_000
    lines[123_455] = "1,2,3x"
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(lines))
    with pytest.raises(DataError, match=r"1 row with a time .* data row 123456 .*received '3x'"):
        TableSource(interactions=str(path)).read()


def test_a_partitioned_folder_with_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "log" / f"split={split}").mkdir(parents=True)
        part = pa.table({"user_id": [1, 2], "item_id": [3, 4]})
        pq.write_table(part, tmp_path / "log" / f"split={split}" / "0.parquet")
    table = TableSource(interactions=str(tmp_path / "log")).read().interactions
    assert table.column("split").to_pylist() == [2, 2, 0, 0]


def test_problems_of_unreadable_and_readable_tables_come_together(log, tmp_path):
    (tmp_path / "items.parquet").write_bytes(b"no")
    source = TableSource(
        interactions=str(log),
        users=str(tmp_path / "user.csv"),
        items=str(tmp_path / "items.parquet"),
    )
    with pytest.raises(DataError, match="no such file or folder") as caught:
        source.read()
    starts = [
        problem.removeprefix(f"{tmp_path}/").split(" ")[0] for problem in caught.value.problems
    ]
    assert starts == ["user.csv:", "items.parquet:", "log.csv:", "log.csv:", "log.csv:"]


def test_an_unknown_way_with_bad_rows_is_refused(log):
    with pytest.raises(ValueError, match="got 'drop'; allowed: fail, quarantine"):
        TableSource(interactions=str(log), on_bad_rows="drop")


def test_the_name_is_what_was_given(log):
    assert TableSource(interactions=str(log)).name == "tables"
    assert TableSource(interactions=str(log), name="shop").name == "shop"


def test_the_fingerprint_follows_contents_and_options(log, tmp_path):
    def digest(**options):
        return TableSource(**{"interactions": str(log), **options}).fingerprint()

    first = digest()
    assert digest() == first
    moved = tmp_path / "elsewhere" / "log.csv"
    moved.parent.mkdir()
    moved.write_bytes(log.read_bytes())
    assert digest(interactions=str(moved)) == first
    assert digest(name="other") == first
    others = [
        digest(columns=COLUMNS),
        digest(label=Label(column="ts")),
        digest(label=Label(column="ts", maximum=2.0)),
        digest(context=["ts"]),
        digest(on_bad_rows="quarantine"),
        digest(users=str(log)),
        digest(items=str(log)),
        digest(items=str(tmp_path / "nothing.csv")),
    ]
    log.write_text(log.read_text().replace(f"{BIG},", f"{BIG + 7},", 1))
    others.append(digest())
    assert len({first, *others}) == len(others) + 1


def test_the_fingerprint_of_a_folder_follows_names_of_partitions(tmp_path):
    part = tmp_path / "log" / "split=train" / "0.csv"
    part.parent.mkdir(parents=True)
    part.write_text("user_id,item_id\n1,2\n")
    source = TableSource(interactions=str(tmp_path / "log"))
    first = source.fingerprint()
    part.parent.rename(tmp_path / "log" / "split=test")
    assert source.fingerprint() != first


def shared(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there (set TWOTOWER_DATA)")
    return str(path)


def test_movielens_1m_tables():
    tables = TableSource(
        interactions=shared("ml-1m/interactions.parquet"),
        users=shared("ml-1m/users.parquet"),
        items=shared("ml-1m/items.parquet"),
        context=["position"],
    ).read()
    counts = (tables.interactions.num_rows, tables.users.num_rows, tables.items.num_rows)
    assert counts == (999_611, 6_040, 3_883)
    assert tables.interactions.schema.field("user_id").type == pa.int64()


def test_a_click_table_with_given_splits():
    source = TableSource(interactions=shared("ml-1m/clicks.parquet"), label=Label())
    table = source.read().interactions
    assert table.num_rows == 739_012
    assert set(table.column("split").unique().to_pylist()) == {0, 1, 2}
    assert not {"timestamp"} & set(table.column_names)


def test_an_implicit_log_with_given_splits():
    table = TableSource(interactions=shared("movielens1m_m1/interactions.parquet")).read()
    assert table.interactions.num_rows == 895_699


def test_impressions_without_users():
    source = TableSource(
        interactions=shared("obd-small/impressions.parquet"),
        label=Label(column="click"),
        context=["position", "user_feature_0"],
    )
    table = source.read().interactions
    assert table.num_rows == 40_000
    assert sum(table.column("label").to_pylist()) == 207
    assert "user_id" not in table.column_names


def test_a_name_that_stands_for_itself_is_no_mapping(log):
    own = {name: name for name in ("weight", "split", "title")}
    mapped = TableSource(interactions=str(log), columns=COLUMNS | own)
    assert mapped.fingerprint() == TableSource(interactions=str(log), columns=COLUMNS).fingerprint()
    assert mapped.read().interactions.num_rows == 3


def test_a_label_is_declared_by_its_column():
    assert declared_label() is None
    assert declared_label(column="click") == Label(column="click")
    stars = declared_label(column="stars", minimum=1, maximum=5, positive_from=4)
    assert stars == Label(column="stars", minimum=1, maximum=5, positive_from=4)


class TestFurtherOutcomes:
    def source(self, tmp_path, *, context=None, **tasks):
        path = tmp_path / "shown.csv"
        path.write_text("site,click,stars,note\na,0,1,x\nb,1,,y\nb,1,4.5,4\n")
        label = declared_label(column="click", tasks=tasks)
        return TableSource(interactions=str(path), label=label, context=context)

    def test_are_read_as_numbers(self, tmp_path):
        tables = self.source(tmp_path, click=1).read()
        assert tables.tasks == {"click": 1}
        columns = tables.interactions.to_pydict()
        assert columns["click"] == columns["label"] == [0, 1, 1]  # a label may be one of them
        assert "click" not in tables.foreseeable.column_names

    def test_all_problems_come_together(self, tmp_path):
        source = self.source(tmp_path, context=["stars"], stars=4, note=1, bought=1)
        with pytest.raises(DataError) as caught:
            source.read()
        problems = caught.value.problems
        assert len(problems) == 4
        missing = "the column `bought` of data.label.tasks is missing; available: site, click"
        assert any(missing in text for text in problems)
        assert any("column `stars`: 1 row" in text for text in problems)
        assert any("column `note`: 2 rows" in text for text in problems)
        assert any("`stars` is not known at request time" in text for text in problems)

    @pytest.mark.parametrize("name", ["weight", "a/b"])
    def test_names_that_mean_something_are_refused(self, name):
        with pytest.raises(ValueError, match=f"`{name}` cannot be the name of a further outcome"):
            declared_label(column="click", tasks={name: 1})

    def test_without_a_label_there_is_nothing_to_rank_by(self):
        with pytest.raises(ValueError, match=r"bought, and none that is ranked by; name it with"):
            declared_label(tasks={"bought": 1})


def test_a_label_range_without_a_column_is_refused():
    with pytest.raises(ValueError, match=r"a range is given and no column; .*data\.label\.column"):
        declared_label(maximum=5.0)


def test_the_position_may_have_another_name_and_keeps_its_type(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp,slot\na,b,1,1\na,c,2,12\n")
    tables = TableSource(
        interactions=str(path), columns={"position": "slot"}, context=["position"]
    ).read()
    assert tables.interactions["position"].to_pylist() == [1, 12]
    assert tables.interactions.column_names == ["user_id", "item_id", "timestamp", "position"]
    table = pa.table(
        {"user_id": ["a"], "item_id": ["b"], "timestamp": [1], "slot": ["top"], "position": [3]}
    )
    pq.write_table(table, tmp_path / "log.parquet")
    tables = TableSource(
        interactions=str(tmp_path / "log.parquet"), columns={"position": "slot"}
    ).read()
    assert tables.interactions["position"].to_pylist() == ["top"]
    assert "slot" not in tables.interactions.column_names
