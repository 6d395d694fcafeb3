"""The entry wrapper: exit status, messages, sweeps, and what is left on disk."""

import sys
from pathlib import Path

import pytest

from twotower import config
from twotower.cli import run
from twotower.config import ConfigError, Refused

TRAIN = """
defaults: [train_schema, {data: small}, _self_]
name: x
seed: 3
output_dir: runs
prepared_dir: prepared
split: null
features: auto
models: {_target_: torch.nn.Linear, in_features: 4}
losses: {}
training: {}
trainer: {}
evaluation: {}
hydra: {run: {dir: "${run_dir:${name},${resume},${output_dir}}"}, sweep: {dir: sweeps}}
"""
RECOMMEND = "defaults: [recommend_schema, {run_folder: none}, _self_]\nbundle: b\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder, and a config folder beside it."""
    configs, work = tmp_path / "configs", tmp_path / "work"
    (configs / "data").mkdir(parents=True)
    work.mkdir()
    (configs / "train.yaml").write_text(TRAIN)
    (configs / "recommend.yaml").write_text(RECOMMEND)
    (configs / "data" / "small.yaml").write_text("num_users: 10\n")
    monkeypatch.setattr(config, "config_dir", lambda: configs)
    monkeypatch.setattr(run, "config_dir", lambda: configs)
    monkeypatch.setattr(sys, "argv", ["twotower", "train"])
    monkeypatch.delenv(run.FULL_ERROR, raising=False)
    monkeypatch.chdir(work)
    return work


def start(function, *argv):
    return run.run_command("train", function, list(argv), needs={"out_features"})


def test_done(folder):
    seen = []
    assert start(seen.append, "seed=5", "data.num_users=7") == 0
    (cfg,) = seen
    assert (cfg.seed, cfg.data.num_users) == (5, 7)
    (made,) = (folder / "runs" / "x").iterdir()
    assert (made / ".hydra" / "config.yaml").is_file()


def test_run_folder_is_known_to_the_command():
    seen = []

    def command(cfg):
        seen.append(Path(cfg.output_dir))

    assert start(command, "output_dir=runs", "name=${hydra:runtime.choices.data}") == 0
    assert seen == [Path("runs")]
    assert start(command, "output_dir=${hydra:runtime.output_dir}", "hydra.run.dir=own") == 0
    assert seen[1] == Path("own").absolute()


def test_arguments_of_the_process_by_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=8"])
    seen = []
    assert run.run_command("train", seen.append, needs={"out_features"}) == 0
    assert seen[0].seed == 8


def test_command_sees_the_command_line_that_starts_other_processes():
    seen = []
    assert start(lambda cfg: seen.append(list(sys.argv)), "seed=5") == 0
    assert seen == [["twotower", "train"]]
    assert sys.argv == ["twotower", "train"]


@pytest.mark.parametrize("argv", [["+quiet=true"], ["quiet=true"], ["++quiet=true"]])
def test_quiet_in_every_spelling(argv):
    seen = []
    assert start(seen.append, *argv) == 0
    assert seen[0].quiet is True


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("`k` must be positive, got 0"), 2, "error: `k` must be positive, got 0\n"),
        (ConfigError(["`a`: wrong", "`b`: wrong"]), 2, "error: `a`: wrong\n`b`: wrong\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: x: no such file or folder\n"),
        (
            PermissionError(13, "Denied", "x"),
            2,
            "error: x: permission denied; allow this user to read and write there, or name another "
            "place\n",
        ),
        (Refused("recall 0.4 is below 0.9"), 3, "refused: recall 0.4 is below 0.9\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_expected_errors_are_one_message(error, status, message, capsys):
    def fails(cfg):
        raise error

    assert start(fails) == status
    assert capsys.readouterr().err == message


def test_unexpected_error_shows_where(capsys):
    def fails(cfg):
        return {}["missing"]

    assert start(fails) == 1
    shown = capsys.readouterr().err
    assert "KeyError: 'missing'" in shown
    assert "in fails" in shown


def test_traceback_of_an_expected_error_on_request(monkeypatch, capsys):
    def fails(cfg):
        raise ValueError("bad")

    monkeypatch.setenv(run.FULL_ERROR, "1")
    assert start(fails) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: bad\n")


def test_interrupt_that_lightning_turned_into_an_exit():
    def fails(cfg):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert start(fails) == 130


@pytest.mark.parametrize(("code", "status"), [(0, 0), (None, 0), (4, 4), ("words", 1)])
def test_exit(code, status):
    assert start(lambda cfg: sys.exit(code)) == status


@pytest.mark.parametrize(
    ("argv", "messages"),
    [
        (["sed=1", "data=smal"], ["`sed`: unknown, did you mean `seed`", "did you mean `small`"]),
        (["+models.bia=true"], ["`models.bia`: unknown, did you mean `bias`"]),
        (["models.in_features=wide"], ["`models.in_features`: must be int, got 'wide'"]),
        (["resume=gone"], ["error: `resume`: no run folder `gone`"]),
        (["--config-path=/"], ["--config-path and --experimental-rerun are not supported"]),
    ],
)
def test_bad_input_is_said_before_anything_is_done(argv, messages, folder, capsys):
    assert start(lambda cfg: pytest.fail("must not run"), *argv) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "Traceback" not in shown
    for message in messages:
        assert message in shown
    assert list(folder.iterdir()) == []


def test_argument_that_nobody_passes_is_missing(capsys):
    assert run.run_command("train", lambda cfg: None, []) == 2
    assert "`models.out_features`: missing" in capsys.readouterr().err


def test_run_folder_that_cannot_be_made(folder, capsys):
    (folder / "file").write_text("")
    assert start(lambda cfg: None, "hydra.run.dir=file/run") == 2
    assert "file/run" in capsys.readouterr().err


def test_unknown_flag(capsys):
    assert start(lambda cfg: None, "--bogus") == 2
    assert "`--bogus`: no such switch" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["--cfg", "job"], ["--cfg", "job", "seed=5"]])
def test_showing_the_config_runs_nothing(argv, folder, capsys):
    assert start(lambda cfg: pytest.fail("must not run"), *argv) == 0
    assert "num_users: 10" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_a_config_that_fails_the_check_can_still_be_shown(capsys):
    assert start(lambda cfg: None, "models.in_features=wide", "--cfg", "job") == 0
    assert "in_features: wide" in capsys.readouterr().out


def test_sweep(folder):
    seen = []
    argv = ["--multirun", "seed=1,2", "name=a,b"]
    assert start(lambda cfg: seen.append((cfg.seed, cfg.name)), *argv) == 0
    assert seen == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert (folder / "sweeps" / "3").is_dir()


def test_sweep_goes_on_after_a_failure_and_reports_the_worst():
    seen = []

    def fails_once(cfg):
        seen.append(cfg.seed)
        if cfg.seed == 1:
            raise Refused("no")

    assert start(fails_once, "-m", "seed=1,2") == 3
    assert seen == [1, 2]


def test_bad_value_anywhere_in_a_sweep_stops_it_before_it_starts(folder, capsys):
    argv = ["seed=1,2,many", "models.in_features=4,5", "-m"]
    assert start(lambda cfg: pytest.fail("must not run"), *argv) == 2
    assert "`seed=many`: Value 'many'" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_further_config_folder(tmp_path):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "own.yaml").write_text("num_users: 99\n")
    seen = []
    assert start(seen.append, "data=own", "--config-dir", str(tmp_path / "mine")) == 0
    assert seen[0].data.num_users == 99


def test_command_without_run_folder_leaves_nothing_behind(folder):
    seen = []
    assert run.run_command("recommend", seen.append, ["user=u1", "k=5"]) == 0
    assert (seen[0].user, seen[0].k) == ("u1", 5)
    assert list(folder.iterdir()) == []


def test_job_is_named_after_the_command(folder):
    def train(cfg):
        import logging

        logging.getLogger("x").info("hello")

    train.__module__ = "twotower.cli.train"
    assert start(train) == 0
    (log,) = folder.glob("runs/x/*/train.log")
    assert "hello" in Path(log).read_text()


def test_a_terminal_shows_what_is_loaded(monkeypatch, capsys):
    def load(*argv):
        return run.run_command(
            "train", lambda cfg: None, argv, needs={"out_features"}, loads=("colorsys", "wave")
        )

    assert load() == 0
    assert "loading" not in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    assert load("quiet=true") == 0
    assert "wave" in sys.modules
    assert "loading" not in capsys.readouterr().err
    assert load() == 0
    seen = capsys.readouterr().err
    assert "train: loading:   0%|" in seen
    assert "| 1/2 [" in seen
    assert "wave]" in seen


def test_a_command_that_has_lost_a_process_leaves_without_freeing_anything(monkeypatch):
    left = []
    monkeypatch.setattr(run, "never_freed", [])
    monkeypatch.setattr(run.os, "_exit", left.append)

    def lose(cfg):
        run.never_freed.append(RuntimeError("connection closed by peer"))
        raise SystemExit(1) from run.never_freed[0]

    start(lambda cfg: None)
    assert left == []
    start(lose)
    assert left == [1]


def test_a_mistake_in_the_config_is_told_before_anything_is_loaded(monkeypatch, capsys):
    for mistake in ("nothing=1", "data.num_users"):
        status = run.run_command("train", lambda cfg: None, [mistake], loads=("no_such_module",))
        assert status == 2
        assert "no_such_module" not in capsys.readouterr().err
