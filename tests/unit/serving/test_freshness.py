"""Items that come, change and go while a bundle is served."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twotower.export.bundle import Bundle
from twotower.serving.freshness import Freshness
from twotower.serving.item_journal import ItemJournal, JournalError
from twotower.serving.recommender import Recommender
from twotower.serving.requests import Filter, Recommendation, RequestError
from twotower.serving.similar import similar_to_item, similar_to_vector

NOON = 1_705_320_000.0
ALL = 200  # more than there are items
LAMP = {"title": "Green lamp", "category": "jazz", "tags": ["fast jazz"], "price": 12.5}


def ids(items: list[Recommendation]) -> list:
    return [item.item_id for item in items]


def user_of(bundle: Bundle, least: int = 3) -> tuple[str, list[str]]:
    """A user with some events, and the items of these."""
    row = int(np.flatnonzero(np.diff(bundle.offsets) >= least)[0])
    events = bundle.item_rows[bundle.offsets[row] : bundle.offsets[row + 1]]
    return bundle.users.ids[row].as_py(), [bundle.items.ids[int(e)].as_py() for e in events]


def shown(freshness: Freshness, **asked: object) -> list:
    return ids(freshness.recommender.recommend(k=ALL, seconds=NOON, **asked))


@pytest.fixture
def freshness(recommender: Recommender) -> Freshness:
    return Freshness(recommender)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.journal"


@pytest.fixture
def process(recommender: Recommender, path: Path) -> Callable[[], Freshness]:
    """Starts what another process would start: the same bundle and the same journal."""
    return lambda: Freshness(recommender, ItemJournal(path, bundle="tiny"))


def test_nothing_has_changed(freshness: Freshness, recommender: Recommender) -> None:
    assert freshness.recommender is recommender
    assert freshness.poll() == freshness.upsert([]) == freshness.remove([]) == 0
    assert freshness.recommender is recommender


def test_a_new_item_is_recommended_by_its_vector(freshness: Freshness, bundle: Bundle) -> None:
    user, _ = user_of(bundle)
    before = freshness.recommender.recommend(user=user, k=ALL, seconds=NOON)
    assert freshness.upsert([{"item_id": "new", **LAMP}]) == 1
    recommender = freshness.recommender
    after = recommender.recommend(user=user, k=ALL, seconds=NOON)
    assert set(ids(after)) == {*ids(before), "new"}
    found = {item.item_id: item for item in after}
    assert found["new"].title == "Green lamp"
    (row,) = recommender.items.find(["new"])
    vectors = {item: recommender.items.vectors[recommender.items.find([item])[0]] for item in found}
    # The query is the same for all: the score of the new one fits those of the others.
    matrix = np.stack([vectors[item] for item in found if item != "new"])
    scores = np.array([found[item].retrieval_score for item in found if item != "new"])
    query = np.linalg.lstsq(matrix, scores, rcond=None)[0]
    assert found["new"].retrieval_score == pytest.approx(vectors["new"] @ query, abs=1e-4)
    assert row == len(bundle.items)
    probabilities = [item.probability for item in after]
    assert probabilities == sorted(probabilities, reverse=True)


def test_a_copy_of_an_item_ranks_as_that_item_would_were_it_new(
    freshness: Freshness, bundle: Bundle
) -> None:
    user, _ = user_of(bundle)
    values = freshness.recommender.items.values(5)
    freshness.upsert([values | {"item_id": f"copy {n}"} for n in range(2)])
    found = {
        item.item_id: item
        for item in freshness.recommender.recommend(user=user, k=ALL, seconds=NOON)
    }
    first, second = found["copy 0"], found["copy 1"]
    assert first.retrieval_score == pytest.approx(second.retrieval_score, abs=1e-6)
    assert first.title == second.title == values["title"]


def test_a_removed_item_is_not_shown_anywhere(freshness: Freshness, bundle: Bundle) -> None:
    user, _ = user_of(bundle)
    first = shown(freshness, user=user)[0]
    popular = shown(freshness)[0]
    vector = np.asarray(bundle.items.columns["image_vector"][3])
    assert freshness.remove([first, popular, "never heard of"]) == len({first, popular})
    assert freshness.remove([first]) == 0
    recommender = freshness.recommender
    other = bundle.items.ids[int(first == bundle.items.ids[0].as_py())].as_py()
    lists = [
        shown(freshness, user=user),
        shown(freshness),
        shown(freshness, history=[other]),
        ids(similar_to_item(recommender, other, k=ALL)),
        ids(similar_to_vector(recommender, vector, k=ALL)),
    ]
    for items in lists:
        assert not {first, popular} & {*items}
        assert len(items) >= 80 - 2 - 40
    assert len(lists[1]) == 80 - len({first, popular})
    history = recommender.recommend(history=[first], k=3)  # it is still known
    assert history[0].reason.startswith(
        f"like {recommender.title(recommender.items.find([first])[0])}"
    )


def test_removed_and_upserted_again(freshness: Freshness, bundle: Bundle) -> None:
    item = bundle.items.ids[3].as_py()
    freshness.upsert([{"item_id": "new", **LAMP}])
    freshness.remove([item, "new"])
    assert not {item, "new"} & {*shown(freshness)} | ({"new"} & {*shown(freshness, history=[item])})
    freshness.upsert([{"item_id": item}, {"item_id": "new", "price": 1.0}])
    assert item in shown(freshness)
    assert "new" in shown(freshness, history=[item])
    items = freshness.recommender.items
    assert items.values(items.find(["new"])[0]) == {
        "item_id": "new",
        **LAMP,
        "price": 1.0,
        "image_vector": None,
    }
    assert len(items) == 81


def test_a_changed_item_is_what_it_is_now(freshness: Freshness, bundle: Bundle) -> None:
    user, seen = user_of(bundle)
    unseen = next(i for i in shown(freshness, user=user) if i not in seen)
    recommender = freshness.recommender
    before = {i.item_id: i for i in recommender.recommend(user=user, k=ALL, seconds=NOON)}
    freshness.upsert([{"item_id": seen[0], "title": "Seen"}, {"item_id": unseen, "title": "Other"}])
    after = {i.item_id: i for i in freshness.recommender.recommend(user=user, k=ALL, seconds=NOON)}
    assert after.keys() == before.keys()  # the seen one stays away, no row came
    assert after[unseen].title == "Other"
    # No feature has changed.
    assert after[unseen].retrieval_score == pytest.approx(before[unseen].retrieval_score, abs=1e-5)
    assert after[unseen].probability == pytest.approx(before[unseen].probability, abs=1e-5)
    freshness.upsert([{"item_id": unseen, "category": "cooking", "image_vector": [1.0] * 16}])
    again = {i.item_id: i for i in freshness.recommender.recommend(user=user, k=ALL, seconds=NOON)}
    assert again[unseen].title == "Other"
    assert abs(again[unseen].retrieval_score - before[unseen].retrieval_score) > 1e-3
    assert recommender.items.title(recommender.items.find([unseen])[0]) != "Other"  # a snapshot


def test_histories_may_hold_added_and_changed_items(freshness: Freshness) -> None:
    new = [{"item_id": name, **LAMP, "title": name.upper()} for name in ("one", "two")]
    freshness.upsert([*new, {"item_id": "other", "image_vector": [(-1.0) ** n for n in range(16)]}])
    recommender = freshness.recommender
    lists = {
        name: recommender.recommend(history=[name], k=ALL, seconds=NOON)
        for name in ("one", "two", "other")
    }
    for name, items in lists.items():
        assert name not in ids(items)
        assert len(items) == 82
    scores = {
        name: {item.item_id: item.retrieval_score for item in items}
        for name, items in lists.items()
    }
    known = scores["one"].keys() & scores["two"].keys() & scores["other"].keys()
    assert all(scores["one"][i] == pytest.approx(scores["two"][i], abs=1e-6) for i in known)
    assert any(abs(scores["one"][i] - scores["other"][i]) > 1e-3 for i in known)
    assert lists["one"][0].reason.startswith("like ONE (")
    assert ids(similar_to_item(recommender, "one", k=1)) == ["two"]
    freshness.remove(["two"])
    assert "one" in shown(freshness, history=["two"])


def test_filters_see_items_as_they_are(freshness: Freshness, bundle: Bundle) -> None:
    cheap = Filter(column="price", operator="at_most", values=[5.0])
    prices = dict(
        zip(bundle.items.ids.to_pylist(), bundle.items.table["price"].to_pylist(), strict=True)
    )
    expected = {item for item, price in prices.items() if price is not None and price <= 5.0}
    assert set(shown(freshness, filters=[cheap])) == expected
    raised = next(iter(expected))
    dear = next(item for item, price in prices.items() if price is not None and price > 5.0)
    freshness.upsert(
        [
            {"item_id": raised, "price": 50.0},
            {"item_id": dear, "price": 1.0},
            {"item_id": "new", **LAMP, "price": 2.0},
            {"item_id": "dear", **LAMP},
        ]
    )
    expected = expected - {raised} | {dear, "new"}
    assert set(shown(freshness, filters=[cheap], history=["dear"])) == expected
    # The popular ones are those of the training part.
    assert set(shown(freshness, filters=[cheap])) == expected - {"new"}
    freshness.remove(["new"])
    assert set(shown(freshness, filters=[cheap], history=["dear"])) == expected - {"new"}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"item_id": "a", "price": "x"}], "items[0].price: must be a finite number, got 'x'"),
        ([{"price": 1.0}], "items[0].item_id: must be an id, string, got None"),
        ([{"item_id": ""}], "items[0].item_id: must be an id, string, got ''"),
        ([{"item_id": True}], "items[0].item_id: must be an id, string, got True"),
        ([{"item_id": 1.5}], "items[0].item_id: must be an id, string, got 1.5"),
        (
            [{"item_id": "a"}, {"item_id": "a"}],
            "items[1].item_id: 'a' is there already; one row an item",
        ),
        (
            [{"item_id": "a", "x": 1}, {"item_id": "b"}, {"item_id": "c", "tags": 1}],
            "items: 2 problems: items[0].x: unknown column; allowed: `item_id`, ",
        ),
    ],
)
def test_an_item_that_cannot_be_taken_takes_none(
    process, path: Path, recommender: Recommender, items: list[dict], message: str
) -> None:
    freshness = process()
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        freshness.upsert(items)
    assert freshness.recommender is recommender
    assert not path.exists()


def test_what_is_no_id_cannot_be_removed(freshness: Freshness) -> None:
    with pytest.raises(RequestError, match=re.escape("ids[1]: must be an id, string, got None")):
        freshness.remove(["a", None])


def test_whole_numbers_as_ids(bundle: Bundle) -> None:
    numbers = pa.array([2**60 + row for row in range(80)])
    table = bundle.items.table.set_column(0, "item_id", numbers)
    entities = replace(bundle.items, ids=numbers, table=table)
    freshness = Freshness(Recommender(replace(bundle, items=entities)))
    with pytest.raises(RequestError, match=re.escape("must be an id, int64, got 'x'")):
        freshness.upsert([{"item_id": "x"}])
    freshness.upsert([{"item_id": "7", **LAMP}, {"item_id": 2**60 + 5, "price": 1.0}])
    assert freshness.remove([str(2**60 + 6)]) == 1
    found = shown(freshness, history=["7"])
    assert 7 not in found
    assert found == shown(freshness, history=[7])
    assert 2**60 + 6 not in found
    assert len(found) == 79


def test_processes_follow_each_other(process, path: Path, bundle: Bundle) -> None:
    user, _ = user_of(bundle)
    one, other = process(), process()
    removed = shown(one, user=user)[0]
    one.upsert([{"item_id": "new", **LAMP}])
    other.remove([removed])  # takes up what it missed
    assert one.poll() == 1
    assert one.poll() == other.poll() == 0
    assert shown(one, user=user) == shown(other, user=user)
    assert "new" in shown(one, user=user)
    assert removed not in shown(one, user=user)
    assert shown(process(), user=user) == shown(one, user=user)  # one that starts again


def test_a_journal_that_was_compacted_says_the_same(process, path: Path, bundle: Bundle) -> None:
    user, _ = user_of(bundle)
    one, follower = process(), process()
    removed = shown(one, user=user)[0]
    for price in range(20):
        one.upsert([{"item_id": "new", **LAMP, "price": float(price)}])
    one.remove([removed, "never"])
    one.upsert([{"item_id": "gone", **LAMP}])
    one.remove(["gone"])
    expected, size = shown(one, user=user), path.stat().st_size
    one.compact()
    assert path.stat().st_size < size / 5
    follower.poll()
    for freshness in (one, follower, process()):
        assert shown(freshness, user=user) == expected
        items = freshness.recommender.items
        assert items.values(items.find(["new"])[0])["price"] == 19.0
    Freshness(one.recommender.__class__(bundle)).compact()  # without a journal there is nothing


def rebuilt(bundle: Bundle, created: datetime) -> Recommender:
    """The same bundle, exported at another time."""
    return Recommender(
        replace(bundle, manifest=replace(bundle.manifest, created=created.isoformat()))
    )


def test_a_bundle_that_was_built_later(process, path: Path, bundle: Bundle) -> None:
    item, gone = (bundle.items.ids[row].as_py() for row in (3, 4))
    process().upsert([{"item_id": item, "title": "Changed"}, {"item_id": "new", **LAMP}])
    process().remove([gone])
    for hours, title in (
        (-1, "Changed"),
        (23, "Changed"),
        (25, bundle.items.table["title"][3].as_py()),
    ):
        later = rebuilt(bundle, datetime.now(UTC) + timedelta(hours=hours))
        freshness = Freshness(later, ItemJournal(path, bundle="tiny"))
        items = freshness.recommender.items
        assert items.title(3) == title  # built a day after the change, it has the item and counts
        assert "new" in shown(freshness, history=[item])  # it does not have this one
        assert gone not in shown(freshness)
    quick = Freshness(
        rebuilt(bundle, datetime.now(UTC) + timedelta(hours=1)),
        ItemJournal(path, bundle="tiny"),
        build_seconds=60,
    )
    assert quick.recommender.items.title(3) != "Changed"
    quick.compact()
    assert b"Changed" not in path.read_bytes()
    assert b"Green lamp" in path.read_bytes()


def test_what_a_bundle_cannot_take_is_left_out_with_a_warning(
    process, path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """The next bundle has no prices, and its titles are lists."""
    process().upsert([{"item_id": "new", **LAMP}, {"item_id": "untitled", "price": 1.0}])
    table = bundle.items.table.drop_columns(["price"])
    titles = pa.array([[title] for title in table["title"].to_pylist()])
    table = table.set_column(1, "title", titles)
    other = Recommender(replace(bundle, items=replace(bundle.items, table=table)))
    with caplog.at_level(logging.WARNING):
        freshness = Freshness(other, ItemJournal(path, bundle="tiny"))
    assert "the items of this bundle have no column price" in caplog.text
    assert "item 'new': title must be a list, got 'Green lamp'" in caplog.text
    assert freshness.recommender.items.find(["new", "untitled"]).tolist() == [-1, 80]


def test_a_journal_that_cannot_be_written_changes_nothing(
    process, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    freshness = process()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("twotower.serving.item_journal.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        freshness.upsert([{"item_id": "new"}])
    assert freshness.recommender is recommender


def test_a_damaged_journal(process, path: Path) -> None:
    one = process()
    one.upsert([{"item_id": "new"}])
    one.upsert([{"item_id": "newer"}])
    content = path.read_bytes()
    place = content.index(b"new")
    path.write_bytes(content[:place] + b"X" + content[place + 1 :])
    with pytest.raises(JournalError, match="damaged at byte"):
        process()
    assert "newer" in one.recommender.items.ids.to_pylist()


def test_a_bundle_without_an_item_tower(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="holds no item tower"):
        Freshness(Recommender(replace(bundle, item_tower=None)))


def test_it_begins_with_what_was_built(freshness: Freshness) -> None:
    freshness.upsert([{"item_id": "new"}])
    with pytest.raises(ValueError, match="begins with the recommender of a bundle as it was built"):
        Freshness(freshness.recommender)


@pytest.fixture
def under_load(freshness: Freshness, bundle: Bundle) -> Iterator[list[tuple[float, set]]]:
    """Threads that ask all the time; when each question was asked, and what was shown."""
    answers: list[tuple[float, set]] = []
    stop = threading.Event()
    users = [bundle.users.ids[row].as_py() for row in np.flatnonzero(np.diff(bundle.offsets))[:8]]
    failed: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            while not stop.is_set():
                asked = time.monotonic()
                answers.append((asked, {*shown(freshness, user=users[number])}))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(users))]
    for thread in threads:
        thread.start()
    yield answers
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed


def test_under_load_new_at_once_and_removed_never_again(
    freshness: Freshness, under_load: list[tuple[float, set]], bundle: Bundle
) -> None:
    """Twenty rounds: a new item and a removed one, in every answer that was asked for after."""
    rounds = []
    for number in range(20):
        new, old = f"new {number}", bundle.items.ids[60 + number].as_py()
        started = time.monotonic()
        freshness.upsert([{"item_id": new, **LAMP}])
        freshness.remove([old])
        done = time.monotonic()
        assert done - started < 1.0
        rounds.append((new, old, done))
        size = len(under_load)
        while len(under_load) < size + 8:  # every thread has asked again
            time.sleep(0.001)
    after = 0
    for asked, items in list(under_load):
        for new, old, done in rounds:
            if asked > done:
                assert new in items
                assert old not in items
                after += 1
    assert after > 500
