"""Every YAML file under `configs/` is chosen once, and the choice is seen in what is composed.

A file is an option of a group, or the primary config of a command. An option is chosen through a
command whose defaults list names its group; a group that no command names would be found unused.
"""

from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from twotower.cli.main import COMMANDS
from twotower.cli.run import TRAINING_NEEDS
from twotower.config import check, compose, config_dir
from twotower.config_compose import first_values, with_params
from twotower.config_files import read_yaml

CONFIGS = config_dir()
FILES = {str(p.relative_to(CONFIGS).with_suffix("")): p for p in sorted(CONFIGS.rglob("*.yaml"))}
PRIMARY = [name for name in FILES if "/" not in name]
OPTIONS = [name for name in FILES if "/" in name]
EXPERIMENTS = [name for name in OPTIONS if name.startswith("experiment/")]
SWEEPS = [name for name in OPTIONS if name.startswith("sweep/")]

STORE_NEEDS = ("name",)
NEEDS = {
    **dict.fromkeys(("train", "prepare"), TRAINING_NEEDS),
    **dict.fromkeys(("batch", "lookup"), STORE_NEEDS),
}
# What a user must give, because there is no default.
MUST_BE_GIVEN = {
    "export": ["run=runs/x"],
    "retrain": ["bundle=bundles/x", "interactions=x.parquet"],
    "rollback": ["bundle=bundles/x"],
    "evaluate": ["bundle=bundles/x"],
    "recommend": ["bundle=bundles/x"],
    "explain": ["bundle=bundles/x", "item=s3"],
    "batch": ["bundle=bundles/x"],
    "lookup": ["name=x", "user=x"],
    "serve": ["bundle=bundles/x"],
    "embed": ["model=x.onnx", "items=x.parquet"],
    "monitor": ["bundle=bundles/x"],
    "plan": ["users=1e8", "items=1e9"],
    "encoder_input/images": ["encoder_input.column=picture"],
    "data/tables": ["data.interactions=x.parquet"],
    "data/impressions": ["data.interactions=x.parquet"],
    "features/file": ["features.path=x.yaml"],
    "experiment/clicks": ["data.interactions=x.parquet"],
}
MAX_LINES = 15
# The list of all groups of a training, and all settings of a stage; a second file could only be
# found by reading the first.
LONGER = {"train": 26, "training/retrieval/default": 16, "training/ranking/default": 16}


@cache
def raw(name):
    return OmegaConf.load(FILES[name])


def defaults(name):
    """Group and option of every entry in a defaults list that is a choice."""
    for entry in raw(name).get("defaults", []):
        if isinstance(entry, DictConfig):
            ((group, option),) = entry.items()
            yield group.removeprefix("override ").strip("/"), option


@cache
def command_of(group):
    """The command through which an option of a group is chosen."""
    for name in ("train", *PRIMARY):
        if group in dict(defaults(name)):
            return name
    pytest.fail(f"no command has the group `{group}`: its files are unused")


@cache
def chosen(name):
    """The command's config with an option chosen."""
    group, _, option = name.rpartition("/")
    command = command_of(group)
    given = [*MUST_BE_GIVEN.get(command, []), *MUST_BE_GIVEN.get(name, [])]
    return command, compose(command, [f"{group}={option}", *given])


def leaves(node, path=()):
    """Path and value of everything in a file that is no mapping; `defaults` is Hydra's."""
    for key in node:
        if OmegaConf.is_missing(node, key) or (not path and key == "defaults"):
            continue
        value = node._get_node(key)
        if isinstance(value, DictConfig):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def plain(node):
    return OmegaConf.to_container(node) if isinstance(node, ListConfig) else node._value()


def assert_holds(config, name, *, package):
    """Everything that a file says stands in the config, unresolved, below the package."""
    found = list(leaves(raw(name)))
    for path, value in found:
        node = config
        for key in (*package, *path):
            node = node._get_node(key)
            assert node is not None, f"{name}: {'.'.join(path)} is not in the config"
        assert plain(node) == plain(value), f"{name}: {'.'.join(path)}"
    return len(found)


@pytest.mark.parametrize("name", PRIMARY)
def test_command_is_composed_and_right(name):
    config = compose(name, MUST_BE_GIVEN.get(name, []))
    check(config, NEEDS.get(name, ()))
    assert_holds(config, name, package=())
    for group, option in defaults(name):
        if option is not None and f"{group}/{option}" in FILES:
            assert_holds(config, f"{group}/{option}", package=group.split("/"))


@pytest.mark.parametrize("name", [n for n in OPTIONS if n not in {*EXPERIMENTS, *SWEEPS}])
def test_option_is_chosen_and_right(name):
    group, _, _ = name.rpartition("/")
    command, config = chosen(name)
    check(config, NEEDS.get(command, ()))
    assert assert_holds(config, name, package=group.split("/")) > 0
    assert "_target_" in OmegaConf.select(config, group.replace("/", "."))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_is_chosen_and_right(name):
    command, config = chosen(name)
    assert command == "train"
    check(config, TRAINING_NEEDS)
    assert assert_holds(config, name, package=()) > 0
    assert config.name == name.removeprefix("experiment/")
    for group, option in defaults(name):
        expected = compose("train", [f"{group}={option}"])
        path = group.replace("/", ".")
        assert OmegaConf.select(config, path)._target_ == OmegaConf.select(expected, path)._target_


@pytest.mark.parametrize("name", SWEEPS)
def test_search_space_is_chosen_and_right(name):
    """Only Hydra's part is set, and both ends of every interval and all choices can be trained."""
    assert {path[0] for path, _ in leaves(raw(name))} == {"hydra"}
    choice = name.replace("/", "=")
    config = compose("train", [choice], with_hydra=True)
    assert assert_holds(config, name, package=()) > 0
    sweeper = config.hydra.sweeper
    assert f"sweep/{sweeper.stage}" == name
    jobs = list(first_values(with_params(sweeper.params, [choice])))
    assert len(jobs) > len(sweeper.params)
    for job in jobs:
        check(compose("train", job), TRAINING_NEEDS)


@pytest.mark.parametrize("name", FILES)
def test_file_is_short(name):
    assert len(FILES[name].read_text().splitlines()) <= LONGER.get(name, MAX_LINES)


def test_every_command_has_its_config_and_every_config_its_command():
    assert set(PRIMARY) == set(COMMANDS) - {"doctor"}


def test_options_of_a_group_differ():
    """Two options that compose to the same would be one too many."""
    composed = {}
    for name in OPTIONS:
        group, _, _ = name.rpartition("/")
        _, config = chosen(name)
        text = OmegaConf.to_yaml(config if name not in SWEEPS else raw(name))
        assert text not in composed.setdefault(group, {}), f"{name} is {composed[group].get(text)}"
        composed[group][text] = name


def test_lists_of_options_are_not_empty():
    """The files were found at all."""
    assert len(PRIMARY) >= 5
    assert len(OPTIONS) >= 30
    assert len(EXPERIMENTS) >= 2


QUALITY = Path(__file__).parents[1] / "benchmarks" / "quality"
TABLES = read_yaml(QUALITY / "tables.yaml")
PARTS = read_yaml(QUALITY / "ablation.yaml")


@pytest.mark.parametrize("name", [*TABLES, "ablation"])
def test_experiment_of_a_published_table(name):
    """What a table is judged by is computed."""
    config = compose("train", [f"experiment={name}"], extra_dir=str(QUALITY))
    check(config, TRAINING_NEEDS)
    assert config.name == name
    if name in TABLES:
        assert TABLES[name].stage in config.stages
        ks = {int(metric.split("@")[1]) for metric in TABLES[name].metrics if "@" in metric}
        assert ks <= set(config.evaluation.ks)


def test_every_table_has_an_experiment():
    found = {path.stem for path in (QUALITY / "experiment").glob("*.yaml")}
    assert found == {*TABLES, "ablation"}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_loss_can_be_switched_off(part):
    base = compose("train", ["experiment=ablation"], extra_dir=str(QUALITY))
    config = compose("train", ["experiment=ablation", *PARTS[part]], extra_dir=str(QUALITY))
    check(config, TRAINING_NEEDS)
    assert (config == base) == (part == "everything on")
