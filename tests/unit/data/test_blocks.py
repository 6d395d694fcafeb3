"""What is written and what is said does not depend on how much of a log is in memory at a time."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.prepare import prepare
from twotower.data.schema import DataError, Label, Tables
from twotower.data.split import GivenSplit, LeaveOneOut, RandomSplit, TemporalSplit
from twotower.data.tables import TableSource
from twotower.data.workers import Budget, Threads
from twotower.features.infer import AutoSpec, GivenSpec, PipelineFactory
from twotower.features.spec import Feature, FeatureSpec, History

COUNT = 900
WHOLE = Budget()
BUDGETS = [
    Budget(rows_per_block=100, rows_per_bucket=10_000),
    Budget(rows_per_block=230, rows_per_bucket=120),
]
CONTEXT = ["load", "device", "genre", "slot", "image"]
EXPLICIT = FeatureSpec(
    features=(
        Feature(name="user_id", side="user", kind="id", min_count=3),
        Feature(name="item_id", side="item", kind="id"),
        Feature(name="who", column="user_id", side="context", kind="categorical"),
        Feature(name="what", column="item_id", side="context", kind="categorical"),
        Feature(name="weight", side="context", kind="numeric"),
        Feature(name="load", side="context", kind="numeric", log=True),
        Feature(name="genre", side="context", kind="tags", separator="|"),
        Feature(name="timestamp", side="context", kind="time"),
    ),
    history=History(length=3),
)


def log_of(rng, count=COUNT):
    load = rng.normal(size=count) * 10.0 ** rng.integers(-5, 6, count)
    load[rng.random(count) < 0.1] = np.nan
    return pa.table(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 40, count)],
            "item_id": rng.zipf(1.4, count) % 90,
            "timestamp": rng.integers(0, 300, count),
            "click": rng.integers(0, 2, count),
            "stars": rng.integers(1, 6, count),
            "weight": rng.random(count),
            "split": rng.choice(["train", "train", "train", "test"], count),
            "load": load,
            "device": rng.choice(["phone", "desktop", "tablet"], count),
            "genre": rng.choice(["a|b", "b|c|d", "", "a"], count),
            "slot": rng.integers(0, 9, count),
            "image": list(rng.normal(size=(count, 3))),
        }
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One log as Parquet of small row groups and as CSV, and the items."""
    folder = tmp_path_factory.mktemp("files")
    log = log_of(np.random.default_rng(0))
    pq.write_table(log, folder / "log.parquet", row_group_size=50)
    with (folder / "log.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, [n for n in log.column_names if n != "image"])
        rows.writeheader()
        rows.writerows(log.drop_columns(["image"]).to_pylist())
    items = {"item_id": np.arange(60), "price": np.linspace(1, 2, 60)}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


@pytest.fixture
def written(files, tmp_path):
    """Every file that is written with a budget, by its name."""

    def run(budget, *, log="log.parquet", drop=(), workers=None, **options):
        place = files / log
        if drop:
            place = tmp_path / "fewer.parquet"
            pq.write_table(
                pq.read_table(files / log).drop_columns(list(drop)), place, row_group_size=50
            )
        context = [c for c in CONTEXT if c not in drop and not (c == "image" and "csv" in log)]
        source = {"interactions": str(place), "context": context}
        source |= {} if "item_id" in drop else {"items": str(files / "items.parquet")}
        prepared = prepare(
            source=TableSource(**(source | options.pop("source", {}))),
            **({"splitter": TemporalSplit(), "encoders": PipelineFactory(provider=AutoSpec())}
               | options),
            root=tmp_path / "prepared" / str(hash(budget)),
            budget=budget,
            workers=workers,
        )  # fmt: skip
        paths = [path for path in prepared.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(prepared.folder)): path.read_bytes() for path in paths}

    return run


CLICKS = Label(column="click", tasks={"stars": 4})
CASES = {
    "temporal": {},
    "leave one out": {"splitter": LeaveOneOut()},
    "given": {"splitter": GivenSplit()},
    "random": {"splitter": RandomSplit()},
    "clicks": {"source": {"label": CLICKS}},
    "clicks, leave one out": {"source": {"label": CLICKS}, "splitter": LeaveOneOut()},
    "csv": {"log": "log.csv", "source": {"label": CLICKS}},
    "explicit features": {"encoders": PipelineFactory(provider=GivenSpec(given=EXPLICIT))},
    "interacted": {"catalogue": "interacted"},
    "flat": {"drop": ("user_id", "item_id"), "source": {"label": CLICKS}},
    "flat without times": {
        "drop": ("user_id", "item_id", "timestamp"),
        "source": {"label": CLICKS},
        "splitter": RandomSplit(),
    },
    "without items": {"drop": ("item_id",), "source": {"label": CLICKS}},
    "without users": {"drop": ("user_id",), "source": {"label": CLICKS}},
}


@pytest.mark.parametrize("case", CASES)
def test_all_files_are_the_same_byte_for_byte(written, case):
    options = CASES[case]
    expected = written(WHOLE, **dict(options))
    assert len(expected) > 12
    for budget in BUDGETS:
        found = written(budget, **dict(options))
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []


def test_the_number_of_threads_makes_no_difference(written):
    one = written(BUDGETS[1], workers=Threads(num_threads=1))
    four = written(Budget(rows_per_block=229, rows_per_bucket=120), workers=Threads(num_threads=4))
    assert one == four


def spoil(log):
    """Rows without ids, with bad times and weights, spread over the log."""
    columns = log.to_pydict()
    for row in range(0, COUNT, 97):
        columns["user_id"][row] = None
    for row in range(5, COUNT, 131):
        columns["timestamp"][row] = -4
    for row in range(11, COUNT, 171):
        columns["weight"][row] = float("nan")
    columns["weight"][870] = -1.0  # a fault of which the first blocks know nothing
    return pa.table(columns)


@pytest.fixture
def spoiled(tmp_path):
    log = spoil(log_of(np.random.default_rng(1)))
    (tmp_path / "log").mkdir()
    pq.write_table(log.slice(0, 300), tmp_path / "log" / "a.parquet", row_group_size=70)
    pq.write_table(log.slice(300), tmp_path / "log" / "b.parquet", row_group_size=110)
    return {"interactions": str(tmp_path / "log"), "label": CLICKS, "items": None}


def test_messages_count_all_rows_and_name_the_first_five(written, spoiled):
    said = []
    for budget in (WHOLE, *BUDGETS):
        with pytest.raises(DataError) as caught:
            written(budget, source=spoiled)
        said.append(caught.value.problems)
    assert said.count(said[0]) == len(said)
    assert [problem.split(": ", 1)[1].split(" (from 1")[0] for problem in said[0]] == [
        "column `user_id`: 10 rows without an id, at data row 1, 98, 195, 292 of a.parquet; "
        "89 of b.parquet",
        "column `timestamp`: 7 rows with a time before 1970, at data row 6, 137, 268 of "
        "a.parquet; 99, 230 of b.parquet",
        "column `weight`: 6 rows without a value, at data row 12, 183 of a.parquet; "
        "54, 225, 396 of b.parquet",
        "column `weight`: 1 row outside the range, at data row 571 of b.parquet",
    ]


def test_rows_are_set_aside_whatever_the_blocks_are(written, spoiled, tmp_path):
    options = {"source": spoiled | {"on_bad_rows": "quarantine"}}
    expected = written(WHOLE, **dict(options))
    for budget in BUDGETS:
        found = written(budget, **dict(options))
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
    paths = sorted((tmp_path / "prepared").rglob("rejected.parquet"))
    rows = pq.read_table(paths[0]).to_pylist()
    assert len(rows) == len({(row["file"], row["row"]) for row in rows}) == 24


def test_nothing_of_the_work_is_left(written, tmp_path):
    written(BUDGETS[1])
    [root] = (tmp_path / "prepared").iterdir()
    assert len(list(root.iterdir())) == 1


def test_columns_stored_as_dictionaries_are_cut_too(prepare_tables, tmp_path):
    rng = np.random.default_rng(2)
    device = [pa.array(rng.choice(["a", "b", "c"][: k + 1], 40)) for k in range(3)]
    log = {
        "user_id": rng.integers(0, 9, 120),
        "item_id": rng.integers(0, 9, 120),
        "timestamp": rng.permutation(120),
        "device": pa.chunked_array([part.dictionary_encode() for part in device]),
    }
    tables = Tables(interactions=pa.table(log), context=("device",))
    found = []
    for budget in (WHOLE, Budget(rows_per_block=50, rows_per_bucket=30)):
        root = tmp_path / str(budget.rows_per_block)
        prepared = prepare_tables(tables, splitter=TemporalSplit(), budget=budget, root=root)
        found.append(prepared.manifest["files"])
        values = pa.concat_arrays(device).take(pa.array(prepared.interactions.rows))
        rows = prepared.interactions.context["device"]
        assert len({*zip(values.to_pylist(), rows.tolist(), strict=True)}) == 3
    assert found[0] == found[1]
