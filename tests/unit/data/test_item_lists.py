import numpy as np
import pytest

from twotower.data.item_lists import ItemLists


def lists() -> ItemLists:
    return ItemLists(offsets=np.array([0, 2, 2, 5]), item_rows=np.array([7, 8, 1, 2, 3]))


def unpacked(some: ItemLists) -> list[list[int]]:
    return [some[q].tolist() for q in range(len(some))]


def test_reading():
    assert unpacked(lists()) == [[7, 8], [], [1, 2, 3]]
    assert lists().counts.tolist() == [2, 0, 3]
    assert lists().query_index.tolist() == [0, 0, 2, 2, 2]


def test_cut():
    rows = np.array([5, 6, 7, 8, 9], np.int32)
    some = ItemLists.cut(rows, np.array([1, 3, 0]), np.array([3, 3, 1]))
    assert unpacked(some) == [[6, 7], [], [5]]
    assert some.item_rows.dtype == np.int64
    nobody = ItemLists.cut(rows, np.array([], np.int64), np.array([], np.int64))
    assert len(nobody) == 0


def test_some_of_the_lists():
    assert unpacked(lists().between(1, 3)) == [[], [1, 2, 3]]
    assert unpacked(lists().between(0, 1)) == [[7, 8]]
    assert unpacked(lists().between(2, 2)) == []
    assert unpacked(lists().take(np.array([2, 0, 2]))) == [[1, 2, 3], [7, 8], [1, 2, 3]]


def test_some_of_the_entries():
    kept = lists().where(lists().item_rows > 2)
    assert unpacked(kept) == [[7, 8], [], [3]]
    assert unpacked(lists().below(3)) == [[], [], [1, 2]]


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [1, 3], [0, 2], [], [[0, 3]]])
def test_broken_offsets(offsets):
    with pytest.raises(ValueError, match="must rise from 0 to 3, the number of `item_rows`"):
        ItemLists(offsets=np.array(offsets, np.int64), item_rows=np.array([1, 2, 3]))
