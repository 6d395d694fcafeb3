"""From the command line to checked configs and objects; home of Hydra besides the commands.

`compose` reads YAML and overrides, `check` holds the result against the signatures it names,
`build` makes the objects. A field that our own code reads stands in a dataclass of `config_schema`;
a field that is only handed to a constructor is typed by the signature of that constructor.

Registered here for use in YAML:

- ``train_schema``, ``export_schema``, ... in a defaults list: the typed fields of a command;
- ``run_folder: new`` in a defaults list: the command writes a run folder, with its log;
- ``run_folder: none`` in a defaults list: it writes neither;
- ``${run_dir:name,resume}``: a new folder for a run, or the folder of the run to be resumed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from twotower.config_check import find_problems
from twotower.config_compose import COMPOSE_ERRORS, misspelt_choices, override_problems
from twotower.config_hydra import hydra_problems
from twotower.config_schema import SCHEMAS
from twotower.config_targets import refuse_targets
from twotower.config_types import PARTIAL, TARGET

VERSION_BASE = "1.3"

# What tells a run folder from any other.
RUN_CONFIG = "config.yaml"


class ConfigError(ValueError):
    """A config that cannot be used; one message lists all its problems.

    Args:
        problems: One sentence each, beginning with the path of the key.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Refused(Exception):  # noqa: N818
    """A gate or an alert said no: the work was done and its result is not acceptable."""


# Log lines on the screen are messages alone; in a log file they have time and origin.
SCREEN = {"formatter": "screen", "stream": "ext://sys.stderr"}
SCREEN_FORMATTER = {"screen": {"format": "%(message)s"}}

RUN_FOLDER = {
    "hydra": {
        "run": {"dir": "${run_dir:${name},${resume}}"},
        "sweep": {
            "dir": "runs/${name}/sweep-${now:%Y-%m-%d_%H-%M-%S}",
            "subdir": "${hydra.job.num}",
        },
        "output_subdir": None,  # The command itself writes the config.
        "job_logging": {"formatters": SCREEN_FORMATTER, "handlers": {"console": SCREEN}},
    }
}
NO_RUN_FOLDER = {
    "hydra": {
        "run": {"dir": "."},
        "output_subdir": None,
        # The handler of the log file stays unattached; delayed, it never opens the file.
        "job_logging": {
            "formatters": SCREEN_FORMATTER,
            "handlers": {"file": {"delay": True}, "console": SCREEN},
            "root": {"handlers": ["console"]},
        },
    }
}


def config_dir() -> Path:
    """The folder of YAML files: in the package when installed, else at the top of the checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def run_dir(name: str, resume: str | None, root: str = "runs") -> str:
    """The folder of a run; a new one is created, so that two runs never share it.

    Args:
        name: Name of the run, a folder below `root`.
        resume: Folder of the run to go on with, or None.
        root: Folder of all runs.

    Returns:
        `resume`, or `<root>/<name>/<date>_<time>` with a number appended when that is taken.

    Raises:
        ValueError: When there is nothing to resume.
    """
    if resume is not None:
        if not Path(resume).is_dir():
            raise ValueError(f"`resume`: no run folder `{resume}`")
        if not (Path(resume) / RUN_CONFIG).is_file():
            raise ValueError(f"`resume`: no run in `{resume}`, it holds no {RUN_CONFIG}")
        return resume
    parent = Path(root) / name
    parent.mkdir(parents=True, exist_ok=True)
    stem = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(1):
        folder = parent / (stem if number == 1 else f"{stem}_{number:04}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        break
    return str(folder)


def compose(
    config_name: str,
    overrides: Sequence[str] = (),
    *,
    extra_dir: str | None = None,
    with_hydra: bool = False,
) -> DictConfig:
    """Compose a config from the YAML files and overrides.

    Args:
        config_name: Name of the primary config, such as ``train``.
        overrides: Overrides in Hydra's syntax, such as ``data=synthetic`` or ``seed=3``.
        extra_dir: A further folder of configs.
        with_hydra: Whether Hydra's own part stays in it.

    Returns:
        The config.

    Raises:
        ConfigError: When an override, a file or a folder is wrong; wrong overrides are all listed.
    """
    given = list(overrides)
    if extra_dir is not None:
        if not Path(extra_dir).is_dir():
            raise ConfigError([f"no folder of configs `{extra_dir}`"])
        given.append(f"hydra.searchpath=['file://{Path(extra_dir).absolute()}']")
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        try:
            cfg = hydra_compose(config_name, given, return_hydra_config=with_hydra)
        except COMPOSE_ERRORS as error:
            raise ConfigError(override_problems(config_name, given, error)) from None
        problems = misspelt_choices(given)
    if problems:
        raise ConfigError(problems)
    return cfg


def options_of(group: str, extra_dir: str | None = None) -> list[str]:
    """Names of the options of a group, sorted.

    Args:
        group: Such as ``losses/retrieval``.
        extra_dir: A further folder of configs.
    """
    folders = [config_dir(), *([] if extra_dir is None else [Path(extra_dir)])]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def check(cfg: DictConfig, runtime: Collection[str] = (), *, unused: Collection[str] = ()) -> None:
    """Refuse a config whose objects could not be built; nothing is built here.

    Args:
        cfg: A composed config, with or without Hydra's own part. Values that only exist inside a
            running job, ``${hydra:...}``, are taken as given.
        runtime: Names of arguments that are passed to `build` and so may be missing.
        unused: Parts of which nothing is built; what they name is not imported.

    Raises:
        ConfigError: With every problem found.
    """
    job = HydraConfig.instance()
    outer, job.cfg = job.cfg, None  # The values of an earlier job must not stand in.
    try:
        problems = []
        if "hydra" in cfg:
            problems = hydra_problems(cfg.hydra)
            cfg = cfg.copy()
            with read_write(cfg), open_dict(cfg):
                del cfg["hydra"]
        if unused:
            cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in unused])
        problems += find_problems(cfg, runtime)
    finally:
        job.cfg = outer
    if problems:
        raise ConfigError(problems)


def build(node: DictConfig, **runtime: Any) -> Any:  # noqa: ANN401
    """Build the object that a mapping with ``_target_`` describes.

    Nested mappings with ``_target_`` are built first; those with ``_partial_: true`` become
    factories. Objects given here reach the constructor as they are: Hydra would copy or convert
    some of them if it were handed them.

    Args:
        node: A checked mapping with ``_target_``.
        runtime: Arguments that do not stand in YAML.

    Returns:
        The object; a factory when `node` itself is marked ``_partial_: true``.

    Raises:
        ConfigError: When a nested constructor refuses its arguments, or something is named that no
            config may name; also in a config that was read from a run and not checked.
    """
    if TARGET not in node:
        raise ConfigError([f"nothing to build: no `{TARGET}` among {', '.join(map(str, node))}"])
    try:
        refuse_targets(OmegaConf.to_container(node, resolve=True))
    except ValueError as error:
        raise ConfigError(str(error).splitlines()) from None
    try:
        factory = instantiate(node, _partial_=True, _convert_="all")
    except InstantiationException as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        place = re.search(r"full_key: (\S+)", str(error))
        path = f"`{place[1]}`: " if place else ""
        raise ConfigError([path + str(error.__cause__)]) from error.__cause__
    return functools.partial(factory, **runtime) if node.get(PARTIAL) else factory(**runtime)


def _register() -> None:
    store = ConfigStore.instance()
    for schema in SCHEMAS:
        name = schema.__name__.removesuffix("Config").lower()
        store.store(name=f"{name}_schema", node=schema)
    for name, node in (("new", RUN_FOLDER), ("none", NO_RUN_FOLDER)):
        store.store(group="run_folder", name=name, node=node, package="_global_")
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True, use_cache=True)


_register()
