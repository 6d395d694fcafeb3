"""What the page looks up, against plain Python over the same bundle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from twotower.export.bundle import open_bundle
from twotower.serving import page_data
from twotower.serving.catalogue import BundleItems
from twotower.serving.page_data import MAX_LISTED, PageData
from twotower.serving.recommender import Recommender


@pytest.fixture(scope="module")
def data(recommender: Recommender) -> PageData:
    return PageData(recommender)


@pytest.fixture(scope="module")
def csv_recommender(csv_run) -> Recommender:
    return Recommender(open_bundle(csv_run.bundle))


@pytest.fixture(scope="module")
def csv_data(csv_recommender: Recommender) -> PageData:
    """Retrieval alone; ids of users are numbers above 2^53, those of items text."""
    return PageData(csv_recommender)


def with_titles(recommender: Recommender, titles: list[str | None]) -> PageData:
    """The same bundle with other titles."""
    items = recommender.bundle.items
    place = items.table.column_names.index("title")
    table = items.table.set_column(place, "title", pa.array(titles, pa.string()))
    changed = replace(recommender.bundle, items=replace(items, table=table))
    return PageData(Recommender(changed))


def test_users_by_the_beginning_of_their_ids(data: PageData, recommender: Recommender) -> None:
    ids = recommender.bundle.users.ids.to_pylist()
    for prefix in ("", "u", "u00001", ids[7], "nobody", ".*", "%"):
        expected = [one for one in ids if one.startswith(prefix)]
        assert data.users(prefix, limit=5) == expected[:5]
    assert len(data.users("", limit=10_000)) == MAX_LISTED


def test_users_do_not_depend_on_how_ids_are_cut(data: PageData, monkeypatch) -> None:
    whole = data.users("u0000", limit=30)
    monkeypatch.setattr(page_data, "BLOCK", 7)
    assert data.users("u0000", limit=30) == whole
    assert len(whole) > 7


def test_ids_that_are_numbers_are_texts(csv_data: PageData, csv_recommender: Recommender) -> None:
    ids = [str(one) for one in csv_recommender.bundle.users.ids.to_pylist()]
    assert csv_data.users("900", limit=50) == ids
    assert csv_data.users(ids[3], limit=50) == [ids[3]]
    assert csv_data.random_user() in ids


def test_a_random_user_is_a_known_one_and_not_always_the_same(
    data: PageData, recommender: Recommender
) -> None:
    drawn = {data.random_user() for _ in range(60)}
    assert drawn <= set(recommender.bundle.users.ids.to_pylist())
    assert len(drawn) > 10


def test_items_hold_every_word(data: PageData, recommender: Recommender) -> None:
    items, popular = recommender.bundle.items, recommender.bundle.popular
    names = list(zip(items.ids.to_pylist(), items.table.column("title").to_pylist(), strict=True))
    for text in ("the", "THE  s", "ocean", "o the a", "i0000", "nothing like it", "t.e", "%", "("):
        words = text.lower().split()
        joined = " ".join(words)

        def first(row: int, joined: str = joined) -> bool:
            item_id, title = names[row]
            return item_id.startswith(joined) or title.lower().startswith(joined)

        hits = [
            int(row)
            for row in popular
            if first(row) or all(word in names[row][1].lower() for word in words)
        ]
        expected = [row for row in hits if first(row)] + [row for row in hits if not first(row)]
        found = data.items(text, limit=9)
        assert [(one.item_id, one.title) for one in found] == [names[row] for row in expected[:9]]


def test_without_a_word_the_popular_items_come(data: PageData, recommender: Recommender) -> None:
    ids = recommender.bundle.items.ids.to_pylist()
    expected = [ids[row] for row in recommender.bundle.popular[:6]]
    assert [one.item_id for one in data.items("  ", limit=6)] == expected
    assert len(data.items("", limit=10_000)) == MAX_LISTED


def test_an_item_without_a_title_is_called_by_its_id(csv_data: PageData, recommender) -> None:
    (found,) = [one for one in csv_data.items("", limit=50) if one.title == one.item_id]
    assert found.item_id == "3e5"  # The item that is in the log and not in the table.
    titles = [None, *("Blue lamp" for _ in range(len(recommender.bundle.items) - 1))]
    data = with_titles(recommender, titles)
    first = recommender.bundle.items.ids[0].as_py()
    assert [one.title for one in data.items(first, limit=5)] == [first]
    assert first not in {one.item_id for one in data.items("lamp", limit=MAX_LISTED)}


def test_a_history_is_newest_first(data: PageData, recommender: Recommender) -> None:
    bundle = recommender.bundle
    ids = recommender.bundle.items.ids.to_pylist()
    for row in (0, 5, 17):
        events = bundle.item_rows[bundle.offsets[row] : bundle.offsets[row + 1]]
        found = data.history(bundle.users.ids[row].as_py())
        assert [one.item_id for one in found.items] == [ids[event] for event in events[::-1]]
        assert found.num_events == len(events)
        assert all(one.title == recommender.title(ids.index(one.item_id)) for one in found.items)
    assert data.history("nobody") is None


def test_a_long_history_is_cut(data: PageData, recommender: Recommender, monkeypatch) -> None:
    monkeypatch.setattr(page_data, "MAX_LISTED", 2)
    bundle = recommender.bundle
    row = int(np.argmax(np.diff(bundle.offsets)))
    last = bundle.item_rows[bundle.offsets[row + 1] - 1]
    found = data.history(bundle.users.ids[row].as_py())
    assert len(found.items) == 2
    assert found.items[0].item_id == recommender.bundle.items.ids[int(last)].as_py()
    assert found.num_events == np.diff(bundle.offsets).max() > 2


def test_a_history_of_a_number_is_found_by_its_text(csv_data: PageData, csv_recommender) -> None:
    user = csv_recommender.bundle.users.ids[4].as_py()
    assert csv_data.history(str(user)) == csv_data.history(user)
    assert csv_data.history(str(user)).num_events > 0


def test_places_are_those_of_the_map_and_of_every_process(
    data: PageData, recommender: Recommender
) -> None:
    by_id = {one.item.item_id: one for one in data.points}
    some = [recommender.bundle.items.ids[row].as_py() for row in (9, 2, 40)]
    found = PageData(recommender).places([*some, "nobody"], recommender.items)
    assert found == [by_id[one] for one in some]
    assert data.places([], recommender.items) == []


def test_an_item_that_is_newer_than_the_bundle_has_a_place(
    data: PageData, recommender: Recommender
) -> None:
    """It stands where its vector is: here that of an item of the bundle."""
    count, old = len(recommender.items), recommender.items

    class Grown(BundleItems):
        def __init__(self) -> None:
            self.ids = pa.chunked_array([old.ids, pa.array(["new"])])
            self.vectors = np.concatenate([np.asarray(old.vectors), old.vectors[5:6]])

        def find(self, wanted: list[str]) -> np.ndarray:
            return np.array([count if one == "new" else old.find([one])[0] for one in wanted])

        def title(self, row: int) -> str:
            return "Brand new" if row == count else old.title(row)

    *others, new = data.places(["new", old.ids[6].as_py()], Grown())
    same, other = data.points[5], data.points[6]
    assert others == [other]
    assert (new.item.item_id, new.item.title, new.group) == ("new", "Brand new", None)
    assert (new.x, new.y) == (same.x, same.y) != (other.x, other.y)


def test_a_large_catalogue_is_sampled(data: PageData, recommender, monkeypatch) -> None:
    monkeypatch.setattr(page_data, "MAX_POINTS", 12)
    few = PageData(recommender).points
    assert len({one.item.item_id for one in few}) == 12
    assert few == PageData(recommender).points
    assert set(few) <= set(data.points)


def test_points_are_grouped_by_the_first_column_of_few_texts(
    data: PageData, recommender: Recommender
) -> None:
    categories = recommender.bundle.items.table.column("category").to_pylist()
    assert [one.group for one in data.points] == categories


def test_what_is_served(data: PageData, csv_data: PageData, recommender: Recommender) -> None:
    found = data.summary()
    assert (found.num_users, found.num_items) == (120, 80)
    assert found.num_candidates == recommender.num_candidates
    assert found.version == recommender.bundle.manifest.version
    assert found.has_ranker
    assert not csv_data.summary().has_ranker
