"""A catalogue of what has changed, against plain arrays and lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.export.bundle import Bundle
from twotower.serving.catalogue import BundleItems
from twotower.serving.fresh_items import Beside, FreshItems, Patched
from twotower.serving.requests import Filter


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_patched_is_the_array_with_other_rows(data: st.DataObject) -> None:
    num_base, num_added = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 4))
    base = np.arange(num_base * 2, dtype=np.float32).reshape(num_base, 2)
    changed = sorted(data.draw(st.sets(st.integers(0, num_base - 1))))
    rows = np.array([*changed, *range(num_base, num_base + num_added)], np.int64)
    values = -1.0 - np.arange(len(rows) * 2, dtype=np.float32).reshape(len(rows), 2)
    expected = np.concatenate([base, np.zeros((num_added, 2), np.float32)])
    expected[rows] = values
    patched = Patched(base, rows, values)
    assert len(patched) == num_base + num_added
    assert patched.shape == expected.shape
    assert patched.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(patched), expected)
    np.testing.assert_array_equal(patched[1:3], expected[1:3])
    asked = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=8))
    several = np.array(asked, np.int64)
    np.testing.assert_array_equal(patched[several], expected[several])
    if len(asked) == 8:
        np.testing.assert_array_equal(
            patched[several.reshape(2, 4)], expected[several.reshape(2, 4)]
        )
    for row in asked:
        np.testing.assert_array_equal(patched[row], expected[row])
    np.testing.assert_array_equal(base, np.arange(num_base * 2).reshape(num_base, 2))


def test_patched_scalars() -> None:
    patched = Patched(np.array([1, 2, 3]), np.array([1, 3]), np.array([20, 40]))
    assert patched[np.array([0, 1, 3])].tolist() == [1, 20, 40]
    assert int(patched[1]) == 20


@pytest.fixture(scope="module")
def base(bundle: Bundle) -> BundleItems:
    return BundleItems(bundle, bundle.items)


def beside(base: BundleItems, rows: list[int], live: list[bool], names: list[str]) -> Beside:
    """Items that are copies of the bundle's first items under other titles."""
    table = base.table.slice(0, len(rows))
    ids = [base.ids[row].as_py() if row < len(base) else f"new-{row}" for row in rows]
    table = table.set_column(0, "item_id", pa.array(ids, base.ids.type))
    table = table.set_column(1, "title", pa.array(names, pa.string()))
    return Beside(
        rows=np.array(rows),
        live=np.array(live),
        table=table,
        columns={name: c[: len(rows)] for name, c in base.columns.items()},
        vectors=np.asarray(base.vectors[: len(rows)]),
    )


@pytest.fixture(scope="module")
def fresh(base: BundleItems) -> FreshItems:
    """80 items: 7 changed, 9 changed and removed, 12 removed, 80 and 82 added, 81 removed again."""
    rows, live = [7, 80, 81, 82], [True, True, False, True]
    names = ["Seven", "Eighty", "Eighty-one", "Eighty-two"]
    return FreshItems(base, beside(base, rows, live, names), np.array([9, 12]))


def test_look_ups(base: BundleItems, fresh: FreshItems) -> None:
    assert len(fresh) == 83
    known = base.ids.to_pylist()
    assert fresh.ids.to_pylist() == [*known, "new-80", "new-81", "new-82"]
    assert fresh.find([known[7], "new-82", "nothing", known[12]]).tolist() == [7, 82, -1, 12]
    assert fresh.title(7) == "Seven"
    assert fresh.title(82) == "Eighty-two"
    assert fresh.title(8) == base.title(8)
    assert fresh.values(7) == {**base.values(0), "item_id": known[7], "title": "Seven"}
    assert fresh.values(8) == base.values(8)
    assert fresh.table.num_rows == 83
    assert fresh.table.column("title")[82].as_py() == "Eighty-two"
    assert [row for row in range(83) if fresh.is_removed(row)] == [9, 12, 81]
    for name, column in base.columns.items():
        expected = np.asarray(column[[0, 8, 1, 3]])
        np.testing.assert_array_equal(fresh.columns[name][np.array([7, 8, 80, 82])], expected)
    np.testing.assert_array_equal(fresh.vectors[np.array([[7, 5]])], base.vectors[[[0, 5]]])


def test_rows_that_may_be_shown(base: BundleItems, fresh: FreshItems) -> None:
    allowed = fresh.allowed(())
    assert allowed is not None
    assert allowed.num_items == 83
    assert allowed.rows.tolist() == [row for row in range(83) if row not in (9, 12, 81)]
    assert fresh.allowed(()) is allowed
    titles = [fresh.values(row)["title"] for row in range(83)]
    wanted = Filter(column="title", operator="in", values=["Seven", "Eighty-one", titles[30]])
    expected = [row for row in allowed.rows if titles[row] in wanted.values]
    assert {7, 30} <= set(expected)
    assert fresh.allowed([wanted]).rows.tolist() == expected
    old = Filter(column="title", operator="in", values=[base.title(7)])
    assert 7 not in fresh.allowed([old]).rows


def test_all_rows_are_no_set(base: BundleItems) -> None:
    assert base.allowed(()) is None
    changed = FreshItems(base, beside(base, [3, 80], [True, True], ["a", "b"]), np.array([], int))
    assert changed.allowed(()) is None
    assert not any(changed.is_removed(row) for row in range(81))


def test_items_beside_stay_in_order(base: BundleItems) -> None:
    first = beside(base, [3, 80], [True, True], ["a", "b"])
    second = beside(base, [1, 50, 81], [True, False, True], ["c", "d", "e"])
    both = first.joined(second)
    assert both.rows.tolist() == [1, 3, 50, 80, 81]
    assert both.live.tolist() == [True, True, False, True, True]
    assert both.table.column("title").to_pylist() == ["c", "a", "d", "b", "e"]
    left = both.without(np.array([3, 81, 99]))
    assert left.rows.tolist() == [1, 50, 80]
    assert left.table.column("title").to_pylist() == ["c", "d", "b"]
    np.testing.assert_array_equal(left.vectors, np.asarray(base.vectors)[[0, 1, 1]])
