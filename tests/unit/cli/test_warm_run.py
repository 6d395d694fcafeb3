"""``warm_start=<run>`` on the command line: what is refused before anything is trained."""

from __future__ import annotations

from contextlib import chdir

import pytest

from tests.conftest import TINY_MODELS, TINY_WORLD
from twotower.cli.main import main


def train(work, *words):
    with chdir(work):
        return main(["train", "name=warm", *TINY_WORLD, *TINY_MODELS, *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["losses/alignment=anchor"], "losses/alignment: without warm_start=<run>"),
        (["evict_vanished=true"], "evict_vanished: without warm_start=<run>"),
        (["warm_start=nowhere"], "warm_start=nowhere: no run folder here"),
        (["losses/alignment=anchor", "losses.alignment.weight=0"], "`weight` must be above 0"),
    ],
)
def test_what_lacks_a_run(words, message, tmp_path, capsys):
    assert train(tmp_path, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_stage_that_the_run_lacks(csv_run, tmp_path, capsys):
    assert train(tmp_path, f"warm_start={csv_run.run}") == 2
    assert "the run has no finished stage `ranking`" in capsys.readouterr().err


def test_a_feature_that_differs_is_named(tiny_run, tmp_path, capsys):
    spec = (tiny_run.run / "features.yaml").read_text()
    assert "kind: numeric" in spec
    changed = tmp_path / "features.yaml"
    changed.write_text(spec.replace("kind: numeric", "kind: categorical"))
    words = [f"warm_start={tiny_run.run}", "features=file", f"features.path={changed}"]
    assert train(tmp_path, *words) == 2
    expected = "warm_start: feature `price`: `kind` is 'categorical', the run has 'numeric'"
    assert expected in capsys.readouterr().err


def test_a_history_that_differs_is_named(tiny_run, tmp_path, capsys):
    assert train(tmp_path, f"warm_start={tiny_run.run}", "features.history_length=7") == 2
    assert "warm_start: history: length 7" in capsys.readouterr().err
