"""The journal: what is written is read, by all, in one order, and crashes lose no whole line."""

from __future__ import annotations

import re
import threading
import zlib
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from twotower.serving.item_journal import Change, ItemJournal, JournalError

AT = datetime(2026, 1, 5, 10, 0, 0, 123456, tzinfo=UTC)
FIRST = Change(at=AT, upsert=[{"item_id": "s3", "price": 9.5, "tags": ["a", None]}])
SECOND = Change(at=AT, remove=["s8", 2**60])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "shop.journal"


def journal(path: Path, bundle: str = "shop") -> ItemJournal:
    return ItemJournal(path, bundle=bundle)


def written(path: Path, *changes: Change) -> bytes:
    for change in changes:
        journal(path).append(change)
    return path.read_bytes()


def test_there_is_none_yet(path: Path) -> None:
    empty = journal(path)
    assert (list(empty.read().changes), empty.read().afresh) == ([], False)
    assert not path.parent.exists()


def test_another_process_reads_what_one_writes(path: Path) -> None:
    one, other = journal(path), journal(path)
    assert list(one.append(FIRST).changes) == [FIRST]
    assert list(other.read().changes) == [FIRST]
    assert list(other.append(SECOND).changes) == [SECOND]
    assert list(one.read().changes) == [SECOND]
    assert list(one.read().changes) == list(other.read().changes) == []
    assert list(journal(path).read().changes) == [FIRST, SECOND]


def test_who_writes_first_reads_what_he_missed(path: Path) -> None:
    one, other = journal(path), journal(path)
    one.append(FIRST)
    assert list(other.append(SECOND).changes) == [FIRST, SECOND]


def test_the_form_of_a_line(path: Path) -> None:
    header, line, end = written(path, FIRST).split(b"\n")
    assert end == b""
    assert header[9:] == b'{"format": 1, "bundle": "shop"}'
    assert line[9:] == (
        b'{"at": "2026-01-05T10:00:00.123456+00:00", "upsert": [{"item_id": "s3", "price": 9.5, '
        b'"tags": ["a", null]}]}'
    )
    assert [f"{zlib.crc32(text[9:]):08x} ".encode() for text in (header, line)] == [
        header[:9],
        line[:9],
    ]


def test_times_become_text(path: Path) -> None:
    written(path, Change(at=AT, upsert=[{"item_id": 1, "day": date(2026, 1, 5), "at": AT}]))
    (change,) = journal(path).read().changes
    assert change.upsert == [{"item_id": 1, "day": "2026-01-05", "at": AT.isoformat()}]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_what_is_no_json_is_not_written(path: Path, value: object) -> None:
    one = journal(path)
    with pytest.raises(ValueError, match="JSON"):
        one.append(Change(at=AT, upsert=[{"item_id": 1, "x": value}]))
    assert not path.exists()


def test_a_line_that_was_torn_anywhere_does_not_count_and_is_cut_off(path: Path) -> None:
    whole = written(path, FIRST, SECOND)
    before = len(whole) - len(SECOND.to_line())
    for length in range(before, len(whole)):
        path.write_bytes(whole[:length])
        reader, writer = journal(path), journal(path)
        assert list(reader.read().changes) == [FIRST]
        writer.append(SECOND)
        assert path.read_bytes() == whole
        assert list(reader.read().changes) == [SECOND]


@pytest.mark.parametrize("torn", [b"\0" * 40 + b"\n", b"00000000 {}\n", b"\n", b"nonsense\n"])
def test_a_last_line_of_nonsense_is_torn_too(path: Path, torn: bytes) -> None:
    whole = written(path, FIRST)
    path.write_bytes(whole + torn)
    assert list(journal(path).read().changes) == [FIRST]
    assert written(path, SECOND) == whole + SECOND.to_line()
    assert list(journal(path).read().changes) == [FIRST, SECOND]


def test_damage_in_the_middle_is_an_error_and_stays(path: Path) -> None:
    whole = written(path, FIRST, SECOND)
    start = whole.index(b"\n") + 1
    damaged = whole[: start + 30] + b"X" + whole[start + 31 :]
    path.write_bytes(damaged)
    message = f"^{re.escape(str(path))}: damaged at byte {start}, with whole lines behind it"
    for call in (journal(path).read, lambda: journal(path).append(FIRST)):
        with pytest.raises(JournalError, match=message):
            call()
    assert path.read_bytes() == damaged


def test_another_bundle(path: Path) -> None:
    written(path, FIRST)
    expected = (
        "is a journal of {'format': 1, 'bundle': 'shop'}, expected one of {'format': 1, 'bundle': "
        "'books'}"
    )
    with pytest.raises(JournalError, match=re.escape(expected)):
        journal(path, "books").read()
    with pytest.raises(JournalError, match=re.escape(expected)):
        journal(path, "books").append(SECOND)


def test_compacted(path: Path) -> None:
    one, follower = journal(path), journal(path)
    one.append(FIRST)
    one.append(SECOND)
    follower.read()
    third = Change(at=AT, remove=["s9"])
    journal(path).append(third)  # which `one` has not read
    one.compact([SECOND])
    for reader in (one, follower):
        read = reader.read()
        assert (list(read.changes), read.afresh) == ([SECOND, third], True)
        assert (list(reader.read().changes), reader.read().afresh) == ([], False)
    assert [p.name for p in path.parent.iterdir() if p.name != path.name] == ["shop.journal.lock"]


def test_deleted(path: Path) -> None:
    one = journal(path)
    one.append(FIRST)
    path.unlink()
    assert one.read().afresh
    assert not one.read().afresh
    read = one.append(SECOND)
    assert list(read.changes) == [SECOND]
    assert list(journal(path).read().changes) == [SECOND]


def test_many_writers_lose_nothing(path: Path) -> None:
    """Forty changes by four writers; each reads all of them once and in the order of the file."""
    seen: list[list[str]] = [[] for _ in range(4)]

    def work(number: int) -> None:
        own = journal(path)
        for turn in range(10):
            for change in own.append(Change(at=AT, remove=[f"{number}-{turn}"])).changes:
                seen[number] += change.remove

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    order = [item for change in journal(path).read().changes for item in change.remove]
    assert sorted(order) == sorted(f"{n}-{t}" for n in range(4) for t in range(10))
    assert all(items == order[: len(items)] for items in seen)


def test_a_write_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = journal(path)
    whole = written(path, FIRST)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("twotower.serving.item_journal.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            one.append(SECOND)
        with pytest.raises(OSError, match="No space left"):
            one.compact([])
    assert path.read_bytes() == whole
    assert list(one.append(SECOND).changes) == [FIRST, SECOND]  # what another wrote is not lost
    assert [p.name for p in path.parent.iterdir()] != []
    assert not list(path.parent.glob(".*"))
