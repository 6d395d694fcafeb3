"""A bundle as a Triton model repository: where everything lies, versions, and what is refused."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.triton_messages import parse
from twotower.export import triton
from twotower.export.build import ExportResult
from twotower.export.bundle import open_bundle
from twotower.export.manifest import BundleError, read_manifest
from twotower.export.triton import repository_folder, triton_version, write_repository

MODELS = ("query_tower", "item_tower", "ranker", "recommender")


@pytest.fixture
def bundle(exported: ExportResult, tmp_path: Path) -> Path:
    """A version folder of its own; its name is the version that its manifest names."""
    folder = tmp_path / "bundles" / "world" / exported.folder.name
    shutil.copytree(exported.folder, folder)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def later(bundle: Path, version: str, resign) -> Path:
    """Another version of the same bundle."""
    folder = bundle.parent / version
    shutil.copytree(bundle, folder)
    resign(folder, version=version)
    return folder


def test_layout(bundle: Path, tmp_path: Path) -> None:
    written = write_repository(bundle, tmp_path / "repository")
    assert written.models == MODELS
    number = str(written.version)
    assert {path.name for path in written.folder.iterdir()} == set(MODELS)
    for model in MODELS:
        assert {path.name for path in (written.folder / model).iterdir()} == {
            "config.pbtxt",
            number,
        }
        config = parse((written.folder / model / "config.pbtxt").read_text(encoding="utf-8"))
        assert config.name == model
        assert (written.folder / model / number / config.default_model_filename).is_file()
        if model != "recommender":
            found = (written.folder / model / number / "model.onnx").read_bytes()
            assert found == (bundle / f"{model}.onnx").read_bytes()
    assert tree(written.folder / "recommender" / number / "bundle") == tree(bundle)
    assert {path.name for path in tmp_path.iterdir()} == {"bundles", "repository"}


def test_the_folder_can_be_moved(bundle: Path, tmp_path: Path) -> None:
    written = write_repository(bundle, tmp_path / "repository")
    version = read_manifest(bundle).version
    moved = shutil.move(written.folder, tmp_path / "elsewhere")
    shutil.rmtree(bundle.parent)
    own = Path(moved) / "recommender" / str(written.version) / "bundle"
    assert open_bundle(own).manifest.version == version
    assert not any(path.is_symlink() for path in Path(moved).rglob("*"))
    texts = [
        path.read_text() for path in Path(moved).rglob("*") if path.suffix in (".py", ".pbtxt")
    ]
    assert len(texts) == 5
    assert all(str(tmp_path) not in text for text in texts)


def test_files_are_shared_with_the_bundle_where_the_disk_can(bundle: Path, tmp_path: Path) -> None:
    written = write_repository(bundle, tmp_path / "repository")
    own = written.folder / "recommender" / str(written.version) / "bundle" / "item_vectors.npy"
    assert own.samefile(bundle / "item_vectors.npy")


def test_and_copied_where_it_cannot(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuses)
    written = write_repository(bundle, tmp_path / "repository")
    own = written.folder / "recommender" / str(written.version) / "bundle"
    assert not (own / "item_vectors.npy").samefile(bundle / "item_vectors.npy")
    assert tree(own) == tree(bundle)


def test_another_version_comes_beside_the_first(bundle: Path, tmp_path: Path, resign) -> None:
    repository = tmp_path / "repository"
    first = write_repository(bundle, repository)
    before = {k: v for k, v in tree(repository).items() if str(first.version) in k}
    second = write_repository(later(bundle, "2999-01-02_03-04-05", resign), repository)
    assert second.version == 299901020304050001 > first.version
    for model in MODELS:
        folders = {path.name for path in (repository / model).iterdir() if path.is_dir()}
        assert folders == {str(first.version), str(second.version)}
    after = tree(repository)
    assert {name: after[name] for name in before} == before
    kept = repository / "recommender" / str(second.version) / "bundle"
    assert open_bundle(kept).manifest.version == "2999-01-02_03-04-05"


def test_a_version_is_written_once(bundle: Path, tmp_path: Path) -> None:
    written = write_repository(bundle, tmp_path / "repository")
    before = tree(written.folder)
    with pytest.raises(ValueError, match=rf"has version {written.version} of query_tower, item_to"):
        write_repository(bundle, written.folder)
    assert tree(written.folder) == before


def test_without_a_ranker(bundle: Path, tmp_path: Path, resign) -> None:
    (bundle / "ranker.onnx").unlink()
    resign(bundle, stages=("retrieval",))
    written = write_repository(bundle, tmp_path / "repository")
    assert written.models == ("query_tower", "item_tower", "recommender")


def test_without_towers_nothing_recommends(bundle: Path, tmp_path: Path, resign) -> None:
    for name in ("query_tower.onnx", "item_tower.onnx"):
        (bundle / name).unlink()
    resign(bundle, stages=("ranking",), tower_hash=None)
    written = write_repository(bundle, tmp_path / "repository")
    assert written.models == ("ranker",)
    assert {path.name for path in written.folder.iterdir()} == {"ranker"}


def test_a_failure_leaves_nothing_and_leftovers_are_removed(
    bundle: Path, tmp_path: Path, monkeypatch
) -> None:
    leftover = tmp_path / ".staging-repository-world" / "ranker"
    leftover.mkdir(parents=True)
    repository = tmp_path / "repository"
    moved = triton._move

    def stops(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(triton, "_move", stops)
    with pytest.raises(OSError, match="No space left"):
        write_repository(bundle, repository)
    assert {path.name for path in tmp_path.iterdir()} == {"bundles"}
    monkeypatch.setattr(triton, "_move", moved)
    leftover.mkdir(parents=True)
    write_repository(bundle, repository)
    assert {path.name for path in tmp_path.iterdir()} == {"bundles", "repository"}


def test_one_export_of_a_name_at_a_time(bundle: Path, tmp_path: Path) -> None:
    with (bundle.parent / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match="another export of this name is running"):
            write_repository(bundle, tmp_path / "repository")


def test_a_changed_config_comes_in_one_step(
    bundle: Path, tmp_path: Path, resign, monkeypatch
) -> None:
    """A reader finds the old file or the new one, and the version that the new one is about."""
    repository = tmp_path / "repository"
    write_repository(bundle, repository)
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    second = write_repository(later(bundle, "2999-01-02_03-04-05", resign), repository)
    assert seen == [str(second.version), "config.pbtxt"] * len(MODELS)


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("2026-11-25_14-01-13", 202611251401130001),
        ("2026-11-25_14-01-13-0002", 202611251401130002),
    ],
)
def test_versions_are_numbers(version: str, number: int) -> None:
    assert triton_version(version) == number
    assert number < 2**63


def test_later_versions_are_greater() -> None:
    versions = [
        "2026-11-25_14-01-13",
        "2026-11-25_14-01-13-0002",
        "2026-11-25_14-01-13-0010",
        "2026-11-25_14-01-14",
        "2026-12-01_00-00-00",
        "2027-01-01_00-00-00",
    ]
    numbers = [triton_version(version) for version in versions]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("version", ["", "1", "2026-11-25", "2026-11-25_14-01-13-2", "x" * 19])
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(ValueError, match="must be a time such as 2026-11-25_14-01-13, got"):
        triton_version(version)


def test_where_the_repository_goes(tmp_path: Path) -> None:
    home = tmp_path / "bundles" / "world"
    assert repository_folder(False, home) is None
    assert repository_folder(None, home) is None
    assert repository_folder(True, home) == home / "triton"
    assert repository_folder("models", home) == Path("models")


@pytest.mark.parametrize("given", ["", 3, 1.5, [True]])
def test_what_is_no_folder(given: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="triton: must be true, false or a folder, got"):
        repository_folder(given, tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"triton: must be a folder, .*file is a file"):
        repository_folder(str(tmp_path / "file"), tmp_path)
