"""What a dotted path in a config may name: our own parts, those of torch, packages of the user.

A config or a run may come from somebody else, so a name is held against a list before anything is
imported, and what is found must be defined where it was looked for.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from twotower.config_types import TARGET

OWN = "twotower."
ALLOWED_TARGETS = (OWN, "torch.optim.", "torch.nn.", "pytorch_lightning.")
# Packages of the user that configs may name, `shop` or `shop,other`. It stands in the environment
# and not in a config, because configs and runs may come from somebody else.
PACKAGES = "TWOTOWER_PACKAGES"

# Parts of these that start processes, write files or build what no one has checked.
NEVER_TARGETS = (
    *("twotower.cli.", "twotower.config.", "twotower.config_check.", "twotower.config_compose."),
    *("twotower.planning.", "twotower.data.download."),
    *("twotower.training.run_folder.", "pytorch_lightning.cli."),
)
# Functions of ours that configs may call: others may write files.
OWN_FUNCTIONS = (
    *("twotower.models.", "twotower.losses."),
    *("twotower.config_files.spec_file", "twotower.data.tables.declared_label"),
)


def allowed_targets() -> tuple[str, ...]:
    """What dotted paths in configs may begin with: our packages, and those the user names."""
    named = (name.strip(" .") for name in os.environ.get(PACKAGES, "").split(","))
    return (*ALLOWED_TARGETS, *(f"{name}." for name in named if name))


def locate(name: str) -> Callable[..., Any]:
    """The class or function behind a dotted path.

    Args:
        name: Dotted path of a class or function.

    Returns:
        The class or function.

    Raises:
        ValueError: When the path may not be used in a config, or leads nowhere.
    """
    prefixes = allowed_targets()
    allowed = (
        f"allowed: {', '.join(prefix + '*' for prefix in prefixes)}; a package of your own is "
        f"allowed by the environment: {PACKAGES}={name.partition('.')[0]}"
    )
    if not name.startswith(prefixes):
        raise ValueError(f"`{name}` may not be built from a config; {allowed}")
    private = any(part.startswith("_") for part in name.split("."))
    if name.startswith(NEVER_TARGETS) or (private and name.startswith(ALLOWED_TARGETS)):
        raise ValueError(f"`{name}` may not be built from a config; it is no part of a model")
    module_name, _, attribute = name.rpartition(".")
    try:
        module = import_module(module_name)
    except ImportError as error:
        top = name.partition(".")[0]
        hint = "; put the folder that holds it on PYTHONPATH, or install it"
        lacking = isinstance(error, ModuleNotFoundError) and error.name == top
        raise ValueError(
            f"`{name}` cannot be imported: {error}{hint if lacking else ''}"
        ) from error
    found = getattr(module, attribute, None)
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        names = [k for k, v in vars(module).items() if getattr(v, "__module__", "") == module_name]
        close = get_close_matches(attribute, names, n=1)
        hint = f", did you mean `{module_name}.{close[0]}`" if close else ""
        raise ValueError(f"`{name}` is not a class or function{hint}")
    # An allowed module may have imported something that is not allowed.
    if not f"{found.__module__}.".startswith(prefixes):
        raise ValueError(f"`{name}` is `{found.__module__}.{found.__qualname__}`; {allowed}")
    defined = f"{found.__module__}.{found.__name__}"
    is_own = inspect.isroutine(found) and defined.startswith(OWN)
    if is_own and not defined.startswith(OWN_FUNCTIONS):
        raise ValueError(
            f"`{name}` is a function that no config may call; allowed functions of ours: "
            + ", ".join(prefix + "*" * prefix.endswith(".") for prefix in OWN_FUNCTIONS)
        )
    return found


def refuse_targets(value: object) -> None:
    """Refuse a config that names something to be called which no config may name.

    Args:
        value: A config or a part of one, as lists and dicts.

    Raises:
        ValueError: With every such name.
    """
    problems = []
    for name in _targets(value):
        try:
            locate(name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))


def _targets(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if TARGET in value:
            yield str(value[TARGET])
        for child in value.values():
            yield from _targets(child)
    elif isinstance(value, list):
        for child in value:
            yield from _targets(child)
