"""`twotower train`: run folder, resume, bad input; on the smallest world that trains."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from twotower.cli import train as command
from twotower.cli.training_run import headline_figures
from twotower.config import compose
from twotower.data.schema import DataError
from twotower.training.run_folder import read_metrics

ROOT = Path(__file__).parents[3]
TINY = """\
# @package _global_
name: tiny
quiet: true
data: {num_users: 60, num_items: 40, slates_per_user: 5, slate_size: 6}
models:
  retrieval: {dim: 8, hidden: [8], embedding_dim: 4}
  ranking: {embedding_dim: 4, deep: {hidden: [8]}}
losses: {retrieval: {negatives: {num_uniform: 16}}}
training:
  retrieval: {batch_size: 32, max_epochs: 4, monitor: recall@10}
  ranking: {batch_size: 64, max_epochs: 3}
evaluation: {ks: [5, 10], num_resamples: 20}
trainer: {accelerator: cpu, checkpoint_every: 2}
"""


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """A folder of configs with an experiment that trains in a second."""
    home = tmp_path_factory.mktemp("configs")
    (home / "experiment").mkdir()
    (home / "experiment" / "tiny.yaml").write_text(TINY)
    return home


@pytest.fixture(scope="module")
def tiny(configs):
    """Arguments that choose it."""
    return ["experiment=tiny", "--config-dir", str(configs)]


@pytest.fixture(scope="module")
def data(shared):
    """The argument that takes the data that are prepared already."""
    return f"prepared_dir={shared / 'prepared'}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny):
    """A folder with one finished run; tests only read it."""
    home = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "argv", ["train.py"])
        assert command.main(tiny) == 0
    return home


def only_run(home):
    (run,) = (path for path in (home / "runs" / "tiny").iterdir() if path.name != "latest")
    return run


def figures(run):
    """All figures but the seconds, which no two runs share."""
    values = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in values.items() if not name.endswith("/seconds")}


def test_run_folder_is_complete(shared):
    run = only_run(shared)
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "features", "features.yaml", "prepared.json", "versions.json"),
        *("retrieval", "ranking", "ranker.json", "metrics.json", "space.json"),
        *("tensorboard", "train.log"),
    }
    for stage in ("retrieval", "ranking"):
        names = {path.name for path in (run / stage).iterdir()}
        assert names == {"best.ckpt", "last.ckpt", "finished.json"}
    assert (shared / "runs" / "tiny" / "latest").resolve() == run
    assert {path.name for path in shared.iterdir()} == {"runs", "prepared"}


def test_config_of_the_run_is_resolved_and_whole(shared):
    run = only_run(shared)
    text = (run / "config.yaml").read_text()
    assert "${" not in text
    config = OmegaConf.load(run / "config.yaml")
    assert config.output_dir == str(run)
    assert config.training.retrieval.batch_size == 32
    assert config.models.ranking.structure._target_ == "twotower.models.dcn.Parallel"


def test_figures(shared):
    values = read_metrics(only_run(shared))
    for name in ("retrieval", "popularity", "item_knn"):
        for metric in ("recall@10", "ndcg@5", "hit_rate@10", "map@10", "mrr@5", "precision@5"):
            low, high = (values[f"{name}/test/{metric}/{end}"] for end in ("low", "high"))
            assert 0 <= low <= values[f"{name}/test/{metric}"] <= high <= 1
    for name in ("auc", "log_loss", "calibration_error", "normalised_entropy", "grouped_auc"):
        assert values[f"ranking/test/{name}"] > 0
    assert values["retrieval/train/seconds"] > 0
    for stage, monitor in (("retrieval", "recall@10"), ("ranking", "auc")):
        curve = EventAccumulator(str(only_run(shared) / "tensorboard" / stage)).Reload()
        name = f"{stage}/validation/{monitor}"
        best = max(event.value for event in curve.Scalars(name))
        assert values[name] == pytest.approx(best, abs=1e-6)
    shown = [name for name in headline_figures([5, 10]) if name in values]
    assert shown[:3] == [f"{n}/test/hit_rate@5" for n in ("retrieval", "item_knn", "popularity")]
    assert len(shown) == len(headline_figures([5, 10])) == 19


def test_figures_of_a_run_that_is_not_finished(tmp_path):
    with pytest.raises(DataError, match=r"no metrics.json; the run was not finished, resume="):
        read_metrics(tmp_path)


def test_same_seed_same_figures(shared, folder, tiny, data, capfd):
    assert command.main([*tiny, data]) == 0
    assert figures(only_run(folder)) == figures(only_run(shared))
    assert capfd.readouterr().out == ""  # It runs with quiet=true.


def test_other_seed_other_figures(shared, folder, tiny, data):
    assert command.main([*tiny, data, "seed=1"]) == 0
    assert figures(only_run(folder)) != figures(only_run(shared))


def test_figures_do_not_depend_on_the_number_of_stages(shared, folder, tiny, data):
    """Retrieval alone gives what it gives before a ranking stage."""
    arguments = [*tiny, data, "stages=[retrieval]"]
    assert command.main(arguments) == 0
    alone, both = figures(only_run(folder)), figures(only_run(shared))
    assert alone == {name: value for name, value in both.items() if "ranking/" not in name}
    assert not (only_run(folder) / "ranking").exists()


def test_ranking_alone_goes_without_the_score(shared, folder, tiny, data):
    arguments = [*tiny, data, "stages=[ranking]"]
    assert command.main(arguments) == 0
    state = json.loads((only_run(folder) / "ranker.json").read_text())
    assert state["calibration"].keys() == {"negative_rate", "scale", "bias"}
    assert state["calibration"]["negative_rate"] == 1.0
    assert (state["retrieval_score"], state["retrieval_rank"]) == (False, False)
    assert "No retrieval stage in this run" in (only_run(folder) / "train.log").read_text()


def test_console_is_short(tiny, data, folder, capfd):
    assert command.main([*tiny, data, "quiet=false"]) == 0
    out, err = capfd.readouterr()
    assert "retrieval, epoch 4/4: 100%" in out
    assert "ranking/test/auc" in out
    assert f"run folder: {only_run(folder)}" in out
    assert f"twotower export run={only_run(folder)}" in out
    lines = err.splitlines()
    assert any(line.startswith("retrieval: 4 epochs, ") for line in lines)
    for chatter in ("GPU available", "litlogger", "treespec", "logging interval", "[20"):
        assert chatter not in out + err
    assert len(lines) <= 8, err


class TestResume:
    def test_finished_run_is_loaded(self, shared, folder):
        run = only_run(shared)
        before = figures(run)
        weights = (run / "retrieval" / "best.ckpt").stat().st_mtime_ns
        config = (run / "config.yaml").read_text()
        os.chdir(shared)
        assert command.main([f"resume={run}", "quiet=true"]) == 0
        assert figures(run) == before
        assert (run / "retrieval" / "best.ckpt").stat().st_mtime_ns == weights
        assert (run / "config.yaml").read_text() == config
        assert {path.name for path in (shared / "runs").iterdir()} == {"tiny"}

    def test_by_the_link_to_the_latest(self, shared):
        os.chdir(shared)
        run, before = only_run(shared), figures(only_run(shared))
        assert command.main(["resume=runs/tiny/latest", "quiet=true"]) == 0
        assert (shared / "runs" / "tiny" / "latest").resolve() == run
        assert figures(run) == before

    def test_other_settings_beside_it_are_refused(self, shared, capsys):
        run = only_run(shared)
        before = {path: path.read_bytes() for path in run.rglob("*.json")}
        assert command.main([f"resume={run}", "seed=3", "split=random", "+quiet=true"]) == 2
        assert "the run's own config is used; leave out seed=3, split=random" in (
            capsys.readouterr().err
        )
        assert before == {path: path.read_bytes() for path in run.rglob("*.json")}

    def test_folder_that_is_no_run(self, folder, capsys):
        (folder / "other").mkdir()
        assert command.main(["resume=other"]) == 2
        assert "no run in `other`, it holds no config.yaml" in capsys.readouterr().err
        assert list((folder / "other").iterdir()) == []

    def test_folder_that_is_not_there(self, folder, capsys):
        assert command.main(["resume=gone"]) == 2
        assert "`resume`: no run folder `gone`" in capsys.readouterr().err
        assert list(folder.iterdir()) == []

    def test_config_that_no_longer_fits(self, folder, capsys):
        (folder / "old").mkdir()
        config = compose("train", ["output_dir=old"])
        OmegaConf.set_struct(config, False)
        config.trainer.log_evry = 3
        (folder / "old" / "config.yaml").write_text(OmegaConf.to_yaml(config))
        assert command.main(["resume=old"]) == 2
        assert "`trainer.log_evry`: unknown, did you mean `log_every`" in capsys.readouterr().err

    def test_data_that_changed_since(self, shared, folder, capsys):
        run = folder / "run"
        run.mkdir()
        (run / "config.yaml").write_text((only_run(shared) / "config.yaml").read_text())
        (run / "prepared.json").write_text('{"folder": "x", "fingerprint": "another"}')
        assert command.main([f"resume={run}"]) == 2
        assert "the run began on prepared data another" in capsys.readouterr().err


def kill_when(path, arguments):
    """Start ``python train.py``, kill it once a file is there; returns when it is dead."""
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not list(Path.cwd().glob(path)):
        if started.poll() is not None or time.monotonic() > deadline:
            started.kill()
            pytest.fail(f"{path} was not written: {started.communicate()[1].decode()}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(timeout=0.02)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert started.returncode == -signal.SIGKILL


def test_killed_twice_and_resumed_equals_never_killed(shared, folder, tiny, data):
    kill_when("runs/tiny/*/retrieval/last.ckpt", [*tiny, data])
    run = only_run(folder)
    assert not (run / "retrieval" / "finished.json").exists()
    kill_when("runs/tiny/*/ranking/last.ckpt", [f"resume={run}", "quiet=true"])
    assert (run / "retrieval" / "finished.json").exists()
    assert not (run / "ranking" / "finished.json").exists()
    assert command.main([f"resume={run}", "quiet=true"]) == 0
    assert figures(run) == figures(only_run(shared))
    assert only_run(folder) == run
    assert_bit_equal(run, only_run(shared))


def assert_bit_equal(run, other):
    """All weights, the state of the optimisers and the calibration are the same."""
    assert (run / "ranker.json").read_bytes() == (other / "ranker.json").read_bytes()
    for path in ("retrieval/best", "retrieval/last", "ranking/best", "ranking/last"):
        one, two = (
            torch.load(folder / f"{path}.ckpt", weights_only=True) for folder in (run, other)
        )
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert same(one.get(part), two.get(part)), (path, part)


def same(one, other):
    """Whether nested states are equal in every bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("stages=[retrieval,rank]", "stages: must be some of retrieval, ranking, got rank"),
        ("stages=[]", "stages: must be some of retrieval, ranking, got none"),
        ("trainer.log_every=0", "trainer: `log_every` must be at least 1, got 0"),
        ("trainer.accelerator=tpu", "must be one of 'auto', 'cpu', 'gpu', got 'tpu'"),
        ("training.retrieval.monitor=recall@7", "`monitor` must be one of recall@5, precision@5"),
        ("training.ranking.monitor=recall@10", "`monitor` must be one of auc, log_loss"),
        ("training.ranking.patience=0", "training: `patience` must be at least 1, got 0"),
        ("training.ranking.optimizer.learning_rate=0", "`learning_rate` must be above 0, got 0"),
        ("evaluation.ks=[]", "evaluation: `ks` must be list lengths of at least 1, got []"),
        ("models/retrieval=two_towers", "did you mean `two_tower`"),
    ],
)
def test_bad_input_is_said_before_the_data_are_prepared(argument, message, tiny, folder, capsys):
    assert command.main([*tiny, argument]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not (folder / "prepared").exists()
