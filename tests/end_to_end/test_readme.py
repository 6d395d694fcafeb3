"""Whatever the README shows can be done: every command is composed and checked, nothing is trained.

A line of a ``bash`` block must be of a kind that `check_line` knows, so none is shown unchecked.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from twotower.cli.doctor import OPTIONS
from twotower.cli.main import COMMANDS
from twotower.cli.run import TRAINING_NEEDS
from twotower.config import check, compose, config_dir
from twotower.config_compose import first_values
from twotower.features.spec import spec_from_dict

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
LINES = [
    line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()
]
YAML = [block for kind, block in BLOCKS if kind == "yaml"]
SCRIPTS = {"train.py": "train", "export.py": "export"}
RUNTIME = {
    **dict.fromkeys(("train", "prepare"), TRAINING_NEEDS),
    **dict.fromkeys(("batch", "lookup"), ("name",)),
}


def check_config(command: str, arguments: list[str]) -> None:
    """Compose and check every job of a command."""
    folder = None
    if "--config-dir" in arguments:
        place = arguments.index("--config-dir")
        folder = arguments[place + 1]
        arguments = arguments[:place] + arguments[place + 2 :]
    is_sweep = "--multirun" in arguments
    overrides = [argument for argument in arguments if argument != "--multirun"]
    for job in first_values(overrides) if is_sweep else [overrides]:
        check(compose(command, job, extra_dir=folder), RUNTIME.get(command, ()))


def check_doctor(arguments: list[str]) -> None:
    unknown = [argument for argument in arguments if argument.split("=")[0] not in OPTIONS]
    assert not unknown


def check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert arguments
    assert set(arguments) <= set(targets)


def check_pip(arguments: list[str]) -> None:
    assert arguments[:2] == ["install", "-c"]
    assert (ROOT / arguments[2]).is_file()
    extras = re.findall(r"\[(\w+)\]", " ".join(arguments))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras
    assert set(extras) <= set(project["optional-dependencies"])


def check_tensorboard(arguments: list[str]) -> None:
    assert arguments[0] == "--logdir"
    assert arguments[1].startswith("runs/")


def check_torchrun(arguments: list[str]) -> None:
    place = arguments.index("train.py")
    options, values = arguments[:place:2], arguments[1:place:2]
    assert len(options) == len(values)
    assert set(options) <= {"--nproc-per-node", "--nnodes", "--node-rank", "--master-addr"}
    check_config("train", arguments[place + 1 :])


OTHERS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "pip": check_pip,
    "torchrun": check_torchrun,
    "tensorboard": check_tensorboard,
}


def check_line(line: str) -> None:
    """Check one line of a block; any kind that is not known here fails."""
    program, *arguments = shlex.split(line, comments=True)
    if program in OTHERS:
        OTHERS[program](arguments)
        return
    assert program in ("python", "twotower")
    command, *arguments = arguments
    name = SCRIPTS[command] if program == "python" else command
    assert name in COMMANDS
    if program == "python":
        assert (ROOT / command).is_file()
    if name == "doctor":
        check_doctor(arguments)
    else:
        check_config(name, arguments)


@pytest.fixture(autouse=True)
def conf(tmp_path, monkeypatch):
    """The folder in which the reader has saved the experiment that the README shows."""
    [experiment] = [block for block in YAML if "@package _global_" in block]
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "shop.yaml").write_text(experiment)
    monkeypatch.chdir(tmp_path)


def test_there_are_commands_of_every_kind():
    assert len(LINES) > 20
    shown = " ".join(LINES)
    for command in (*(name for name in COMMANDS if name not in SCRIPTS.values()), *SCRIPTS):
        assert command in shown


@pytest.mark.parametrize("line", LINES)
def test_a_command_is_right(line):
    check_line(line)


RETRAINING = (ROOT / "docs" / "retraining.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        line
        for block in re.findall(r"^```bash\n(.*?)^```$", RETRAINING, flags=re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ],
)
def test_a_command_of_the_page_on_retraining_is_right(line):
    check_line(line)


@pytest.mark.parametrize(
    "line",
    [
        "python train.py experiment=demmo",
        "python train.py trainer.acelerator=cpu",
        "python export.py",
        "python serve.py",
        "twotower trian",
        "twotower doctor dta=log.csv",
        "make demmo",
        "pip install -c constraints.txt -e '.[cpuu]'",
        "curl something",
    ],
)
def test_a_stale_command_is_found(line):
    with pytest.raises((ValueError, AssertionError, KeyError)):
        check_line(line)


def test_the_features_that_are_shown_can_be_read():
    [document] = [yaml.safe_load(block) for block in YAML if "features:" in block]
    spec = spec_from_dict(document)
    assert spec.history.length == 50
    assert {feature.kind for feature in spec.features} == {
        *("id", "categorical", "tags", "numeric", "time")
    }


def test_the_experiment_that_is_shown_is_composed():
    config = compose("train", ["experiment=shop"], extra_dir="conf")
    assert config.name == "shop"
    assert config.data.columns.user_id == "visitor"


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the table that has a heading row with a word in the first cell."""
    lines = TEXT.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_of_commands_is_complete():
    assert [names(row[0]) for row in rows_after("command")] == [[f"twotower {c}"] for c in COMMANDS]


def test_the_table_of_groups_is_complete_and_begins_with_the_defaults():
    shown = {names(row[0])[0]: names(row[1]) for row in rows_after("group")}
    there: dict[str, set[str]] = {}
    for path in config_dir().rglob("*.yaml"):
        if path.parent != config_dir():
            group = path.parent.relative_to(config_dir()).as_posix()
            there.setdefault(group, set()).add(path.stem)
    assert {group: set(options) for group, options in shown.items()} == there
    for command in ("train", "export"):
        for entry in OmegaConf.load(config_dir() / f"{command}.yaml").defaults:
            if isinstance(entry, str):
                continue
            [(group, option)] = entry.items()
            if group in there and option is not None:  # the others stand in no file
                assert shown[group][0] == option


def test_the_table_of_statuses_is_that_of_the_commands():
    from twotower.cli import run

    statuses = {run.DONE, run.UNEXPECTED, run.BAD_INPUT, run.REFUSED, run.INTERRUPTED}
    assert {int(row[0]) for row in rows_after("exit status")} == statuses


def test_the_layout_names_every_folder_of_the_source():
    shown = re.findall(r"^  (\w+)/ ", TEXT, flags=re.MULTILINE)
    there = [path.parent.name for path in (ROOT / "src" / "twotower").glob("*/__init__.py")]
    assert sorted(shown) == sorted(there)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
