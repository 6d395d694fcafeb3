"""An experiment of somebody else cannot make Hydra run what it likes."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from twotower.cli.load_run import _model
from twotower.cli.run import BAD_INPUT, DONE, TRAINING_NEEDS, run_command
from twotower.config import ConfigError, build, check, compose
from twotower.features.spec import ModelInputs

HOSTILE = {
    "callback": (
        "callbacks: {x: {_target_: os.system, command: 'touch owned'}}",
        "`hydra.callbacks.x._target_`: must be a plugin of Hydra",
    ),
    "launcher": (
        "launcher: {_target_: os.system}",
        "`hydra.launcher._target_`: must be a plugin of Hydra",
    ),
    "handler": (
        "job_logging: {handlers: {x: {(): os.system, command: 'touch owned'}}}",
        "`hydra.job_logging.handlers.x.()`: a factory may not be named",
    ),
    "class": (
        "job_logging: {handlers: {x: {class: logging.os.system, command: 'touch owned'}}}",
        "`hydra.job_logging.handlers.x.class`: must be one of logging.StreamHandler",
    ),
    "formatter": (
        "hydra_logging: {formatters: {x: {(): os.system, command: 'touch owned'}}}",
        "`hydra.hydra_logging.formatters.x.()`: a factory may not be named",
    ),
    "object": (
        "job_logging: {handlers: {console: {stream: 'ext://os.environ'}}}",
        "`hydra.job_logging.handlers.console.stream`: must be one of ext://sys.stdout",
    ),
    "interpolated": (
        "job_logging: {handlers: {x: '${hydra:job.name}'}}",
        "`hydra.job_logging.handlers.x`: must be written out",
    ),
    "elsewhere": (
        "job_logging: {handlers: {x: '${hydra.hydra_logging.loggers}'}}\n"
        "  hydra_logging: {loggers: {(): os.system, command: 'touch owned'}}",
        "`hydra.job_logging.handlers.x.()`: a factory may not be named",
    ),
    "environment": (
        "job: {env_set: {LD_PRELOAD: evil.so}}",
        "`hydra.job.env_set.LD_PRELOAD`: set it in the environment",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_experiment_is_refused_before_hydra_acts(name, tmp_path, monkeypatch, capsys):
    text, problem = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/hostile.yaml").write_text(f"# @package _global_\nhydra:\n  {text}\n")
    ran = []
    arguments = ["--config-dir", "conf", "experiment=hostile", "name=x"]
    status = run_command("train", ran.append, arguments, needs=TRAINING_NEEDS)
    assert problem in capsys.readouterr().err
    assert status == BAD_INPUT
    assert not ran
    assert not Path("owned").exists()
    assert not Path("runs").exists()


def test_what_hydra_does_by_itself_is_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, given in (
        ("train", []),
        ("train", ["sweep=retrieval"]),
        ("plan", ["users=1e6", "items=1e5"]),
    ):
        cfg = compose(command, given, with_hydra=True)
        before = OmegaConf.to_container(cfg)
        check(cfg, TRAINING_NEEDS)
        assert OmegaConf.to_container(cfg) == before
    ran = []
    assert run_command("train", ran.append, ["name=x"], needs=TRAINING_NEEDS) == DONE
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("os.system", "may not be built from a config"),
        ("twotower.cli.main.main", "may not be built from a config; it is no part of a model"),
        ("twotower.planning.probe._probe", "no part of a model"),
        ("twotower.training.run_folder.write_whole", "no part of a model"),
        ("twotower.config_files.write_spec", "is a function that no config may call"),
        ("twotower.data.prepared.write_arrow", "is a function that no config may call"),
        ("twotower.models.mlp._hidden", "no part of a model"),
        ("twotower.config.build", "no part of a model"),
        ("pytorch_lightning.cli.LightningCLI", "no part of a model"),
        ("twotower.data.files.np.load", "cannot be imported"),
        ("twotower.config_files.yaml", "is not a class or function"),
    ],
)
def test_nothing_is_called_of_a_config_that_was_never_checked(target, problem):
    node = {
        "_target_": "twotower.models.mlp.MLP",
        "input_width": 2,
        "hidden": [2, {"_target_": target, "command": "touch owned"}],
    }
    with pytest.raises(ConfigError, match=problem):
        build(OmegaConf.create(node))
    assert not Path("owned").exists()


def test_the_model_of_a_run_is_checked_before_it_is_built(tmp_path):
    class Pipeline:
        def inputs(self, stage):
            return ModelInputs(features=(), history_length=0, history_features=())

    config = compose("train", ["data=synthetic"])
    config.stages = ["retrieval"]
    OmegaConf.set_struct(config, False)
    config.models.retrieval.extra = {
        "_target_": "twotower.data.column_file.ColumnFile",
        "path": str(tmp_path / "written"),
        "num_rows": 1,
    }
    with pytest.raises(ConfigError, match=r"`extra`: unknown"):
        _model(tmp_path, config, Pipeline(), "retrieval")
    assert not (tmp_path / "written").exists()
