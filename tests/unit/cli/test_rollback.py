"""`twotower rollback`: back to the version before, and no further than one can."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from twotower.cli.main import main
from twotower.export.bundle import open_bundle
from twotower.export.manifest import MANIFEST, read_manifest
from twotower.export.writer import bundle_writer, publish, published
from twotower.serving.recommender import Recommender


@pytest.fixture
def versions(tiny_run, tmp_path: Path) -> list[Path]:
    """Three versions of one bundle; the first two were published, the second one is."""
    made = (tiny_run.bundle / "current").resolve()
    found = []
    for _ in range(3):
        with bundle_writer(tmp_path / "bundles", "shop") as writer:
            ignored = shutil.ignore_patterns(MANIFEST)
            shutil.copytree(made, writer.folder, ignore=ignored, dirs_exist_ok=True)
            facts = replace(read_manifest(made), name="shop", version=writer.version)
            found.append(writer.finish(facts).resolve())
    for version in found[:2]:
        publish(version)
    return found


def rollback(version: Path, *words: str) -> int:
    return main(["rollback", f"bundle={version.parent}", *words])


def test_the_version_before_answers_again(versions, capsys) -> None:
    old, bad, _ = versions
    assert rollback(bad) == 0
    assert published(bad.parent) == old
    assert capsys.readouterr().out == f"published: {old}\nkept: {bad}\n"
    again = open_bundle(bad.parent)
    assert again.manifest.version == old.name
    assert len(Recommender(again).recommend(user="u000003", k=3)) == 3
    assert open_bundle(bad).manifest.version == bad.name


def test_there_is_no_version_before_the_first(versions, capsys) -> None:
    old, bad, other = versions
    assert rollback(bad, "quiet=true") == 0
    assert rollback(bad) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"before {old.name}; other versions: {bad.name}, {other.name}; version=<" in said.err
    assert published(bad.parent) == old


def test_a_version_can_be_named(versions, capsys) -> None:
    _, bad, other = versions
    assert rollback(bad, f"version={other.name}", "quiet=true") == 0
    assert published(bad.parent) == other
    assert rollback(bad, "version=2020-01-01_00-00-00") == 2
    assert "2020-01-01_00-00-00: no bundle here" in capsys.readouterr().err
    assert published(bad.parent) == other


def test_a_damaged_version_is_not_published(versions, capsys) -> None:
    old, bad, _ = versions
    with (old / "popular.npy").open("ab") as file:
        file.write(b"x")
    assert rollback(bad) == 2
    assert "popular.npy" in capsys.readouterr().err
    assert published(bad.parent) == bad
