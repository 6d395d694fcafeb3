"""Staging, renaming and publishing of versions."""

from __future__ import annotations

import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from twotower.export import writer as module
from twotower.export.manifest import PUBLISHED, BundleError, Manifest, read_manifest
from twotower.export.writer import bundle_writer, publish, published, published_before

FACTS = Manifest(
    format=4,
    name="world",
    version="2026-01-01_00-00-00",
    created="",
    stages=("ranking",),
    metric=None,
    ranker_precision="float32",
    dim=None,
    tower_hash=None,
    feature_digest="",
    calibration={"negative_rate": 1.0, "scale": 1.0, "bias": 0.0},
    num_candidates=None,
    retrieval_score=False,
    remove_seen=False,
    counts={},
    index=None,
    prepared={},
    figures={},
    gates=[],
    files={},
)


class Frozen(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def write(root: Path, content: bytes = b"x") -> Path:
    with bundle_writer(root, "world") as writer:
        (writer.folder / "sub").mkdir()
        (writer.folder / "sub" / "file.npy").write_bytes(content)
        return writer.finish(FACTS)


def entries(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()} - {".lock", ".published"}


def test_a_finished_version_lies_under_its_time_with_all_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "datetime", Frozen)
    folder = write(tmp_path)
    assert folder == tmp_path / "world" / "2026-01-02_03-04-05"
    assert entries(tmp_path / "world") == {"2026-01-02_03-04-05"}
    assert list(read_manifest(folder).files) == ["sub/file.npy"]


def test_versions_of_one_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "datetime", Frozen)
    names = [write(tmp_path).name for _ in range(11)]
    assert names[:2] == ["2026-01-02_03-04-05", "2026-01-02_03-04-05-0002"]
    assert names == sorted(names)


def test_nothing_stays_of_an_export_that_fails(tmp_path: Path) -> None:
    def fails() -> None:
        with bundle_writer(tmp_path, "world") as writer:
            (writer.folder / "half.npy").write_bytes(b"x")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        fails()
    assert entries(tmp_path / "world") == set()


def test_nothing_stays_of_an_export_that_is_not_finished(tmp_path: Path) -> None:
    with bundle_writer(tmp_path, "world") as writer:
        (writer.folder / "half.npy").write_bytes(b"x")
    assert entries(tmp_path / "world") == set()


def test_leftovers_of_a_killed_export_are_removed(tmp_path: Path) -> None:
    home = tmp_path / "world"
    (home / ".staging-2020-01-01_00-00-00" / "sub").mkdir(parents=True)
    (home / ".staging-2020-01-01_00-00-00" / "sub" / "half.npy").write_bytes(b"x")
    (home / ".current-123").symlink_to("nowhere")
    kept = home / "2020-01-01_00-00-00"
    kept.mkdir()
    folder = write(tmp_path)
    assert entries(home) == {kept.name, folder.name}


def test_one_export_of_a_name_at_a_time(tmp_path: Path) -> None:
    with (
        bundle_writer(tmp_path, "world"),
        pytest.raises(BundleError, match="another export of this name is running"),
        bundle_writer(tmp_path, "world"),
    ):
        pass
    with bundle_writer(tmp_path, "world"), bundle_writer(tmp_path, "other"):
        pass
    write(tmp_path)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "current", ".."])
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(BundleError, match="must be the name of a folder that is not hidden"),
        bundle_writer(tmp_path, name),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_publish_moves_forward_and_back(tmp_path: Path) -> None:
    first, second = write(tmp_path), write(tmp_path)
    home = tmp_path / "world"
    assert published(home) is None
    assert publish(first) is None
    assert published(home) == first.resolve()
    assert publish(second) == first.resolve()
    assert publish(first) == second.resolve()
    assert os.readlink(home / "current") == first.name  # relative: the folder may be moved
    assert entries(home) == {first.name, second.name, "current"}


def test_publishing_current_again_changes_nothing(tmp_path: Path) -> None:
    first = write(tmp_path)
    publish(first)
    assert publish(tmp_path / "world" / "current") == first.resolve()
    assert published(tmp_path / "world") == first.resolve()


def test_a_link_to_nowhere_is_no_published_version(tmp_path: Path) -> None:
    first = write(tmp_path)
    (tmp_path / "world" / "current").symlink_to("gone")
    assert published(tmp_path / "world") is None
    assert publish(first) is None
    assert published(tmp_path / "world") == first.resolve()


def test_only_versions_can_be_published(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with pytest.raises(BundleError, match="no version of a bundle, so it cannot be published"):
        publish(tmp_path / "world")
    staging = folder.rename(folder.with_name(".staging-x"))
    with pytest.raises(BundleError, match="no version of a bundle"):
        publish(staging)


def test_a_folder_called_current_is_not_overwritten(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (tmp_path / "world" / "current").mkdir()
    with pytest.raises(BundleError, match="current: not a link; remove it"):
        publish(folder)


def test_readers_always_find_a_whole_version(tmp_path: Path) -> None:
    versions = [write(tmp_path, b"first"), write(tmp_path, b"second")]
    publish(versions[0])
    link = tmp_path / "world" / "current" / "sub" / "file.npy"
    stop = threading.Event()

    def move() -> None:
        for turn in range(300):
            publish(versions[turn % 2])
        stop.set()

    thread = threading.Thread(target=move)
    thread.start()
    found = set()
    while not stop.is_set():
        found.add(link.read_bytes())
    thread.join()
    assert found <= {b"first", b"second"}
    assert entries(tmp_path / "world") == {versions[0].name, versions[1].name, "current"}


def go_back(home: Path) -> Path:
    publish(published_before(home))
    return published(home)


def test_going_back_is_to_what_was_published_before(tmp_path: Path) -> None:
    """Published: a, b, then d; c was refused and is never gone back to."""
    a, b, c, d = (write(tmp_path) for _ in range(4))
    home = tmp_path / "world"
    for version in (a, b, d):
        publish(version)
    assert (home / c.name).is_dir()
    assert go_back(home) == b.resolve()
    assert go_back(home) == a.resolve()
    with pytest.raises(BundleError, match=f"before {a.name}; other versions: {b.name}, {c.name}"):
        go_back(home)
    assert published(home) == a.resolve()


def test_what_was_gone_back_from_is_forgotten_with_the_next_publication(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path) for _ in range(3))
    home = tmp_path / "world"
    publish(a)
    publish(b)
    assert go_back(home) == a.resolve()
    publish(c)
    assert (home / PUBLISHED).read_text().split() == [a.name, c.name]
    assert go_back(home) == a.resolve()


def test_a_version_that_was_removed_is_passed_over(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path) for _ in range(3))
    for version in (a, b, c):
        publish(version)
    shutil.rmtree(b)
    assert go_back(tmp_path / "world") == a.resolve()


def test_versions_from_before_publications_were_noted(tmp_path: Path) -> None:
    a, b = write(tmp_path), write(tmp_path)
    home = tmp_path / "world"
    publish(a)
    (home / PUBLISHED).unlink()
    with pytest.raises(BundleError, match=f"before {a.name}; other versions: {b.name}; version=<"):
        published_before(home)
    publish(b)
    assert published_before(home) == home / a.name
    (home / "current").unlink()
    with pytest.raises(BundleError, match="published before any; other versions"):
        published_before(home)


def test_a_publication_that_was_noted_and_then_killed_is_none(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path) for _ in range(3))
    home = tmp_path / "world"
    publish(a)
    publish(b)
    (home / PUBLISHED).write_text("\n".join([a.name, b.name, c.name]))
    assert published_before(home) == home / a.name
