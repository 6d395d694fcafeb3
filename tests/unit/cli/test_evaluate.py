"""`twotower evaluate`: figures of a bundle, written and printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from twotower.cli.main import main
from twotower.data.prepared import write_manifest
from twotower.export.bundle import open_bundle


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def evaluate(bundle: Path, *overrides: str) -> int:
    return main(["evaluate", f"bundle={bundle}", "evaluation.num_resamples=20", *overrides])


def test_figures_are_written_and_printed(tiny_run, tmp_path: Path, capsys) -> None:
    before = sorted(path for path in tiny_run.bundle.rglob("*"))
    assert evaluate(tiny_run.bundle, "evaluation.ks=[10,20]") == 0
    manifest = open_bundle(tiny_run.bundle).manifest
    folder = tmp_path / "evaluations" / "tiny" / manifest.version
    written = json.loads((folder / "evaluation.json").read_text())
    assert (folder / "attribution.png").stat().st_size > 1000
    shares = [v for k, v in written.items() if "lost_by" in k or k == "two_stage/test/found@10"]
    assert len(shares) == 5
    assert sum(shares) == pytest.approx(1)
    assert written["index/test/recall@80"] == 1
    run = json.loads((tiny_run.run / "metrics.json").read_text())
    for name in ("retrieval/test/recall@20", "ranking/test/auc", "popularity/test/ndcg@10"):
        assert written[name] == run[name]

    out = capsys.readouterr().out
    assert f"written: evaluations/tiny/{manifest.version}" in out
    for name in (
        *("two_stage/test/ndcg@10", "two_stage/test/ndcg@10_over_retrieval"),
        *("retrieval_index/test/hit_rate@10", "item_knn/test/ndcg@10", "ranking/test/auc"),
        *("index/test/recall@80", "two_stage/test/lost_by_ranker@10"),
    ):
        (line,) = [row for row in out.splitlines() if f"│ {name} " in row]
        assert f"{written[name]:.4f}" in line
    assert sorted(path for path in tiny_run.bundle.rglob("*")) == before  # a bundle never changes


def test_a_run_and_its_bundle_agree(tiny_run, tmp_path: Path) -> None:
    """The retrieval of the run, exact and eager, against the index and the exported towers."""
    assert evaluate(tiny_run.bundle, "+quiet=true", "evaluation.ks=[10,20]") == 0
    (path,) = tmp_path.rglob("evaluation.json")
    figures = json.loads(path.read_text())
    for metric in ("recall@10", "ndcg@10", "mrr@20", "hit_rate@20"):
        expected = figures[f"retrieval/test/{metric}"]
        assert figures[f"retrieval_index/test/{metric}"] == pytest.approx(expected, abs=1e-9)


def test_quiet(tiny_run, capsys) -> None:
    assert evaluate(tiny_run.bundle, "quiet=true", "evaluation.ks=[10]") == 0
    assert capsys.readouterr() == ("", "")


def test_data_that_was_moved(tiny_run, tmp_path: Path) -> None:
    (data,) = (tiny_run.work / "prepared").iterdir()
    shutil.copytree(data, tmp_path / "elsewhere")
    where = f"prepared={tmp_path}/elsewhere"
    assert evaluate(tiny_run.bundle, where, "+quiet=true", "evaluation.ks=[10]") == 0


def test_data_that_is_gone_or_other_data(tiny_run, tmp_path: Path, capsys) -> None:
    assert evaluate(tiny_run.bundle, "prepared=gone") == 2
    assert capsys.readouterr().err == (
        "error: gone: no prepared data set here (no manifest.json); run `twotower prepare`\n"
    )
    (data,) = (tiny_run.work / "prepared").iterdir()
    other = tmp_path / "other"
    shutil.copytree(data, other)
    manifest = json.loads((other / "manifest.json").read_text())
    known = manifest["fingerprint"]
    del manifest["checksum"]
    write_manifest(other, manifest | {"fingerprint": "abc"})
    assert evaluate(tiny_run.bundle, f"prepared={other}") == 2
    assert capsys.readouterr().err == (
        f"error: {other}: fingerprint abc, the bundle was trained on {known}; give its data with "
        "prepared=<folder>\n"
    )
    assert not (tmp_path / "evaluations").exists()


def test_settings_that_do_not_fit_the_bundle(tiny_run, tmp_path: Path, capsys) -> None:
    assert evaluate(tiny_run.bundle, "evaluation.remove_seen=false") == 2
    assert capsys.readouterr().err == (
        "error: evaluation.remove_seen: got false, the bundle was exported with true; say "
        "evaluation.remove_seen=true\n"
    )
    assert not list(tmp_path.iterdir())


def test_retrieval_alone(csv_run, tmp_path: Path, capsys) -> None:
    assert evaluate(csv_run.bundle, "evaluation.ks=[10]") == 0
    (path,) = tmp_path.rglob("evaluation.json")
    figures = json.loads(path.read_text())
    assert figures["two_stage/test/ndcg@10"] == figures["retrieval_index/test/ndcg@10"]
    assert figures["two_stage/test/lost_by_ranker@10"] > 0  # a candidate beyond the tenth place
    assert "ranking/test/auc" not in capsys.readouterr().out


def test_ranking_alone(click_run, tmp_path: Path, capsys) -> None:
    assert evaluate(click_run.bundle) == 2
    assert "holds no retrieval stage, so it can rank but not recommend" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
