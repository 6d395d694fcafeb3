"""Whatever README and docs/ show can be done: every command is composed and checked.

Nothing is trained here; the walks beside this file run the commands of three pages, all of them in
order. A line of a ``bash`` block must be of a kind that `check_line` knows, so none is shown
unchecked. Examples in Python name what there is, examples in YAML and JSON can be read.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel

from tests.pages import PAGES, ROOT, blocks, commands, files
from twotower.cli.doctor import OPTIONS
from twotower.cli.main import COMMANDS
from twotower.cli.run import TRAINING_NEEDS
from twotower.config import check, compose, config_dir
from twotower.config_compose import first_values
from twotower.config_targets import PACKAGES
from twotower.features.spec import spec_from_dict
from twotower.serving.server.wire import RecommendBody, RemoveBody, UpsertBody

LINES = [(page, line) for page in PAGES for line in commands(page)]
SCRIPTS = {"train.py": "train", "export.py": "export"}
RUNTIME = {
    **dict.fromkeys(("train", "prepare"), TRAINING_NEEDS),
    **dict.fromkeys(("batch", "lookup"), ("name",)),
}
# Where programs of somebody else are set up; only their syntax is checked.
ELSEWHERE = {
    "docs/triton.md": ("docker", "python3", "triton-env/bin/pip", "cp", "S=", "PATH="),
    "docs/export.md": ("ln",),
    "docs/serving.md": ("ln",),
}
SCRIPT_FOLDERS = ("benchmarks/", "docs/")
BODIES: dict[str, type[BaseModel]] = {
    "/v1/recommend": RecommendBody,
    "/v1/items:upsert": UpsertBody,
    "/v1/items:remove": RemoveBody,
}


def check_config(command: str, arguments: list[str]) -> None:
    """Compose and check every job of a command."""
    folder = None
    if "--config-dir" in arguments:
        place = arguments.index("--config-dir")
        folder = arguments[place + 1]
        arguments = arguments[:place] + arguments[place + 2 :]
    if arguments[-2:] == ["--cfg", "job"]:
        arguments = arguments[:-2]
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
    extras = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras
    assert {one for some in extras for one in some.split(",")} <= set(
        project["optional-dependencies"]
    )


def check_tensorboard(arguments: list[str]) -> None:
    assert arguments[0] == "--logdir"
    assert f"{arguments[1]}/".startswith("runs/")


def check_torchrun(arguments: list[str]) -> None:
    place = arguments.index("train.py")
    options, values = arguments[:place:2], arguments[1:place:2]
    assert len(options) == len(values)
    assert set(options) <= {"--nproc-per-node", "--nnodes", "--node-rank", "--master-addr"}
    check_config("train", arguments[place + 1 :])


def check_curl(arguments: list[str]) -> None:
    """The body is one that the server takes at this route."""
    [url] = [word for word in arguments if word.startswith("localhost:")]
    path = url.partition("/")[1] + url.partition("/")[2]
    body = json.loads(arguments[arguments.index("-d") + 1])
    if path.startswith("/v2/models/recommender/"):
        assert {"name", "shape", "datatype", "data"} == set(body["inputs"][0])
    else:
        BODIES[path].model_validate(body)


def check_script(arguments: list[str]) -> None:
    """A script that is there, and flags that stand in it."""
    source = (ROOT / arguments[0]).read_text()
    assert all(f'"{word}"' in source for word in arguments if word.startswith("--"))


def check_export(arguments: list[str]) -> None:
    """Variables that the program reads."""
    assert {word.partition("=")[0] for word in arguments} <= {PACKAGES, "PYTHONPATH"}


OTHERS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "pip": check_pip,
    "torchrun": check_torchrun,
    "tensorboard": check_tensorboard,
    "curl": check_curl,
    "export": check_export,
}


def check_line(line: str, page: str = "README.md") -> None:
    """Check one line of a block; any kind that is not known here fails."""
    program, *arguments = shlex.split(line, comments=True)
    if program.startswith(ELSEWHERE.get(page, ("nothing",))):
        assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0
        return
    if [program, *arguments][:4] == ["OMP_NUM_THREADS=1", *["taskset", "-c", "0"]]:
        program, *arguments = arguments[3:]
    if program in OTHERS:
        OTHERS[program](arguments)
        return
    assert program in ("python", "twotower")
    command, *arguments = arguments
    if command.startswith(SCRIPT_FOLDERS):
        check_script([command, *arguments])
        return
    name = SCRIPTS[command] if program == "python" else command
    assert name in COMMANDS
    if program == "python":
        assert (ROOT / command).is_file()
    if name == "doctor":
        check_doctor(arguments)
    else:
        check_config(name, arguments)


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """A folder in which the reader has saved the files that the pages show."""
    saved = files("docs/extend.md")
    [experiment] = [one for one in blocks("docs/own_data.md", "yaml") if "@package" in one]
    saved["conf/experiment/shop.yaml"] = experiment
    for name, text in saved.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PACKAGES, "shop")
    monkeypatch.syspath_prepend(tmp_path)


def test_there_are_commands_of_every_kind():
    assert len(LINES) > 80
    shown = " ".join(line for _, line in LINES)
    for command in COMMANDS:
        assert f"twotower {command}" in shown


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_is_right(page, line):
    check_line(line, page)


@pytest.mark.parametrize(
    "line",
    [
        "python train.py experiment=demmo",
        "twotower train trainer.acelerator=cpu",
        "twotower export",
        "python serve.py",
        "python benchmarks/quality/run.py --sedes 1",
        "twotower trian",
        "twotower doctor dta=log.csv",
        "make demmo",
        "pip install -c constraints.txt -e '.[cpuu]'",
        "pip install -c constraints.txt -e '.[cpu,srve]'",
        "curl something",
        """curl -s localhost:8080/v1/recommend -d '{"usr": "u17"}'""",
        """curl -s localhost:8080/v1/recomend -d '{"user": "u17"}'""",
        "docker run something",
        "export TWOTOWER_PACKAGE=shop",
    ],
)
def test_a_stale_command_is_found(line):
    with pytest.raises((ValueError, AssertionError, KeyError)):
        check_line(line)


@pytest.mark.parametrize("page", PAGES)
def test_examples_in_python_name_what_there_is(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twotower"):
                module = import_module(node.module)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_examples_in_json_and_yaml_can_be_read(page):
    for block in blocks(page, "json"):
        json.loads(block)
    for block in blocks(page, "yaml"):
        yaml.safe_load(block)


def test_the_features_that_are_shown_can_be_read():
    found = map(yaml.safe_load, blocks("docs/own_data.md", "yaml"))
    [document] = [one for one in found if "features" in one]
    spec = spec_from_dict(document)
    assert spec.history.length == 50
    assert {feature.kind for feature in spec.features} == {
        *("id", "categorical", "tags", "numeric", "time")
    }


def test_the_experiment_that_is_shown_is_composed():
    config = compose("train", ["experiment=shop"], extra_dir="conf")
    assert config.name == "shop"
    assert config.data.columns.user_id == "visitor"


def rows_after(page: str, heading: str) -> list[list[str]]:
    """The cells of the table that has a heading row with a word in the first cell."""
    lines = PAGES[page].splitlines()
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
    rows = rows_after("docs/commands.md", "command")
    assert [names(row[0]) for row in rows] == [[f"twotower {c}"] for c in COMMANDS]


def test_the_table_of_groups_is_complete_and_begins_with_the_defaults():
    shown = {
        names(row[0])[0]: names(row[1]) for row in rows_after("docs/configuration.md", "group")
    }
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


def test_the_table_of_losses_is_complete():
    shown = {names(row[0])[0] for row in rows_after("docs/losses.md", "`losses/retrieval=`")}
    assert shown == {path.stem for path in (config_dir() / "losses/retrieval").glob("*.yaml")}


def test_the_table_of_statuses_is_that_of_the_commands():
    from twotower.cli import run

    statuses = {run.DONE, run.UNEXPECTED, run.BAD_INPUT, run.REFUSED, run.INTERRUPTED}
    rows = rows_after("docs/commands.md", "exit status")
    assert {int(row[0]) for row in rows} == statuses


def test_variables_of_the_environment_are_read_by_the_program():
    rows = rows_after("docs/configuration.md", "variable of the environment")
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    configs = "".join(path.read_text() for path in config_dir().rglob("*.yaml"))
    assert [row[0] for row in rows if names(row[0])[0] not in source + configs] == []


def test_the_layout_names_every_folder_of_the_source():
    shown = re.findall(r"^  (\w+)/ ", PAGES["README.md"], flags=re.MULTILINE)
    there = [path.parent.name for path in (ROOT / "src" / "twotower").glob("*/__init__.py")]
    assert sorted(shown) == sorted(there)


def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings, as they are made into anchors."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page])
    for target in targets:
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_page_is_in_the_index_and_in_the_readme():
    pages = {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"}
    index = set(re.findall(r"\]\((\w+\.md)\)", PAGES["docs/README.md"]))
    readme = set(re.findall(r"\]\(docs/(\w+\.md)\)", PAGES["README.md"]))
    assert index == pages
    assert readme == pages


def test_the_first_screen_shows_a_picture_and_a_table():
    first = PAGES["README.md"].split("\n## ")[0].splitlines()[:25]
    assert [line for line in first if line.startswith("![")]
    assert [line for line in first if line.startswith("| ")]
