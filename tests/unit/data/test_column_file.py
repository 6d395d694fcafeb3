"""Columns written piece by piece are the files that NumPy writes."""

import io

import numpy as np
import pytest

from twotower.data.column_file import ColumnFile
from twotower.data.prepared import checksum


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.float32, np.bool_])
@pytest.mark.parametrize("shape", [(0,), (5,), (1000,), (7, 3), (12, 2, 2)])
def test_the_bytes_are_those_of_numpy(tmp_path, dtype, shape):
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    column = ColumnFile(tmp_path / "x.npy", len(values))
    for part in np.array_split(values, [len(values) // 3, len(values) // 3, len(values) // 2]):
        column.append(part)
    digest = column.finish()
    expected = io.BytesIO()
    np.save(expected, values)
    assert (tmp_path / "x.npy").read_bytes() == expected.getvalue()
    assert digest == checksum(tmp_path / "x.npy")


def test_values_that_do_not_lie_together_are_written_in_order(tmp_path):
    column = ColumnFile(tmp_path / "x.npy", 3)
    column.append(np.arange(12).reshape(4, 3).T)
    column.finish()
    assert np.load(tmp_path / "x.npy").tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@pytest.mark.parametrize("count", [2, 4])
def test_a_wrong_number_of_values_is_refused(tmp_path, count):
    column = ColumnFile(tmp_path / "x.npy", 3)
    column.append(np.zeros(count))
    with pytest.raises(ValueError, match=f"has {count} values instead of 3"):
        column.finish()
