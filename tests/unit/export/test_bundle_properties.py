"""What holds of every change to a bundle: it is seen."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twotower.export.bundle import open_bundle
from twotower.export.manifest import FORMAT, BundleError, Manifest, read_manifest

figures = st.dictionaries(st.text(max_size=8), st.floats() | st.none(), max_size=5)


@given(figures, st.text(max_size=10), st.integers(1, 10**9))
def test_a_manifest_is_read_as_it_was_written(tmp_path_factory, figures, run, num) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    manifest = Manifest(
        format=FORMAT,
        name="a",
        version="b",
        created="2026-01-01T00:00:00+00:00",
        stages=("retrieval",),
        metric="cosine",
        dim=8,
        tower_hash="c",
        feature_digest="d",
        calibration=None,
        num_candidates=num,
        retrieval_score=False,
        ranker_precision=None,
        remove_seen=True,
        counts={"items": num},
        index=None,
        prepared={"folder": run, "fingerprint": "e"},
        figures=figures,
        gates=[],
        files={"x": "y"},
        run=run,
    )
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    found = read_manifest(folder)
    for field in fields(Manifest):
        if field.name != "figures":
            assert getattr(found, field.name) == getattr(manifest, field.name)
    assert found.figures.keys() == figures.keys()
    again = replace(manifest, figures=found.figures)
    assert again.to_bytes() == manifest.to_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_of_a_bundle_is_overlooked(tiny_run, data) -> None:
    """A byte that is another one, missing or added, in any file; a file more or less."""
    version = (tiny_run.bundle / "current").resolve()
    names = sorted(str(p.relative_to(version)) for p in version.rglob("*") if p.is_file())
    copy = tiny_run.work / "changed"
    if not copy.exists():
        shutil.copytree(version, copy)
    path = copy / data.draw(st.sampled_from(names))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    what = data.draw(st.sampled_from(("other", "missing", "added", "cut", "gone", "more")))
    further = path.with_name("another.npy")
    new = {
        "other": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
        "missing": content[:place] + content[place + 1 :],
        "added": content[:place] + b" " + content[place:],
        "cut": content[:place],
    }
    try:
        if what == "gone":
            path.unlink()
        elif what == "more":
            further.write_bytes(content)
        else:
            path.write_bytes(new[what])
        with pytest.raises(BundleError) as caught:
            open_bundle(copy)
        said = str(caught.value)
        assert Path(path).name in said or further.name in said or "no bundle here" in said
    finally:
        further.unlink(missing_ok=True)
        path.write_bytes(content)
    assert open_bundle(copy).manifest.version == version.name
