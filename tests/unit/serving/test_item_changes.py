"""Changes in order to what holds now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.serving.item_changes import LatestChanges
from twotower.serving.item_journal import Change

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
BEFORE, AFTER = (NOON + timedelta(hours=hours) for hours in (-1, 1))


def at(minutes: int) -> datetime:
    return AFTER + timedelta(minutes=minutes)


def upsert(item: str, time: datetime = AFTER, **values: object) -> Change:
    return Change(at=time, upsert=[{"item_id": item, **values}])


def remove(*items: str, time: datetime = AFTER) -> Change:
    return Change(at=time, remove=items)


def folded(*changes: Change) -> LatestChanges:
    latest = LatestChanges(NOON, lambda given: given if isinstance(given, str) else None)
    latest.fold(changes)
    return latest


def test_later_values_stand_over_earlier_ones() -> None:
    latest = folded(upsert("a", x=1, y=1), upsert("b", x=5), upsert("a", y=2, z=None))
    assert latest.values("a", in_bundle=False) == {"x": 1, "y": 2, "z": None}
    assert latest.values("b", in_bundle=True) == {"x": 5}
    assert latest.values("c", in_bundle=True) == {}
    assert not latest.is_removed("a")
    assert not latest.is_removed("c")


def test_items_that_changes_are_about() -> None:
    latest = folded()
    touched = latest.fold([upsert("a"), remove("c", "b"), upsert("a"), remove("c")])
    assert touched == ["a", "c", "b"]
    assert latest.fold([]) == []
    odd = Change(at=AFTER, upsert=[{"x": 1}], remove=())
    assert latest.fold([odd, Change(at=AFTER, remove=[7])]) == []


def test_removed_until_it_is_upserted_again() -> None:
    latest = folded(upsert("a", x=1), remove("a", "z"))
    assert latest.is_removed("a")
    assert latest.is_removed("z")
    latest.fold([upsert("a", y=2)])
    assert not latest.is_removed("a")
    assert latest.values("a", in_bundle=False) == {"x": 1, "y": 2}


def test_what_a_bundle_contains_that_was_built_later() -> None:
    latest = folded(upsert("a", BEFORE, x=1, y=1), upsert("a", AFTER, y=2))
    assert latest.values("a", in_bundle=True) == {"y": 2}
    assert latest.values("a", in_bundle=False) == {"x": 1, "y": 2}
    assert folded(remove("a", time=BEFORE)).is_removed("a")  # whether the bundle knew or not


def test_forgotten() -> None:
    latest = folded(upsert("a", x=1), remove("b"))
    latest.clear()
    assert latest.values("a", in_bundle=False) == {}
    assert not latest.is_removed("b")


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ([upsert("in", BEFORE, x=1)], []),
        ([upsert("out", BEFORE, x=1)], [upsert("out", BEFORE, x=1)]),
        (
            [upsert("in", at(1), x=1, y=1), upsert("in", at(2), y=2), upsert("in", at(3), x=3)],
            [upsert("in", at(2), y=2), upsert("in", at(3), x=3)],
        ),
        ([upsert("out", x=1), remove("out")], []),
        ([upsert("in", x=1), remove("in", time=at(5))], [remove("in", time=at(5))]),
        ([remove("in"), upsert("in", at(1), x=1)], [upsert("in", at(1), x=1)]),
        ([remove("never")], []),
    ],
)
def test_fewest_changes(changes: list[Change], left: list[Change]) -> None:
    def plain(some: list[Change]) -> list:
        return [(c.at, [*map(dict, c.upsert)], [*c.remove]) for c in some]

    found = folded(*changes).left({"in"})
    # `item_id` is a value too, with the time of its latest change.
    without_id = [c for c in plain(found) if c[2] or any(set(row) - {"item_id"} for row in c[1])]
    assert without_id == plain(left)


ITEMS = ("in", "also in", "out", "also out")
CHANGES = st.lists(
    st.one_of(
        st.builds(
            lambda item, values: ("upsert", item, values),
            st.sampled_from(ITEMS),
            st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3), max_size=2),
        ),
        st.builds(lambda item: ("remove", item, {}), st.sampled_from(ITEMS)),
    ),
    max_size=14,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(CHANGES, st.integers(0, 14))
def test_what_is_left_leads_to_the_same(made: list[tuple], later: int) -> None:
    """Compacted at any time, with changes before and after the bundle, and then changed further."""
    changes = [
        upsert(item, BEFORE + timedelta(minutes=20 * turn), **values)
        if what == "upsert"
        else remove(item, time=BEFORE + timedelta(minutes=20 * turn))
        for turn, (what, item, values) in enumerate(made)
    ]
    in_bundle = {"in", "also in"}
    early, whole = folded(*changes[:later]), folded(*changes)
    compacted = folded(*early.left(in_bundle), *changes[later:])
    for item in ITEMS:
        inside = item in in_bundle
        if not inside and early.is_removed(item):
            continue  # forgotten, with what it had
        assert compacted.is_removed(item) == whole.is_removed(item)
        if not whole.is_removed(item) and not early.is_removed(item):
            assert compacted.values(item, in_bundle=inside) == whole.values(item, in_bundle=inside)
