"""The manifest: round trip, and no byte of it can be changed."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from twotower.export.manifest import (
    BundleError,
    Manifest,
    file_digests,
    read_manifest,
    tower_hash,
)

SAMPLE = Manifest(
    format=4,
    name="world",
    version="2026-01-02_03-04-05",
    created="2026-01-02T03:04:05+00:00",
    stages=("retrieval", "ranking"),
    metric="cosine",
    dim=8,
    tower_hash="ab12",
    feature_digest="cd34",
    calibration={"negative_rate": 0.1, "scale": 1.5, "bias": -0.25},
    num_candidates=100,
    retrieval_score=True,
    ranker_precision="float32",
    remove_seen=False,
    counts={"items": 5, "users": 3, "events": None},
    index="flat",
    prepared={"folder": "/data/ö", "fingerprint": "ef56"},
    figures={"retrieval/test/recall@100": 1 / 3},
    gates=[{"name": "parity", "value": 1e-7, "passed": True}],
    files={"popular.npy": "0123"},
)


def write(folder: Path, manifest: Manifest = SAMPLE) -> Path:
    path = folder / "manifest.json"
    path.write_bytes(manifest.to_bytes())
    return path


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert read_manifest(tmp_path) == SAMPLE
    document = json.loads(path.read_text())
    assert document["stages"] == ["retrieval", "ranking"]
    assert document["files"] == {"popular.npy": "0123"}


def test_a_figure_that_is_no_number_becomes_null(tmp_path: Path) -> None:
    figures = {"a/test/x": float("nan"), "a/test/y": float("inf"), "a/test/z": 2.0}
    write(tmp_path, replace(SAMPLE, figures=figures))
    assert read_manifest(tmp_path).figures == {"a/test/x": None, "a/test/y": None, "a/test/z": 2.0}


def test_every_changed_byte_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"manifest\.json: "):
            read_manifest(tmp_path)
    path.write_bytes(content)
    assert read_manifest(tmp_path) == SAMPLE


@pytest.mark.parametrize("suffix", [b" ", b"\n", b"{}"])
def test_bytes_at_the_end_are_refused(tmp_path: Path, suffix: bytes) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes() + suffix)
    with pytest.raises(BundleError, match=r"changed since it was written|not readable JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("digest", ["", None, 7])
def test_a_manifest_without_a_digest_is_refused(tmp_path: Path, digest: object) -> None:
    path = write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": digest}, indent=1))
    with pytest.raises(BundleError, match="changed since it was written; export the run again"):
        read_manifest(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path, replace(SAMPLE, format=7))
    with pytest.raises(BundleError, match="format version 7, this release reads 4"):
        read_manifest(tmp_path)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle here \(no manifest\.json\)"):
        read_manifest(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text("{")
    with pytest.raises(BundleError, match="not readable JSON"):
        read_manifest(tmp_path)
    path.write_text("[]")
    with pytest.raises(BundleError, match="format version None"):
        read_manifest(tmp_path)


def test_digests_of_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".hidden").write_bytes(b"two")
    (tmp_path / "a.npy").write_bytes(b"one")
    (tmp_path / "manifest.json").write_bytes(b"not counted")
    assert file_digests(tmp_path) == {
        "a.npy": sha256(b"one").hexdigest(),
        "b/.hidden": sha256(b"two").hexdigest(),
    }


def test_tower_hash_tells_the_towers_apart() -> None:
    assert tower_hash("aa", "bb") != tower_hash("bb", "aa")
    assert tower_hash("aa", "bb") == tower_hash("aa", "bb")
