"""Reading a bundle: what comes out is what went in, and nothing that was tampered with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twotower.data.prepared import Prepared, checksum
from twotower.export.build import ExportResult
from twotower.export.bundle import Golden, open_bundle, resolve
from twotower.export.manifest import BundleError, read_manifest


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_went_in_comes_out(exported: ExportResult, prepared: Prepared) -> None:
    bundle = open_bundle(exported.folder)
    events, users, items = prepared.require_events()
    assert bundle.folder == exported.folder.resolve()
    assert bundle.items is not None
    assert bundle.users is not None
    assert bundle.items.ids.equals(items.ids)
    assert bundle.users.ids.equals(users.ids)
    assert bundle.items.table.equals(items.table)
    assert bundle.users.table.equals(users.table)
    for found, expected in ((bundle.items, items), (bundle.users, users)):
        assert set(found.columns) == set(expected.columns)
        for name, column in expected.columns.items():
            np.testing.assert_array_equal(found.columns[name], column)
    np.testing.assert_array_equal(bundle.offsets, events.offsets)
    np.testing.assert_array_equal(bundle.item_rows, events.item_rows)
    assert bundle.item_vectors is not None
    assert bundle.item_vectors.shape == (50, 8)
    assert bundle.item_vectors.dtype == np.float32
    assert bundle.pipeline.digest() == bundle.manifest.feature_digest
    assert (bundle.query_tower, bundle.item_tower, bundle.ranker) == tuple(
        bundle.folder / f"{name}.onnx" for name in ("query_tower", "item_tower", "ranker")
    )


def test_the_index_holds_the_item_vectors(exported: ExportResult) -> None:
    bundle = open_bundle(exported.folder)
    found = bundle.load_index().search(np.asarray(bundle.item_vectors), 1)
    np.testing.assert_allclose(found.scores, 1.0, atol=1e-6)
    divided = bundle.load_index(num_shards=3)
    assert divided.num_shards == 3
    again = divided.search(np.asarray(bundle.item_vectors), 1)
    np.testing.assert_array_equal(again.rows, found.rows)


def test_a_bundle_is_found_by_version_by_current_and_by_name(exported: ExportResult) -> None:
    home = exported.folder.parent
    for path in (exported.folder, home / "current", home):
        assert resolve(path) == exported.folder.resolve()


def test_a_bundle_that_is_open_does_not_move_with_current(copy: Path) -> None:
    link = copy.parent / "current"
    link.symlink_to(copy.name)
    bundle = open_bundle(link)
    link.unlink()
    assert bundle.golden().query_vectors is not None


def test_where_there_is_no_bundle(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere: no bundle here .*; run `twotower export"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=f"none of them published: {copy.name}"):
        open_bundle(copy.parent)
    (copy.parent / "current").symlink_to("gone")
    with pytest.raises(BundleError, match=f"none of them published: {copy.name}"):
        open_bundle(copy.parent)


def test_folders_of_killed_exports_are_not_offered(tmp_path: Path) -> None:
    (tmp_path / ".staging-x").mkdir()
    (tmp_path / ".staging-x" / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="no bundle here") as caught:
        open_bundle(tmp_path)
    assert "staging" not in str(caught.value)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_changed_byte_in_any_file_is_refused_by_name(copy: Path, place: str) -> None:
    paths = files_of(copy)
    assert len(paths) > 20
    for path in paths:
        content = path.read_bytes()
        where = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}[place]
        damaged = bytearray(content)
        damaged[where] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BundleError) as caught:
            open_bundle(copy)
        assert str(path) in str(caught.value)
        path.write_bytes(content)
    open_bundle(copy)


def test_any_missing_file_is_refused_by_name(copy: Path) -> None:
    for path in files_of(copy):
        aside = copy.parent / "aside"
        path.rename(aside)
        expected = "manifest.json" if path.name == "manifest.json" else f"{path}: missing"
        with pytest.raises(BundleError) as caught:
            open_bundle(copy)
        assert expected in str(caught.value)
        aside.rename(path)
    open_bundle(copy)


@pytest.mark.parametrize("name", ["extra.npy", ".hidden", "items/price.npy.bak", "new/file"])
def test_a_file_that_is_not_listed_is_refused_by_name(copy: Path, name: str) -> None:
    path = copy / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(BundleError, match=f"{path}: not listed in manifest.json"):
        open_bundle(copy)


def test_a_renamed_file_is_missing_and_not_listed(copy: Path) -> None:
    (copy / "popular.npy").rename(copy / "unpopular.npy")
    with pytest.raises(BundleError) as caught:
        open_bundle(copy)
    assert [problem.rsplit("/", 1)[1] for problem in caught.value.problems] == [
        "popular.npy: missing",
        "unpopular.npy: not listed in manifest.json",
    ]


@pytest.mark.parametrize("name", ["ranker.onnx", "users", "new"])
def test_a_link_is_refused_by_name_even_to_the_very_same_bytes(copy: Path, name: str) -> None:
    """A folder behind a link is no part of what is digested."""
    aside = copy.parent / "aside"
    if (copy / name).exists():
        (copy / name).rename(aside)
    else:
        aside.mkdir()
    (copy / name).symlink_to(aside, target_is_directory=aside.is_dir())
    with pytest.raises(BundleError) as caught:
        open_bundle(copy)
    [problem] = caught.value.problems
    assert problem.startswith(f"{copy / name}: is a link")


@pytest.mark.parametrize("key", ["name", "version"])
@pytest.mark.parametrize("value", ["../shop", "/etc", "a/../../b", "", ".", "a\\b", "a\0b", 3])
def test_a_manifest_names_no_folder_outside(copy: Path, key: str, value: object) -> None:
    """Reports, stores and traffic are written below folders of these names."""
    manifest = replace(read_manifest(copy), **{key: value})
    (copy / "manifest.json").write_bytes(manifest.to_bytes())
    with pytest.raises(BundleError, match=f"`{key}` names folders and must be a relative path"):
        open_bundle(copy)


def test_a_manifest_may_name_a_folder_in_a_folder(copy: Path) -> None:
    manifest = replace(read_manifest(copy), name="team/shop")
    (copy / "manifest.json").write_bytes(manifest.to_bytes())
    assert open_bundle(copy).manifest.name == "team/shop"


def test_a_manifest_that_lists_files_outside_opens_none_of_them(copy: Path) -> None:
    manifest = read_manifest(copy)
    (copy.parent / "outside.npy").write_bytes(b"x")
    for name in ("../outside.npy", str(copy.parent / "outside.npy")):
        files = {**manifest.files, name: checksum(copy.parent / "outside.npy")}
        (copy / "manifest.json").write_bytes(replace(manifest, files=files).to_bytes())
        with pytest.raises(BundleError, match="missing"):
            open_bundle(copy)


def test_an_index_of_another_tower_is_refused(copy: Path, resign: Callable[..., None]) -> None:
    """Also where somebody has made the manifest agree with the files."""
    own = read_manifest(copy).tower_hash
    (copy / "index" / "tower.json").write_text(json.dumps({"tower_hash": "f00d"}))
    pattern = f"index: an index of the towers f00d, the manifest names {own}"
    with pytest.raises(BundleError, match=pattern) as caught:
        open_bundle(copy)
    assert "tower.json: changed since it was written" in str(caught.value)
    resign(copy)
    with pytest.raises(BundleError, match=pattern) as caught:
        open_bundle(copy)
    assert len(caught.value.problems) == 1


def test_an_index_of_another_space_is_refused(copy: Path, resign: Callable[..., None]) -> None:
    path, own = copy / "index" / "tower.json", read_manifest(copy).space
    assert own is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | {"space": "f00d"}))
    resign(copy)
    with pytest.raises(BundleError, match=f"vectors of the space f00d, the manifest names {own}"):
        open_bundle(copy)


@pytest.mark.parametrize("content", [None, "[]", "{", "{}"])
def test_an_index_that_names_no_tower_is_refused(
    copy: Path, resign: Callable[..., None], content: str | None
) -> None:
    path = copy / "index" / "tower.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    resign(copy)
    with pytest.raises(BundleError, match="an index of the towers None"):
        open_bundle(copy)


def test_towers_of_another_bundle_are_refused(copy: Path, resign: Callable[..., None]) -> None:
    own = read_manifest(copy).tower_hash
    shutil.copyfile(copy / "item_tower.onnx", copy / "query_tower.onnx")
    resign(copy)
    with pytest.raises(BundleError, match=f"towers with the digest .*, the manifest names {own}"):
        open_bundle(copy)


def test_missing_towers_are_refused(copy: Path, resign: Callable[..., None]) -> None:
    (copy / "item_tower.onnx").unlink()
    resign(copy)
    with pytest.raises(BundleError, match="towers with the digest"):
        open_bundle(copy)


def test_features_of_another_run_are_refused(copy: Path, resign: Callable[..., None]) -> None:
    path = copy / "features" / "features.json"
    document = json.loads(path.read_text())
    name, state = next((n, s) for n, s in document["state"].items() if "mean" in s)
    document["state"][name] = state | {"mean": state["mean"] + 1}
    path.write_text(json.dumps(document))
    own = read_manifest(copy).feature_digest
    resign(copy)
    with pytest.raises(BundleError, match=f"digest of the features .*manifest names {own}"):
        open_bundle(copy)


def test_another_format_is_refused(copy: Path, resign: Callable[..., None]) -> None:
    resign(copy, format=1)
    with pytest.raises(BundleError, match="format version 1, this release reads 4"):
        open_bundle(copy)


def test_without_a_retrieval_stage_there_is_no_index(
    copy: Path, resign: Callable[..., None]
) -> None:
    shutil.rmtree(copy / "index")
    for name in ("item_vectors.npy", "query_tower.onnx", "item_tower.onnx"):
        (copy / name).unlink()
    resign(copy, stages=("ranking",), tower_hash=None)
    bundle = open_bundle(copy)
    assert (bundle.query_tower, bundle.item_tower, bundle.item_vectors) == (None, None, None)
    with pytest.raises(BundleError, match="has no index; its stages are ranking"):
        bundle.load_index()


def test_golden_round_trip(tmp_path: Path) -> None:
    golden = Golden(
        context={"device": np.array([1, 2], np.int32), "time.of day": np.zeros((2, 4), np.float32)},
        logits=np.array([[0.5], [np.nan]], np.float32),
    )
    golden.save(tmp_path / "golden.npz")
    found = Golden.load(tmp_path / "golden.npz")
    assert set(found.context) == {"device", "time.of day"}
    for name, column in golden.context.items():
        np.testing.assert_array_equal(found.context[name], column)
        assert found.context[name].dtype == column.dtype
    np.testing.assert_array_equal(found.logits, golden.logits)
    assert found.user_rows is None
    assert found.candidates is None


def test_a_bundle_is_opened_without_torch(exported: ExportResult) -> None:
    script = (
        "import sys; from pathlib import Path; import twotower.export.gates\n"
        "from twotower.export.bundle import open_bundle\n"
        "from twotower.export.writer import publish\n"
        "bundle = open_bundle(Path(sys.argv[1])); bundle.golden(); bundle.load_index()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'onnxruntime')))\n"
    )
    command = [sys.executable, "-c", script, str(exported.folder)]
    assert subprocess.run(command, check=False).returncode == 0
