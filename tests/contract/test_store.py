"""Every store is the same to those who fill it and to those who look users up.

Expected answers are those of a dictionary beside the store.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from tests.redis_server import redis_binary, redis_server
from twotower.serving.store import StoreReader, open_reader, user_key
from twotower.serving.store_lmdb import LmdbStore
from twotower.serving.store_redis import NUM_BUCKETS, RedisStore
from twotower.serving.store_version import MAX_KEY, Store, VersionFacts
from twotower.serving.stored_list import StoreError, encode_lists

pytest.importorskip("lmdb", reason="LMDB is not installed (the extra `batch`)")
pytest.importorskip("redis", reason="the client of Redis is not installed (the extra `batch`)")

NOW = 1_800_000_000
HOUR = 3600
# Far away, so that no server lets something expire while it is tested.
FAR = 4_000_000_000
USERS = ["", "1", "10", "2", "a", "b b", "x" * MAX_KEY, "ü"]
Lists = dict[str, list[int]]
Make = Callable[[], Store]


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if redis_binary() is None:
        pytest.skip("no redis-server is installed")
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


NAMES = (f"store{number}" for number in itertools.count())


@pytest.fixture(params=["lmdb", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes objects for the same store."""
    name = next(NAMES)
    if request.param == "lmdb":
        return lambda: LmdbStore(path=str(tmp_path / "stores"), name=name)
    url = request.getfixturevalue("redis_url")
    return lambda: RedisStore(url=url, name=name)


def facts(namespace: str, **changes: object) -> VersionFacts:
    about = VersionFacts(
        namespace=namespace,
        bundle_version=f"bundle of {namespace}",
        k=3,
        written_at=NOW,
        expires_at=FAR,
    )
    return replace(about, **changes)


def value(items: list[int], written_at: int = NOW) -> bytes:
    lists = pa.array([items], pa.list_(pa.int64()))
    scores = pa.array([[1 / (1 + n) for n in range(len(items))]], pa.list_(pa.float32()))
    options = {"is_probability": True, "k": 3, "written_at": written_at}
    return next(encode_lists(lists, scores, **options))


def popular(items: list[int]) -> bytes:
    lists = pa.array([items], pa.list_(pa.int64()))
    return next(encode_lists(lists, None, is_probability=False, k=3, written_at=NOW))


def entries(lists: Lists) -> list[tuple[bytes, bytes]]:
    return sorted((user_key(user), value(items)) for user, items in lists.items())


def write(store: Store, about: VersionFacts, *chunks: Lists, keep: int = 1) -> None:
    """Fill and publish a version."""
    with store.begin(about, popular([90, 91])) as version:
        for number, lists in enumerate(chunks):
            version.put(number, f"digest {number}", entries(lists))
        version.publish(sum(map(len, chunks)), keep=keep)


def reader(store: Store, **options: object) -> StoreReader:
    return StoreReader(values=store.values(), clock=lambda: NOW + HOUR, **options)


def ids(found: object) -> list[object]:
    return [item.item_id for item in found.items]


def test_what_was_put_in_is_found(make: Make) -> None:
    lists = {user: [n, 2**60 + n, -n][: n % 4] for n, user in enumerate(USERS) if user}
    keys = sorted(lists, key=user_key)
    chunks = [{user: lists[user] for user in part} for part in (keys[:3], keys[3:4], keys[4:])]
    write(make(), facts("v1"), *chunks)
    look = reader(make())
    for user, items in lists.items():
        found = look.lookup(user)
        assert (found.status, found.source, ids(found)) == ("found", "model", items)
        assert (found.version, found.age) == ("bundle of v1", HOUR)
        assert [item.probability for item in found.items] == [
            pytest.approx(1 / (1 + n)) for n in range(len(items))
        ]
    assert ids(look.lookup(10)) == lists["10"]  # a number and its text are the same user


@pytest.mark.parametrize("user", ["nobody", "", "x" * (MAX_KEY + 1), "01", 1.0, True])
def test_others_get_popular_items(make: Make, user: object) -> None:
    write(make(), facts("v1"), {"1": [5]})
    found = reader(make()).lookup(user)
    assert (found.status, found.source, ids(found)) == ("fallback", "popular", [90, 91])
    assert found.items[0].reason == "popular: the user has no list"


def test_without_popular_items_nothing_is_there(make: Make) -> None:
    with make().begin(facts("v1"), None) as version:
        version.put(0, "d", entries({"1": [5]}))
        version.publish(1, keep=1)
    look = reader(make())
    assert look.lookup(1).status == "found"
    assert look.lookup(2).status == "missing"
    assert "no popular items" in look.lookup(2).note


def test_nothing_is_there_before_something_is_published(make: Make) -> None:
    look = reader(make())
    assert (look.lookup(1).status, look.lookup(1).note) == (
        "missing",
        "nothing was published; `twotower batch bundle=<bundle>` does that",
    )
    with make().begin(facts("v1"), popular([9])) as version:
        version.put(0, "d", entries({"1": [5]}))
        assert look.lookup(1).status == "missing"
        version.publish(1, keep=1)
    assert ids(look.lookup(1)) == [5]


def test_a_version_that_is_written_is_not_seen_until_it_is_published(make: Make) -> None:
    write(make(), facts("v1"), {"1": [5], "2": [6]})
    look = reader(make())
    assert ids(look.lookup(1)) == [5]
    with make().begin(facts("v2"), popular([9])) as version:
        version.put(0, "d", entries({"1": [7]}))
        assert (ids(look.lookup(1)), ids(look.lookup(2))) == ([5], [6])
        version.put(1, "e", entries({"3": [8]}))
        version.publish(2, keep=1)
    assert ids(look.lookup(1)) == [7]
    assert look.lookup(2).status == "fallback"  # nothing of the old version is left
    assert ids(look.lookup(2)) == [9]
    assert ids(look.lookup(3)) == [8]


def test_a_run_that_was_left_goes_on(make: Make) -> None:
    about = facts("v1")
    with make().begin(about, None) as version:
        assert dict(version.chunks) == {}
        version.put(0, "d0", entries({"1": [1]}))
        version.put(1, "d1", entries({"2": [2]}))
    with make().begin(about, None) as version:
        assert dict(version.chunks) == {0: "d0", 1: "d1"}
        version.put(2, "d2", entries({"3": [3]}))
        version.publish(3, keep=1)
    look = reader(make())
    assert [ids(look.lookup(user)) for user in (1, 2, 3)] == [[1], [2], [3]]


def test_half_a_chunk_does_not_count(make: Make) -> None:
    def broken() -> Iterator[tuple[bytes, bytes]]:
        yield b"1", value([1])
        raise KeyError("killed")

    with pytest.raises(KeyError), make().begin(facts("v1"), None) as version:
        version.put(0, "d0", broken())
    with make().begin(facts("v1"), None) as version:
        assert dict(version.chunks) == {}
        version.put(0, "d0", entries({"1": [1], "2": [2]}))
        version.publish(2, keep=1)
    assert ids(reader(make()).lookup(2)) == [2]


def test_publishing_again_changes_nothing(make: Make) -> None:
    for _ in range(2):
        with make().begin(facts("v1"), None) as version:
            if not version.chunks:
                version.put(0, "d0", entries({"1": [1]}))
            version.publish(1, keep=1)
    assert ids(reader(make()).lookup(1)) == [1]


def test_a_published_version_never_changes(make: Make) -> None:
    write(make(), facts("v1"), {"1": [5]})
    with (
        pytest.raises(StoreError, match="never changes"),
        make().begin(facts("v1"), None) as version,
    ):
        version.put(0, "another digest", entries({"1": [6]}))
    assert ids(reader(make()).lookup(1)) == [5]


def test_a_version_that_lost_something_is_not_published(make: Make) -> None:
    write(make(), facts("v1"), {"1": [5]})
    with make().begin(facts("v2"), None) as version:
        version.put(0, "d", entries({"1": [6]}))
        with pytest.raises(StoreError, match="holds 1 lists where 2 were written"):
            version.publish(2, keep=1)
    assert ids(reader(make()).lookup(1)) == [5]
    with make().begin(facts("v2"), None) as version:
        assert dict(version.chunks) == {}  # it begins anew
        version.put(0, "d", entries({"1": [6], "2": [7]}))
        version.publish(2, keep=1)
    assert ids(reader(make()).lookup(1)) == [6]


def kept(store: Store) -> set[str]:
    """Namespaces of which anything is left."""
    if isinstance(store, LmdbStore):
        folders = (path.name for path in store.home.iterdir() if not path.is_symlink())
        return {name.removeprefix(".staging-") for name in folders if name != ".lock"}
    with store.connect() as client:
        keys = [key.decode().split(":") for key in client.keys(f"twotower:{store.name}:*:*")]
    return {parts[2] for parts in keys}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_old_versions_are_removed(make: Make, keep: int) -> None:
    with make().begin(facts("killed"), None) as version:
        version.put(0, "d", entries({"1": [5]}))
    names = ["v3", "v1", "v4", "v2"]
    for name in names:
        write(make(), facts(name), {"1": [int(name[1])]}, keep=keep)
        assert ids(reader(make()).lookup(1)) == [int(name[1])]
    assert kept(make()) == set(names[-keep:])


def test_an_older_version_that_is_kept_can_become_current_again(make: Make) -> None:
    for name in ("v1", "v2"):
        write(make(), facts(name), {"1": [int(name[1])]}, keep=2)
    with make().begin(facts("v1"), None) as version:
        version.publish(1, keep=2)
    assert ids(reader(make()).lookup(1)) == [1]
    assert kept(make()) == {"v1", "v2"}


def test_what_expired_is_not_shown(make: Make) -> None:
    write(make(), facts("v1", expires_at=FAR), {"1": [5]})
    values = make().values()
    for now, status in ((FAR - 1, "found"), (FAR, "missing"), (FAR + 7200, "missing")):
        found = StoreReader(values=values, clock=lambda now=now: now).lookup(1)
        assert found.status == status
        assert (found.status == "missing") == (not found.items)
    assert found.note == "version v1 expired 2.0 hours ago"
    write(make(), facts("v2", expires_at=None), {"1": [6]})
    assert StoreReader(values=values, clock=lambda: 2 * FAR).lookup(1).status == "found"


def test_what_is_too_old_is_called_stale(make: Make) -> None:
    write(make(), facts("v1"), {"1": [5]})
    for user, own in ((1, "found"), (2, "fallback")):
        assert reader(make(), max_age=HOUR).lookup(user).status == own
        found = reader(make(), max_age=HOUR - 1).lookup(user)
        assert found.status == "stale"
        assert found.items
        assert "3600 seconds old; at most 3599 seconds" not in found.note
        assert "1.0 hours old; at most 1.0 hours is wanted" in found.note


def test_stores_do_not_see_each_other(make: Make) -> None:
    write(make(), facts("v1"), {"1": [5]})
    other = replace(make(), name=next(NAMES))
    assert reader(other).lookup(1).status == "missing"
    write(other, facts("v1"), {"1": [6]})
    assert ids(reader(make()).lookup(1)) == [5]


def test_the_location_opens_the_store(make: Make) -> None:
    write(make(), facts("v1"), {"1": [5]})
    assert ids(open_reader(make().location).lookup(1)) == [5]


def test_damaged_values_are_named(make: Make) -> None:
    for number, damage in enumerate((lambda v: v[:-1], lambda v: b"\x09" + v[1:], lambda v: b"")):
        with make().begin(facts(f"v{number}"), None) as version:
            version.put(0, "d", [(b"1", damage(value([1, 2])))])
            version.publish(1, keep=1)
        message = "was changed" if number == 0 else "this release reads format version 1"
        with pytest.raises(StoreError, match=message):
            reader(make()).lookup(1)


def test_a_version_of_another_format_is_refused(make: Make, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("twotower.serving.store_version.STORE_FORMAT", 2)
        write(make(), facts("v1"), {"1": [5]})
    with pytest.raises(StoreError, match="format version 2, this release reads 1"):
        reader(make()).lookup(1)


def looked_up(make: Make, users: list[str], done: threading.Event) -> tuple[list, list]:
    """Look users up until all is done; the first items in that order, and what is wrong."""
    values, answers, problems = make().values(), [], []
    look = StoreReader(values=values, clock=lambda: NOW)
    for user in itertools.cycle(users):
        last = done.is_set() and user == users[0]
        found = look.lookup(user)
        if found.status != "found" or len(found.items) != 3 or len(set(ids(found))) != 1:
            problems.append(found)
        answers += ids(found)[:1]
        if last:
            return answers, problems
    raise AssertionError


@pytest.mark.parametrize("written", [b"", b"[]", b"{}", b"{"])
def test_facts_that_cannot_be_read_are_named(written: bytes) -> None:
    with pytest.raises(StoreError, match="here: facts of a version cannot be read"):
        VersionFacts.from_bytes(written, "here")


def test_readers_see_whole_versions_while_they_change(make: Make) -> None:
    """In every version all users have the same list; one answer, and the next, is never older."""
    users = [f"u{number:03}" for number in range(40)]

    def publish(number: int) -> None:
        write(make(), facts(f"v{number}"), {user: [number] * 3 for user in users})

    publish(0)
    done = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(looked_up, make, users, done) for _ in range(2)]
        for number in range(1, 12):
            publish(number)
        done.set()
    for answers, problems in (future.result() for future in looking):
        assert problems == []
        assert answers == sorted(answers)
        assert len(set(answers)) > 2
        assert answers[-1] == 11


# What only one of them does.


def test_writers_of_a_folder_take_turns(tmp_path: Path) -> None:
    store = LmdbStore(path=str(tmp_path), name="one")
    with (
        store.begin(facts("v1"), None),
        pytest.raises(StoreError, match="is being written by another run"),
        store.begin(facts("v2"), None),
    ):
        pass


def test_keys_out_of_order_are_refused(tmp_path: Path) -> None:
    store = LmdbStore(path=str(tmp_path), name="one")
    with (
        pytest.raises(StoreError, match="key b'1' does not come in order"),
        store.begin(facts("v1"), None) as version,
    ):
        version.put(0, "d", [(b"2", b""), (b"1", b"")])


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    store = LmdbStore(path=str(tmp_path), name="one")
    (store.home / "notes").mkdir(parents=True)
    (store.home / "README").write_text("mine")
    for name in ("v1", "v2"):
        write(store, facts(name), {"1": [5]})
    assert (store.home / "notes").is_dir()
    assert (store.home / "README").read_text() == "mine"


def test_what_a_killed_maker_left_is_made_anew(tmp_path: Path) -> None:
    store = LmdbStore(path=str(tmp_path), name="one")
    staged = store.home / ".staging-v1"
    staged.mkdir(parents=True)
    (staged / "data.mdb").write_bytes(b"not what LMDB writes" * 1000)
    write(store, facts("v1"), {"1": [5]})
    assert ids(reader(store).lookup(1)) == [5]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    store = LmdbStore(path=str(tmp_path), name="one")
    write(store, facts("v1"), {"1": [5]})
    (store.home / "v1" / "data.mdb").write_bytes(b"broken" * 3000)
    with pytest.raises(StoreError, match="v1: no readable store"):
        reader(store).lookup(1)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "current").symlink_to("v9")
    with pytest.raises(StoreError, match="leads to v9, which is not there"):
        reader(LmdbStore(path=str(tmp_path), name="one")).lookup(1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    store = LmdbStore(path=str(tmp_path), name="one")
    store.home.mkdir()
    (store.home / ".staging-v1").write_text("in the way")
    with (
        pytest.raises(StoreError, match="cannot be written"),
        store.begin(facts("v1"), None),
    ):
        pass


def test_a_full_disk_is_named_and_the_chunk_is_not_in(tmp_path: Path, monkeypatch) -> None:
    store = LmdbStore(path=str(tmp_path), name="one")
    lists = {f"u{n:03}": [n] for n in range(1000)}
    with monkeypatch.context() as patch:
        patch.setattr("twotower.serving.store_lmdb.MAP_SIZE", 1 << 16)
        message = r"staging-v1: cannot be written: .*MAP_FULL"
        with (
            store.begin(facts("v1"), None) as version,
            pytest.raises(StoreError, match=message),
        ):
            version.put(0, "d", entries(lists))
    write(store, facts("v1"), lists)
    assert ids(reader(store).lookup("u007")) == [7]


def test_a_reader_gives_up_where_no_version_stays(redis_url: str) -> None:
    store = RedisStore(url=redis_url, name=next(NAMES))
    write(store, facts("v1"), {"1": [5]})
    values = store.values()
    known = values._learn()
    values._learn = lambda: replace(known, namespace="v0")
    with pytest.raises(StoreError, match="another version became current 10 times"):
        values.read(b"1")


def test_every_key_of_a_version_expires(redis_url: str) -> None:
    store = RedisStore(url=redis_url, name=next(NAMES))
    write(store, facts("v1"), {f"u{n:04}": [n] for n in range(3 * NUM_BUCKETS)})
    with store.connect() as client:
        of_version = client.keys(f"twotower:{store.name}:v1:*")
        assert len(of_version) > NUM_BUCKETS / 2
        assert {client.expiretime(key) for key in of_version} == {FAR}
        for key in ("current", "published"):
            assert client.ttl(f"twotower:{store.name}:{key}") == -1
        look = reader(store)
        assert look.lookup("u0003").status == "found"
        for key in of_version:  # as if the time had come
            client.expireat(key, NOW - 10**9)
        for again in (look, reader(store)):
            found = again.lookup("u0003")
            assert (found.status, found.items) == ("missing", ())
            assert found.note == "version v1 has expired or was evicted"
    write(store, facts("v2"), {"u0003": [4]})
    assert ids(look.lookup("u0003")) == [4]


def test_the_run_that_began_last_wins(redis_url: str) -> None:
    """Of two that write at a time; the other changes nothing and says so."""
    store = RedisStore(url=redis_url, name=next(NAMES))
    with store.begin(facts("v1"), None) as first, store.begin(facts("v2"), None) as second:
        first.put(0, "d", entries({"1": [1]}))
        second.put(0, "d", entries({"1": [2]}))
        second.publish(1, keep=1)
        with pytest.raises(StoreError, match="a later run has removed it"):
            first.put(1, "e", entries({"2": [1]}))
        with pytest.raises(StoreError, match="holds 0 lists where 1 were written"):
            first.publish(1, keep=1)
    assert ids(reader(store).lookup(1)) == [2]
    assert kept(store) == {"v2"}


def test_an_earlier_run_does_not_remove_a_later_one(redis_url: str) -> None:
    store = RedisStore(url=redis_url, name=next(NAMES))
    with store.begin(facts("v1"), None) as first, store.begin(facts("v2"), None) as second:
        first.put(0, "d", entries({"1": [1]}))
        second.put(0, "d", entries({"1": [2]}))
        first.publish(1, keep=1)
        assert ids(reader(store).lookup(1)) == [1]
        second.publish(1, keep=1)
    assert ids(reader(store).lookup(1)) == [2]


def test_a_version_removed_just_before_it_becomes_current_does_not(redis_url: str) -> None:
    store = RedisStore(url=redis_url, name=next(NAMES))
    with store.begin(facts("v1"), None) as version, store.connect() as client:
        client.delete(f"twotower:{store.name}:writing")
        with pytest.raises(StoreError, match="a later run has been published meanwhile"):
            version.publish(0, keep=1)
    assert reader(store).lookup(1).status == "missing"


def test_a_server_that_cannot_be_reached_is_named_without_the_password() -> None:
    store = RedisStore(url="redis://me:secret@127.0.0.1:1/0", name="demo")
    assert "secret" not in repr(store)
    assert store.location == "redis://127.0.0.1:1/0#demo"
    for use in (
        lambda: reader(store).lookup(1),
        lambda: store.begin(facts("v1"), None).__enter__(),
    ):
        with pytest.raises(StoreError, match=r"redis://127\.0\.0\.1:1/0#demo: ") as caught:
            use()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://localhost:6379/0", "redis://localhost:6379/0#"])
def test_a_url_must_name_a_store(url: str) -> None:
    with pytest.raises(StoreError, match="names no store; it stands behind a #"):
        open_reader(url)


def test_a_url_must_be_one() -> None:
    with pytest.raises(StoreError, match="http://localhost"):
        RedisStore(url="http://localhost", name="demo").values()
