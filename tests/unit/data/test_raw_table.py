"""How rows are named in messages and in the rejected rows."""

import numpy as np
import pyarrow as pa

from twotower.data.columns import Fault
from twotower.data.raw_table import ColumnFault, RawTable, describe, rejected_rows, sum_up


def fault(rows, what="that are bad", source="ts", name="timestamp"):
    numbers = None if rows is None else np.array(rows, dtype=np.int64)
    return ColumnFault(
        name=name, source=source, fault=Fault(what=what, allowed="good", rows=numbers)
    )


def raw(data, parts=None):
    table = pa.table(data)
    files = parts or (("log.csv", table.num_rows),)
    return RawTable(location="data/log.csv", data=table, text=frozenset(), parts=files)


def told(table, found):
    return describe(table, sum_up(table, found))


def test_a_message_names_file_column_count_rows_values_and_what_is_allowed():
    table = raw({"ts": ["x", "1", "x", None, "y", "z", "z"]})
    assert told(table, fault([0, 2, 3, 4, 5, 6])) == (
        "data/log.csv: column `ts` (`timestamp`): 6 rows that are bad, at data row 1, 3, 4, 5, 6 "
        "(from 1, header not counted): received 'x', null, 'y', 'z'; allowed: good"
    )


def test_a_column_under_its_canonical_name_and_a_single_row():
    message = told(raw({"user_id": [1, 2]}), fault([1], source="user_id", name="user_id"))
    assert "column `user_id`: 1 row that is bad, at data row 2 " in message
    assert "received 2;" in message


def test_a_fault_of_a_whole_column():
    message = told(raw({"ts": [1.5]}), fault(None, what="has type double"))
    assert message == "data/log.csv: column `ts` (`timestamp`) has type double; allowed: good"


def test_rows_of_several_files_are_counted_in_each():
    table = raw({"ts": list("abcdef")}, (("a.csv", 2), ("empty.csv", 0), ("b.csv", 4)))
    assert "at data row 2 of a.csv; 1, 4 of b.csv " in told(table, fault([1, 2, 5]))


def test_values_that_python_cannot_hold_are_still_shown():
    far = pa.array([2**62, 1], pa.timestamp("s", "UTC"))
    assert "received" in told(raw({"ts": far}), fault([0]))
    assert "[1, 2]" in told(raw({"ts": [[1, 2]]}), fault([0]))


def test_rejected_rows_keep_their_file_number_reasons_and_text():
    table = raw(
        {"ts": ["x", "5", "y"], "row": [7, 8, 9], "tags": [["a"], None, ["b", "c"]]},
        (("a.csv", 1), ("b.csv", 2)),
    )
    faults = [fault([0, 2]), fault([2], what="too early"), fault(None)]
    rejected = rejected_rows(table, faults, np.array([0, 2]))
    assert rejected.to_pydict() == {
        "file": ["a.csv", "b.csv"],
        "row": [1, 2],
        "reason": ["`ts` that are bad", "`ts` that are bad; `ts` too early"],
        "ts": ["x", "y"],
        "row_original": ["7", "9"],
        "tags": ["['a']", "['b', 'c']"],
    }
