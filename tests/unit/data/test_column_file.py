"""Columns written piece by piece are the files that NumPy writes."""

import io
import resource

import numpy as np
import pytest

from twotower.data.column_file import ColumnFile, save_array
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


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12, dtype=np.int32).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(20)[::3],
        np.zeros((0, 3), np.float32),
        np.array(7),
        np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
    ],
    ids=["rows", "columns", "every third", "nothing", "one number", "fields"],
)
def test_an_array_is_saved_as_by_numpy(tmp_path, values):
    save_array(tmp_path / "ours.npy", values)
    np.save(tmp_path / "numpy.npy", values)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.parametrize("size", [100, 9_500, 20_000])
def test_what_does_not_fit_is_an_error(tmp_path, size):
    """The end of 9,500 bytes is less than a buffer of the C library; `np.save` says nothing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(size, 9_000), before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_array(tmp_path / "values.npy", np.zeros(size, np.int8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
