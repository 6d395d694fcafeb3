"""Say what is wrong with the overrides of a command, all of them at once.

Hydra stops at the first override that it cannot apply. Here every override is tried on its own, on
top of the choices of group options that are right, so that one message can list all mistakes with
the names that exist. All functions need Hydra to be initialised with the config folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import yaml  # type: ignore[import-untyped]
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from twotower.config_check import unknown

COMPOSE_ERRORS: tuple[type[Exception], ...] = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
)


def override_problems(config_name: str, overrides: Sequence[str], error: Exception) -> list[str]:
    """Why a config cannot be composed.

    Args:
        config_name: Name of the primary config.
        overrides: Overrides as given on the command line.
        error: What Hydra raised when it composed them together.

    Returns:
        One sentence for each mistake; at least one.
    """
    problems: list[str] = []
    values: list[str] = []
    choices: list[str] = []
    # Where configs are looked for holds for every attempt.
    right = [text for text in overrides if text.startswith("hydra.searchpath=")]
    groups = set(_groups())
    for text in overrides:
        parsed = _parse(text)
        if text in right:
            continue
        if isinstance(parsed, str):
            problems.append(parsed)
        else:
            (choices if parsed.key_or_group in groups else values).append(text)
    # A choice in a group may bring further groups along, so the shortest names come first.
    for choice in sorted(choices, key=lambda choice: choice.count("/")):
        failure = _attempt(config_name, [*right, choice])
        if failure is None:
            right.append(choice)
        else:
            problems.append(_explain(failure, choice))
    for value in values:
        failure = _attempt(config_name, [*right, value])
        if failure is not None:
            problems.append(_explain(failure, value))
    return list(dict.fromkeys(problems)) or [_explain(error, "")]


def misspelt_choices(overrides: Sequence[str]) -> list[str]:
    """Group options chosen with a dot, which Hydra would take for a plain text value.

    Args:
        overrides: Overrides that can be composed.

    Returns:
        One sentence for each of them.
    """
    problems = []
    for text in overrides:
        parsed = _parse(text)
        if isinstance(parsed, str) or "." not in parsed.key_or_group or parsed.value() is None:
            continue
        group = parsed.key_or_group.replace(".", "/")
        if _is_group(group):
            options = ", ".join(_loader().get_group_options(group))
            problems.append(
                f"`{text}`: `{group}` is a group; choose with `{group}=<option>`, one of {options}"
            )
    return problems


def first_values(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The jobs of a sweep that between them hold every swept value once.

    Args:
        overrides: Overrides, of which some may name several values.

    Yields:
        Overrides of one job: the first value of every sweep, then each other value in turn.
        Of an interval, its ends.
    """
    choices: list[list[str]] = []
    for text in overrides:
        parsed = _parse(text)
        if isinstance(parsed, str) or not parsed.is_sweep_override():
            choices.append([text])
        else:
            choices.append([f"{parsed.get_key_element()}={value}" for value in _values(parsed)])
    first = [values[0] for values in choices]
    yield first
    for index, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:index], value, *first[index + 1 :]]


def _values(override: Override) -> Iterator[object]:
    """The values of a sweep; of an interval, its ends."""
    swept = override.value()
    if isinstance(swept, IntervalSweep):
        yield from (swept.start, swept.end)
    else:
        yield from override.sweep_string_iterator()


def with_params(params: Mapping[Any, Any], overrides: Sequence[str]) -> list[str]:
    """All overrides of a sweep; of two for one key the later one holds.

    Args:
        params: What stands below `hydra.sweeper.params`, by key.
        overrides: Overrides of the command line.
    """
    return [*(f"{key}={value}" for key, value in params.items()), *overrides]


def _parse(text: str) -> Override | str:
    """An override, or the sentence that says why it is none."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        if "=" not in text:
            return f"`{text}`: not of the form key=value: there is no `=`"
        key, _, value = text.partition("=")
        quoted = "" if "'" in value else f"""; put the value in quotes twice: '{key}="{value}"'"""
        return f"`{text}`: not of the form key=value: {str(error).splitlines()[0]}{quoted}"


def _attempt(config_name: str, overrides: Sequence[str]) -> Exception | None:
    try:
        compose(config_name, overrides=list(overrides))
    except COMPOSE_ERRORS as error:
        return error
    return None


def _explain(error: Exception, override: str) -> str:
    """One sentence for what Hydra raised; with the names that exist where a name was wrong."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        path = f"{group}={option}" if group else option
        return unknown(path, option, _loader().get_group_options(group))
    where = str(error).partition(":")[0] + ": " if str(error).startswith("In '") else ""
    cause = _omegaconf_cause(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        parent = cause.parent_node
        valid = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
        if cause.full_key == cause.key:
            valid = sorted({*valid, *_groups()} - {"hydra"} - set(_groups("hydra")))
        return where + unknown(cause.full_key, str(cause.key), valid)
    subject = f"`{override}`: " if override else ""
    key, _, value = override.partition("=")
    if isinstance(cause, ValidationError) and "is not a ListConfig" in str(cause):
        return f"{subject}{where}must be a list, got {value}; write {key}=[{value}]"
    if below := [group for group in _groups() if group.startswith(f"{key}/")]:
        return f"{subject}`{key}` is no group with options; groups are {', '.join(below)}"
    if cause is not None:
        return subject + where + str(cause).splitlines()[0]
    return subject + str(error).partition("\nConfig search path")[0].strip()


def _omegaconf_cause(error: BaseException | None) -> OmegaConfBaseException | None:
    while error is not None and not isinstance(error, OmegaConfBaseException):
        error = error.__cause__ or error.__context__
    return error


def _groups(parent: str = "") -> list[str]:
    """All groups below a group, `losses/retrieval` among them."""
    # The loader itself copies all that it has read, for every question.
    repository = _loader().repository
    found = []
    for name in repository.get_group_options(parent, ObjectType.GROUP):
        group = f"{parent}/{name}" if parent else name
        found += [group, *_groups(group)]
    return found


def _is_group(name: str) -> bool:
    """Whether there is such a group; a look at folders, where the list of all takes 0.4 seconds."""
    return _loader().repository.group_exists(name)


def _loader() -> ConfigLoaderImpl:
    return cast(ConfigLoaderImpl, GlobalHydra.instance().config_loader())
