"""`twotower export`: runs that can be exported, gates, and what `current` points to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from twotower.cli.load_run import load_run
from twotower.cli.main import main
from twotower.export import manifest as names
from twotower.export import stages
from twotower.export.bundle import open_bundle
from twotower.export.triton import triton_version


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bundles(tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundles; further exports copy the ONNX files, whose making takes seconds."""
    shutil.copytree(tiny_run.bundle.parent, tmp_path / "bundles", symlinks=True)
    made = tiny_run.bundle / "current"

    def copied(name: str, *given: object, **options: object) -> None:
        shutil.copyfile(made / name, next(value for value in given if isinstance(value, Path)))

    monkeypatch.setattr(stages, "export_query_tower", partial(copied, names.QUERY_TOWER))
    monkeypatch.setattr(stages, "export_item_tower", partial(copied, names.ITEM_TOWER))
    monkeypatch.setattr(stages, "export_ranker", partial(copied, names.RANKER))
    return tmp_path / "bundles" / "tiny"


def export(run: Path, *overrides: str) -> int:
    fixed = ("index=flat", "index.device=cpu", "gates.max_calibration_error=null")
    return main(["export", f"run={run}", *fixed, *overrides])


def versions(home: Path) -> list[str]:
    return sorted(p.name for p in home.iterdir() if p.is_dir() and not p.is_symlink())


def test_what_was_exported_is_the_run(tiny_run) -> None:
    manifest = open_bundle(tiny_run.bundle).manifest
    assert manifest.name == "tiny"
    assert manifest.stages == ("retrieval", "ranking")
    assert manifest.retrieval_score
    assert manifest.remove_seen
    metrics = json.loads((tiny_run.run / "metrics.json").read_text())
    assert {n: manifest.figures[n] for n in metrics} == metrics


def test_a_second_export_is_published_and_printed(tiny_run, bundles: Path, capsys) -> None:
    (first,) = versions(bundles)
    assert export(tiny_run.run) == 0
    assert versions(bundles)[0] == first
    (second,) = set(versions(bundles)) - {first}
    assert (bundles / "current").resolve().name == second
    printed = capsys.readouterr().out
    assert "index_recall" in printed
    assert f"bundle: bundles/tiny/{second}" in printed
    assert "published: bundles/tiny/current" in printed
    assert "twotower recommend bundle=bundles/tiny/current user=<id>" in printed


def test_a_gate_that_says_no_leaves_current_where_it_was(tiny_run, bundles: Path, capsys) -> None:
    before = (bundles / "current").resolve()
    assert export(tiny_run.run, "gates.quality_floor=2.0") == 3
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (
        "refused: not published: quality_floor; `current` is where it was"
    )
    (line,) = [row for row in printed.out.splitlines() if "quality_floor" in row]
    assert [cell.strip() for cell in line.split("│")[1:5]] == [
        *("quality_floor", "1", "at least 2", "no")
    ]
    assert (bundles / "current").resolve() == before
    assert len(versions(bundles)) == 2  # the version stays, to be looked at
    assert not list(bundles.glob(".staging*"))
    open_bundle(bundles)


def test_a_first_export_that_is_refused_publishes_nothing(tiny_run, bundles: Path, capsys) -> None:
    assert export(tiny_run.run, "gates.quality_floor=2.0", "name=new", "+quiet=true") == 3
    assert not (bundles.parent / "new" / "current").exists()
    (version,) = versions(bundles.parent / "new")
    capsys.readouterr()
    assert main(["recommend", f"bundle={bundles.parent}/new"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {bundles.parent}/new: no bundle here")
    assert message.endswith(f"versions, none of them published: {version}\n")


def test_a_triton_repository_beside_the_bundle(tiny_run, bundles: Path, capsys) -> None:
    assert export(tiny_run.run, "triton=true") == 0
    version = (bundles / "current").resolve().name
    number = triton_version(version)
    models = ("query_tower", "item_tower", "ranker", "recommender")
    assert {path.name for path in (bundles / "triton").iterdir()} == set(models)
    own = open_bundle(bundles / "triton" / "recommender" / str(number) / "bundle")
    assert own.manifest == open_bundle(bundles).manifest
    printed = capsys.readouterr().out
    assert (
        f"Triton: bundles/tiny/triton: query_tower, item_tower, ranker, recommender "
        f"(version {number})\nnext: tritonserver --model-repository {bundles.resolve()}/triton\n"
    ) in printed
    assert export(tiny_run.run, "+quiet=true") == 0  # a folder that is no version is not in the way
    assert main(["recommend", f"bundle={bundles}", "quiet=true"]) == 0


def test_a_triton_repository_elsewhere(tiny_run, bundles: Path, tmp_path: Path) -> None:
    assert export(tiny_run.run, "triton=models/tiny", "+quiet=true") == 0
    found = {path.name for path in (tmp_path / "models" / "tiny").iterdir()}
    assert found == {"query_tower", "item_tower", "ranker", "recommender"}
    assert not (bundles / "triton").exists()


def test_what_was_not_published_goes_to_no_triton(tiny_run, bundles: Path) -> None:
    assert export(tiny_run.run, "triton=true", "gates.quality_floor=2.0", "+quiet=true") == 3
    assert not (bundles / "triton").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["triton=3"], "error: triton: must be true, false or a folder, got 3"),
        (["num_candidates=0"], "error: num_candidates must be at least 1, got 0"),
        (["name=a/b"], "error: bundle name: must be the name of a folder that is not hidden, got"),
        (["gates.min_index_recall=7"], "error: gates: `min_index_recall` must lie in [0, 1], got"),
        (["index=flatt"], "error: `index=flatt`: unknown, did you mean `flat`; valid: auto, "),
    ],
)
def test_settings_that_are_refused(tiny_run, bundles, overrides, message, capsys) -> None:
    before = sorted(bundles.parent.rglob("*"))
    assert export(tiny_run.run, *overrides, "+quiet=true") == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith(message)
    assert sorted(bundles.parent.rglob("*")) == before


def test_the_loaded_run_is_the_trained_one(tiny_run) -> None:
    loaded = load_run(tiny_run.run)
    assert loaded.folder == tiny_run.run
    assert loaded.calibration.negative_rate == 1
    assert not loaded.two_tower.training
    assert not loaded.ranker.training
    assert loaded.prepared.folder.parent == tiny_run.work / "prepared"


def test_stages_that_were_not_trained_are_not_there(csv_run, click_run) -> None:
    retrieval, ranking = load_run(csv_run.run), load_run(click_run.run)
    assert (retrieval.ranker, retrieval.calibration) == (None, None)
    assert ranking.two_tower is None
    assert ranking.ranker.score_scale is None  # no retrieval, no score of it


def copied_run(tiny_run, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.run, run)
    return run


def refused(run: Path, capsys) -> str:
    assert export(run) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert not Path("bundles").exists()
    return printed.err


def test_no_run(tmp_path: Path, capsys) -> None:
    assert refused(Path("gone"), capsys) == (
        "error: gone: no run here (no config.yaml); runs are written by `twotower train`\n"
    )


def test_a_run_that_was_not_finished(tiny_run, tmp_path: Path, capsys) -> None:
    run = copied_run(tiny_run, tmp_path)
    shutil.rmtree(run / "ranking")
    assert refused(run, capsys) == (
        f"error: {run}: not finished: ranking; go on with twotower train resume={run}\n"
    )


def test_a_run_without_figures(tiny_run, tmp_path: Path, capsys) -> None:
    run = copied_run(tiny_run, tmp_path)
    (run / "metrics.json").unlink()
    assert refused(run, capsys) == (
        f"error: {run}: no metrics.json; the run was not finished, resume={run} goes on\n"
    )


def test_a_run_whose_data_is_gone_or_was_replaced(tiny_run, tmp_path: Path, capsys) -> None:
    run = copied_run(tiny_run, tmp_path)
    known = json.loads((run / "prepared.json").read_text())
    (run / "prepared.json").write_text(json.dumps(known | {"folder": "gone"}))
    assert "error: gone: no prepared data set here" in refused(run, capsys)
    (run / "prepared.json").write_text(json.dumps(known | {"fingerprint": "abc"}))
    assert refused(run, capsys) == (
        f"error: {known['folder']}: fingerprint {known['fingerprint']}, the run {run} "
        "was trained on abc; train again\n"
    )


def test_a_run_is_read_without_what_trains() -> None:
    """Lightning takes longer to load than torch."""
    code = (
        "import sys, twotower.cli.load_run, twotower.export.build\n"
        "print([name for name in ('pytorch_lightning', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
