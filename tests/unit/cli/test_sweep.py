"""`train --multirun hydra/sweeper=optuna`, for real, on the smallest world that trains."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra `sweep` is not installed")

from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import hydra_plugins.twotower_optuna as plugin
from twotower.cli import export
from twotower.cli import train as command
from twotower.config import compose

ROOT = Path(__file__).parents[3]
TINY = """\
# @package _global_
defaults:
  - override /hydra/sweeper: optuna
name: tiny
stages: [retrieval]
data: {num_users: 60, num_items: 40, slates_per_user: 5, slate_size: 6}
models: {retrieval: {dim: 8, hidden: [8], embedding_dim: 4}}
losses: {retrieval: {negatives: {num_uniform: 16}}}
training: {retrieval: {batch_size: 32, max_epochs: 2, monitor: ndcg@10}}
evaluation: {ks: [5, 10], num_resamples: 20}
trainer: {accelerator: cpu, checkpoint_every: 2}
hydra:
  sweeper:
    n_trials: 3
    params:
      losses.retrieval.loss.temperature: tag(log,interval(0.02,0.5))
      models.retrieval.hidden: choice([8],[8,8])
"""
RATE = "training.retrieval.optimizer.learning_rate"
MONITORED = "retrieval/validation/ndcg@10"


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    home = tmp_path_factory.mktemp("configs")
    (home / "experiment").mkdir()
    (home / "experiment" / "tiny.yaml").write_text(TINY)
    return home


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


@pytest.fixture(scope="module")
def tiny(configs, shared_data):
    """Arguments of a sweep of three trials."""
    given = ["--multirun", "experiment=tiny", f"prepared_dir={shared_data}", "quiet=true"]
    return [*given, "--config-dir", str(configs)]


@pytest.fixture(scope="module")
def shared_data(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "prepared"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """The folder of a finished sweep; tests only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finished"))
        patch.setattr(sys, "argv", ["train.py"])
        assert command.main(tiny) == 0
        (sweep,) = Path.cwd().glob("runs/tiny/sweep-*")
        return sweep


def results(sweep):
    with (sweep / "results.csv").open() as file:
        return list(csv.DictReader(file))


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def curve(run, tag=MONITORED):
    events = EventAccumulator(str(run / "tensorboard" / "retrieval")).Reload()
    return [event.value for event in events.Scalars(tag)]


def test_folder_of_a_sweep(finished):
    assert {path.name for path in finished.iterdir()} == {
        *("0", "1", "2", "study.db", "results.csv", "multirun.yaml")
    }
    rows = results(finished)
    assert list(rows[0]) == [
        *("trial", "state", MONITORED, "seconds"),
        *("losses.retrieval.loss.temperature", "models.retrieval.hidden", "reason"),
    ]
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert {row["state"] for row in rows} == {"done"}
    assert len({row["losses.retrieval.loss.temperature"] for row in rows}) == 3


def test_a_trial_is_judged_by_the_best_epoch_of_the_validation_part(finished):
    """The curve that TensorBoard has is the second witness."""
    for row in results(finished):
        run = finished / row["trial"]
        assert float(row[MONITORED]) == pytest.approx(max(curve(run)), abs=1e-6)
        assert json.loads((run / "metrics.json").read_text())[MONITORED] == float(row[MONITORED])


def test_a_trial_was_trained_with_what_the_table_says(finished):
    for row in results(finished):
        config = OmegaConf.load(finished / row["trial"] / "config.yaml")
        temperature = float(row["losses.retrieval.loss.temperature"])
        assert config.losses.retrieval.loss.temperature == temperature
        assert (
            str(list(config.models.retrieval.hidden)).replace(" ", "")
            == (row["models.retrieval.hidden"])
        )
        assert 0.02 <= temperature <= 0.5


def test_the_seconds_of_a_trial_hold_those_of_its_training(finished):
    for row in results(finished):
        state = json.loads((finished / row["trial"] / "retrieval" / "finished.json").read_text())
        assert state["seconds"] <= float(row["seconds"]) < 120


def test_hparams_show_what_is_searched_and_nothing_of_the_test_part(finished):
    for row in results(finished):
        run = finished / row["trial"]
        events = EventAccumulator(str(run / "tensorboard" / "final")).Reload()
        content = events.PluginTagToContent("hparams")
        started = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
        shown = started.session_start_info.hparams
        assert shown.keys() == {"temperature", "hidden"}
        assert shown["temperature"].number_value == float(row["losses.retrieval.loss.temperature"])
        assert shown["hidden"].string_value == row["models.retrieval.hidden"]
        figures = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
        assert figures == {
            "final/ndcg@10": pytest.approx(float(row[MONITORED]), abs=1e-6),
            "final/seconds": pytest.approx(float(row["seconds"]), rel=1e-3),
        }


def kill_when(path, arguments):
    """Start ``python train.py``, kill it once a file is there; returns when it is dead."""
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not path.exists():
        if started.poll() is not None or time.monotonic() > deadline:
            started.kill()
            pytest.fail(f"{path} was not written: {started.communicate()[1].decode()}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(timeout=0.02)
    started.send_signal(signal.SIGKILL)
    started.communicate()


def test_killed_in_the_second_trial_and_gone_on_with_equals_never_killed(finished, folder, tiny):
    sweep = folder / "sweep"
    arguments = [*tiny, f"hydra.sweep.dir={sweep}"]
    kill_when(sweep / "1" / "retrieval" / "last.ckpt", arguments)
    assert [row["trial"] for row in results(sweep)] == ["0"]
    first = (sweep / "0" / "metrics.json").stat().st_mtime_ns
    assert command.main(arguments) == 0
    assert without_seconds(results(sweep)) == without_seconds(results(finished))
    assert (sweep / "0" / "metrics.json").stat().st_mtime_ns == first
    assert "retrieval: goes on from" in (sweep / "1" / "train.log").read_text()
    before = results(sweep)
    assert command.main([*arguments, "hydra.sweeper.n_trials=4"]) == 0
    assert results(sweep)[:3] == before
    assert [row["trial"] for row in results(sweep)] == ["0", "1", "2", "3"]
    assert (sweep / "0" / "metrics.json").stat().st_mtime_ns == first


def test_a_failed_trial_is_shown_and_the_best_can_be_trained_again(folder, tiny, capsys):
    given = ["losses.retrieval.loss.temperature=0.1,-1", f"{RATE}=interval(1e-4,0.01)"]
    given += ["models.retrieval.hidden=[8]", "training.retrieval.max_epochs=1", "quiet=false"]
    assert command.main([*tiny, *given, "hydra.sweeper.n_trials=4", "hydra.sweeper.seed=2"]) == 2
    (sweep,) = folder.glob("runs/tiny/sweep-*")
    rows = results(sweep)
    failed = [row for row in rows if row["state"] == "failed"]
    assert 0 < len(failed) < len(rows) == 4
    for row in rows:
        is_bad = row["losses.retrieval.loss.temperature"] == "-1"
        assert row["state"] == ("failed" if is_bad else "done")
        assert row["reason"].endswith("`temperature` must be a number above 0, got -1") == is_bad
        assert (row[MONITORED] == "") == is_bad
    printed = capsys.readouterr().out
    ends = f"4 trials: {4 - len(failed)} done, 0 stopped, {len(failed)} failed; "
    assert ends in " ".join(printed.split())
    done = [row for row in rows if row not in failed]
    check_command_of_the_best(max(done, key=lambda row: float(row[MONITORED])), sweep, printed)


def check_command_of_the_best(best, sweep, printed):
    """The command that is shown composes to the config that the best trial was trained with."""
    assert f"best run: {sweep.relative_to(Path.cwd()) / best['trial']}\n" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("again: "))
    program, script, *overrides, flag, place = shlex.split(line.partition(":")[2])
    assert (program, script, flag) == ("twotower", "train", "--config-dir")
    again = compose("train", [*overrides, "output_dir=x"], extra_dir=place)
    trained = OmegaConf.load(sweep / best["trial"] / "config.yaml")
    del trained.trainer["pruning"]
    trained.output_dir = "x"
    assert OmegaConf.to_container(again, resolve=True) == OmegaConf.to_container(trained)


def test_a_sweep_gone_on_with_in_other_terms_is_refused(finished, tiny, capsys):
    given = [f"hydra.sweep.dir={finished}", "hydra.sweeper.seed=1", f"{RATE}=0.1"]
    assert command.main([*tiny, *given]) == 2
    shown = capsys.readouterr().err
    assert "the sweep began with seed 0, got 1" in shown
    assert "the sweep began with settings ['experiment=tiny', " in shown
    assert len(results(finished)) == 3


def test_two_processes_never_work_on_one_sweep(finished, tiny, capsys):
    with (finished / "multirun.yaml").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert command.main([*tiny, f"hydra.sweep.dir={finished}"]) == 2
    assert f"{finished}: another process is at work on it" in capsys.readouterr().err
    assert OmegaConf.load(finished / "multirun.yaml").hydra.sweeper.n_trials == 3


def test_a_folder_with_something_else_is_refused(folder, tiny, capsys):
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("")
    assert command.main([*tiny, "hydra.sweep.dir=mine"]) == 2
    assert "`hydra.sweep.dir`: mine is not empty and holds no sweep" in capsys.readouterr().err
    assert [path.name for path in (folder / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{RATE}s=interval(0.1,1)"], f"`{RATE}s`: unknown, did you mean `learning_rate`"),
        (["training.retrieval.batch_size=interval(8,16)"], "batch_size`: must be int, got 8.0"),
        (["+hydra.sweeper.params.seed='interval(0,9)'"], "`seed=0.0`: Value '0.0'"),
        (["hydra.sweeper.stage=ranking"], "must be a stage that is trained (retrieval), got rank"),
        (["hydra.sweeper.n_trials=0"], "`hydra.sweeper.n_trials`: must be at least 1, got 0"),
        (["hydra.sweeper.n_trails=9"], "`hydra.sweeper.n_trails`: unknown, did you mean"),
        (
            ["losses.retrieval.loss.temperature=0.1", "models.retrieval.hidden=[8]"],
            "nothing to search: give a key several values",
        ),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(arguments, message, tiny, folder, capsys):
    assert command.main([*tiny, *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert list(folder.iterdir()) == []


def test_without_optuna_the_extra_is_named(tiny, folder, monkeypatch, capsys):
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    assert command.main(tiny) == 2
    assert "`hydra/sweeper=optuna` needs Optuna; install `twotower[sweep]`" in (
        capsys.readouterr().err
    )
    assert list(folder.iterdir()) == []


def test_other_commands_are_not_swept_with_optuna(folder, capsys):
    arguments = ["--multirun", "run=x", "hydra/sweeper=optuna", "num_candidates=5,6"]
    assert export.main(arguments) == 2
    assert "`hydra/sweeper=optuna` is for `train` alone" in capsys.readouterr().err
    assert list(folder.iterdir()) == []
