"""`twotower <command> --help`: what the command does, the groups that it has, and its settings.

Hydra's own help lists the groups of all commands, and takes a second to find them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from twotower.cli.main import COMMANDS
from twotower.config import compose, options_of

if TYPE_CHECKING:
    from omegaconf import DictConfig

WIDTH = 100
FLAGS = {
    "--cfg job": "show the config that the other words make, and stop",
    "--config-dir <folder>": "a folder of configs of yours, beside those of twotower",
    "--multirun": "several values a key, as in seed=1,2: a job for every combination",
    "--hydra-help": "further flags",
}


def help_text(command: str, overrides: Sequence[str], extra_dir: str | None = None) -> str:
    """The help of a command.

    Args:
        command: Its name.
        overrides: What is said beside ``--help``; the settings are those that it makes.
        extra_dir: A further folder of configs.

    Raises:
        ConfigError: When an override is wrong.
    """
    cfg = compose(command, overrides, extra_dir=extra_dir, with_hydra=True)
    chosen = {
        str(group): option
        for group, option in reversed(cfg.hydra.runtime.choices.items())
        if not str(group).startswith(("hydra/", "run_folder"))
    }
    lines = [f"usage: twotower {command} [group=option ...] [key=value ...]"]
    if command in COMMANDS:
        lines += ["", COMMANDS[command]]
    if chosen:
        lines += ["", "groups, with what is chosen in brackets:"]
    for group, option in chosen.items():
        lines += _group(group, option, options_of(group, extra_dir))
    lines += ["", "settings; ??? must be given:", *_settings(cfg)]
    width = max(map(len, FLAGS))
    lines += ["", "flags:", *(f"  {flag:<{width}}  {about}" for flag, about in FLAGS.items())]
    return "\n".join(lines)


def _group(group: str, chosen: str | None, options: Sequence[str]) -> Iterator[str]:
    """A group and its options, on as many lines as they need."""
    shown = ", ".join(f"[{one}]" if one == chosen else one for one in options)
    yield from textwrap.wrap(
        f"{group}: {shown}",
        width=WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )


def _settings(cfg: DictConfig) -> list[str]:
    """The config without Hydra's part, as YAML."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return ["  " + line for line in OmegaConf.to_yaml(own).splitlines()]
