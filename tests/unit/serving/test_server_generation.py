"""A bundle is swapped when its link moves, and never for one that is broken."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bundle_versions import copy_home, further_version
from twotower.export.manifest import BundleError
from twotower.export.writer import publish
from twotower.serving.server import generation as module
from twotower.serving.server.generation import Generation, Watcher, open_generation


@dataclass
class Seen:
    """What a watcher has said."""

    generations: list[Generation] = field(default_factory=list)
    refusals: list[bool] = field(default_factory=list)


@pytest.fixture
def home(tiny_run, tmp_path: Path) -> Path:
    return copy_home(tiny_run.bundle, tmp_path)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def watcher(home: Path, seen: Seen):
    """One that looks when it is told to."""
    first = open_generation(home)
    watcher = Watcher(
        *(home, open_generation, first),
        seconds=3600,
        swap=seen.generations.append,
        told=seen.refusals.append,
    )
    yield watcher
    watcher.close()


def title(generation: Generation) -> str:
    return generation.recommender.recommend(k=1)[0].title


def test_nothing_happens_while_the_link_stays(watcher: Watcher, seen: Seen) -> None:
    watcher.look()
    assert seen == Seen()


def test_forth_and_back(watcher: Watcher, seen: Seen, home: Path) -> None:
    old = (home / "current").resolve()
    new = further_version(home, "B: ")
    watcher.look()
    assert seen == Seen()  # written, not published
    publish(new)
    watcher.look()
    watcher.look()
    publish(old)
    watcher.look()
    assert [one.version for one in seen.generations] == [new.name, old.name]
    assert [one.folder for one in seen.generations] == [new, old]
    assert [title(one).startswith("B: ") for one in seen.generations] == [True, False]
    assert seen.refusals == []


def test_a_damaged_bundle_is_refused_once_and_said_so(
    watcher: Watcher, seen: Seen, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = (home / "current").resolve()
    new = further_version(home, "B: ")
    with (new / "ranker.onnx").open("ab") as file:
        file.write(b"x")
    publish(new)
    with caplog.at_level(logging.ERROR):
        watcher.look()
        watcher.look()
    assert seen == Seen(refusals=[True])
    (record,) = caplog.records
    assert f"{new} refused; {old} is served further" in record.getMessage()
    assert "changed since it was written" in caplog.text
    publish(old)  # rolled back: what is served is what the link says again
    watcher.look()
    assert seen == Seen(refusals=[True, False])
    mended = further_version(home, "C: ")
    publish(mended)
    watcher.look()
    assert [one.version for one in seen.generations] == [mended.name]
    assert seen.refusals == [True, False]


def test_a_bundle_that_cannot_answer_is_refused(
    watcher: Watcher, seen: Seen, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no memory")

    publish(further_version(home, "B: "))
    monkeypatch.setattr(module, "Recommender", fails)
    watcher.look()
    assert seen == Seen(refusals=[True])


def test_a_link_that_is_gone_and_comes_back(watcher: Watcher, seen: Seen, home: Path) -> None:
    old = (home / "current").resolve()
    (home / "current").unlink()
    watcher.look()
    watcher.look()
    assert seen == Seen(refusals=[True])
    publish(old)
    watcher.look()
    assert seen == Seen(refusals=[True, False])


def test_the_thread_looks(home: Path, seen: Seen) -> None:
    new = further_version(home, "B: ")
    first = open_generation(home)
    publish(new)
    watcher = Watcher(
        *(home, open_generation, first),
        seconds=0.01,
        swap=seen.generations.append,
        told=seen.refusals.append,
    )
    while not seen.generations:
        watcher._stop.wait(0.01)
    watcher.close()
    assert [one.version for one in seen.generations] == [new.name]


def test_the_old_one_goes_on_and_is_freed_when_nobody_holds_it(home: Path) -> None:
    first = open_generation(home)
    before = title(first)
    new = further_version(home, "B: ")
    publish(new)
    second = open_generation(home)
    assert (title(first), title(second)) == (before, f"B: {before}")
    held = weakref.ref(first.recommender)
    gc.disable()
    try:
        del first
        assert held() is None  # without the collector: its files are let go at once
    finally:
        gc.enable()


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        open_generation(tmp_path)
