import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from twotower.data.schema import DataError, Label
from twotower.monitoring import windows
from twotower.monitoring.windows import WindowForm, read_window, scan_window

NOW = 1_767_225_600  # 2026-01-01
LABEL = Label(column="click")
CONTEXT = ("user_id", "item_id", "timestamp", "device")
FORM = WindowForm(
    label=LABEL, required=CONTEXT, id_types={"user_id": pa.string(), "item_id": pa.int64()}
)


def rows(count=20, **changed):
    """A log of one event a minute that ends an hour before now."""
    columns = {
        "user_id": [f"u{n % 7}" for n in range(count)],
        "item_id": list(range(count)),
        "timestamp": [NOW - 3600 - 60 * n for n in range(count)],
        "click": [float(n % 2) for n in range(count)],
        "device": ["phone"] * count,
    }
    return pa.table({k: v for k, v in (columns | changed).items() if v is not None})


def written(folder, *tables):
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet")
    return str(folder)


def test_a_window_is_read_in_canonical_form(tmp_path):
    table = rows()
    location = written(tmp_path / "w", table.slice(0, 12), table.slice(12))
    window = read_window(location, FORM, now=NOW)
    assert window.start == NOW - 3600 - 60 * 19
    assert window.end == NOW - 3600 + 1
    assert window.interactions["item_id"].to_pylist() == list(range(20))
    assert window.interactions["timestamp"][0].as_py() == (NOW - 3600) * 1_000_000
    assert window.interactions["label"].type == pa.float32()


def test_columns_of_other_names_and_csv(tmp_path):
    table = rows().rename_columns(["visitor", "item_id", "timestamp", "click", "device"])
    pacsv.write_csv(table, tmp_path / "w.csv")
    form = WindowForm(
        columns={"user_id": "visitor"}, label=LABEL, required=CONTEXT, id_types=FORM.id_types
    )
    window = read_window(str(tmp_path / "w.csv"), form, now=NOW)
    assert window.interactions["user_id"].to_pylist()[:2] == ["u0", "u1"]


def test_labels_that_have_not_come_yet_are_null(tmp_path):
    labels = [None, float("nan"), *[1.0] * 18]
    window = read_window(written(tmp_path / "w", rows(click=labels)), FORM, now=NOW)
    assert window.interactions["label"].null_count == 2
    assert window.interactions.num_rows == 20


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"device": None}, "column `device` is missing, which the bundle was trained with"),
        ({"click": None}, "column `click` is missing"),
        ({"user_id": None}, "column `user_id` is missing"),
        ({"user_id": list(range(20))}, "`user_id` holds ids of type int64; allowed: string"),
        ({"item_id": ["i1"] * 20}, "`item_id` holds ids of type string; allowed: int64"),
        ({"click": ["yes"] * 20}, "column `click` .*has type string"),
        ({"click": [2.0] * 20}, "20 rows outside the range"),
        ({"click": pa.nulls(20, pa.float32())}, "column `click`: all 20 labels are null"),
        ({"click": [float("nan")] * 20}, "column `click`: all 20 labels are null"),
        ({"timestamp": [1.5] * 20}, "`timestamp` has type double"),
        ({"timestamp": [None, *[NOW - 9] * 19]}, "1 row without a time"),
        ({"timestamp": [NOW + 7200 + n for n in range(20)]}, "the latest time is 2026-01-01T02:00"),
        ({"timestamp": [(NOW + n) * 1000 for n in range(20)]}, "looks like milliseconds"),
    ],
)
def test_a_bad_window_says_what_is_wrong(tmp_path, changed, message):
    location = written(tmp_path / "w", rows(**changed))
    with pytest.raises(DataError, match=message):
        read_window(location, FORM, now=NOW)


def test_clocks_may_differ_by_an_hour(tmp_path):
    late = rows(timestamp=[NOW + 3600 - n for n in range(20)])
    assert read_window(written(tmp_path / "w", late), FORM, now=NOW).end == NOW + 3601


def test_an_empty_window_and_none(tmp_path):
    with pytest.raises(DataError, match="the table is empty"):
        read_window(written(tmp_path / "w", rows(0)), FORM, now=NOW)
    with pytest.raises(DataError, match="no such file"):
        read_window(str(tmp_path / "nothing"), FORM, now=NOW)


def test_the_same_file_twice(tmp_path):
    table = rows(2000)
    parts = [table.slice(n * 100, 100) for n in range(20)]
    assert read_window(written(tmp_path / "once", *parts), FORM, now=NOW)
    with pytest.raises(DataError, match=r"4\.8% of the rows repeat an earlier row"):
        read_window(written(tmp_path / "twice", *parts, parts[3]), FORM, now=NOW)
    allowing = WindowForm(label=LABEL, required=CONTEXT, max_repeated=0.05)
    assert read_window(written(tmp_path / "twice"), allowing, now=NOW)
    with pytest.raises(ValueError, match="max_repeated: a share from 0 and below 1, got 1"):
        WindowForm(max_repeated=1.0)


def test_one_event_at_the_same_second_is_no_repetition(tmp_path):
    same_time = rows(timestamp=[NOW - 5] * 20)
    assert read_window(written(tmp_path / "w", same_time), FORM, now=NOW)


def test_repetitions_of_a_long_window_are_counted_in_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "MAX_HASHES", 4096)
    table = rows(30_000)
    once = written(tmp_path / "once", table)
    assert scan_window(once, FORM, lambda _, __: None, now=NOW, rows_per_block=999)
    with pytest.raises(DataError, match=r"(4|5)\d\.\d% of the rows repeat"):
        read_window(written(tmp_path / "twice", table, table), FORM, now=NOW)


def test_pieces_make_the_whole(tmp_path):
    table = rows(1000)
    location = written(tmp_path / "w", table.slice(0, 700), table.slice(700))
    pieces = {}
    span = scan_window(location, FORM, pieces.__setitem__, now=NOW, rows_per_block=64)
    assert len(pieces) > 10
    joined = pa.concat_tables([pieces[n] for n in sorted(pieces)])
    assert joined.equals(read_window(location, FORM, now=NOW).interactions)
    assert span.num_rows == 1000
    assert span.num_rejected == 0


def test_bad_rows_can_be_set_aside(tmp_path):
    table = rows(1000, user_id=[None, *(f"u{n}" for n in range(999))])
    location = written(tmp_path / "w", table)
    with pytest.raises(DataError, match="1 row without an id"):
        read_window(location, FORM, now=NOW)
    form = WindowForm(label=LABEL, required=CONTEXT, on_bad_rows="quarantine")
    span = scan_window(location, form, lambda _, __: None, now=NOW)
    assert (span.num_rows, span.num_rejected) == (999, 1)


def test_a_flat_table_has_no_times_and_may_repeat_itself(tmp_path):
    table = pa.table({"click": [0.0, 1.0] * 50, "device": ["phone"] * 100})
    form = WindowForm(label=LABEL, required=("device",))
    window = read_window(written(tmp_path / "w", table), form, now=NOW)
    assert (window.start, window.end) == (0, 0)
    assert np.array_equal(window.interactions["label"].to_numpy(), [0.0, 1.0] * 50)
