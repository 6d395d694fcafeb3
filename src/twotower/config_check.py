"""Compare a composed config with the signatures it names, before anything is built.

Every mapping with ``_target_`` is a promise to call a class or function with the other keys as
arguments. The promise is held against the signature: unknown keys, missing arguments, values of the
wrong type. The signature is the only schema of such a mapping, so nothing has to be declared twice.
Ranges and combinations are the business of the constructors.

The idea is that of torchtune's `config.validate`; the types are added here.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twotower.config_targets import OWN, locate
from twotower.config_types import (
    PARTIAL,
    TARGET,
    UNKNOWN,
    describe,
    fits,
    is_node,
    is_protocol,
    takes_factory,
)

# What Hydra says to `${hydra:...}` before the job runs; the value cannot be checked until then.
ONLY_IN_A_JOB = ("HydraConfig was not set", "Unsupported interpolation type hydra")


def find_problems(cfg: DictConfig, runtime: Collection[str] = ()) -> list[str]:
    """Everything that would fail when the objects of a config are built.

    Args:
        cfg: A composed config.
        runtime: Names of arguments that the program passes when it builds; they may be missing.

    Returns:
        One sentence each, beginning with the path of the key; empty when the config is right.
    """
    problems: list[str] = []
    _walk(as_plain(cfg, "", problems), "", runtime, problems)
    return problems


def unknown(path: str, name: str, valid: Collection[str]) -> str:
    """The sentence for a name that does not exist.

    Example:
        >>> unknown("losses.retrieval.temprature", "temprature", ["temperature"])
        '`losses.retrieval.temprature`: unknown, did you mean `temperature`; valid: temperature'
    """
    close = get_close_matches(name, valid, n=1)
    hint = f", did you mean `{close[0]}`" if close else ""
    return f"`{path}`: unknown{hint}; valid: {', '.join(sorted(valid)) or 'none'}"


def as_plain(node: object, path: str, problems: list[str]) -> object:
    """A config as lists and dicts with interpolations resolved; what has no value is `UNKNOWN`.

    Args:
        node: A config or a part of one.
        path: Its key.
        problems: What is wrong is appended.
    """
    if isinstance(node, ListConfig):
        return [_value(node, index, f"{path}[{index}]", problems) for index in range(len(node))]
    if not isinstance(node, DictConfig):
        return node
    schema = OmegaConf.get_type(node)
    if schema is not None and is_dataclass(schema):
        names = [field.name for field in fields(schema)]
        given = list(node)
        problems += [unknown(_join(path, k), str(k), names) for k in given if k not in names]
        problems += [f"`{_join(path, k)}`: missing" for k in names if k not in given]
    return {key: _value(node, key, _join(path, key), problems) for key in node}


def _value(node: Any, key: Any, path: str, problems: list[str]) -> object:  # noqa: ANN401
    if OmegaConf.is_missing(node, key):
        problems.append(f"`{path}`: missing, a value must be given")
        return UNKNOWN
    try:
        return as_plain(node[key], path, problems)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        if not any(text in reason for text in ONLY_IN_A_JOB):
            problems.append(f"`{path}`: {reason}")
        return UNKNOWN


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _walk(value: object, path: str, runtime: Collection[str], problems: list[str]) -> None:
    if isinstance(value, dict):
        if is_node(value):
            _check_node(value, path, runtime, problems)
        for key, child in value.items():
            _walk(child, _join(path, key), runtime, problems)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            _walk(child, f"{path}[{index}]", runtime, problems)


def _parameters(target: Any) -> list[inspect.Parameter]:  # noqa: ANN401
    """Parameters of a class or function; a class whose constructor is a library's takes none.

    A class without parameters has no constructor: it inherits that of `object`, which names no
    module, or the catch-all of `torch.nn.Module`.
    """
    own = getattr(target.__init__, "__module__", "") if inspect.isclass(target) else OWN
    if target.__module__.startswith(OWN) and not own.startswith(OWN):
        return []
    return list(inspect.signature(target).parameters.values())


def _check_node(
    node: dict[Any, Any], path: str, runtime: Collection[str], problems: list[str]
) -> None:
    """Hold one mapping with ``_target_`` against the signature of its target."""
    name = node[TARGET]
    where = _join(path, TARGET)
    if name is UNKNOWN:
        return
    if not isinstance(name, str):
        problems.append(f"`{where}`: must be a dotted path, got {name!r}")
        return
    try:
        parameters = _parameters(locate(name))
    except ValueError as error:
        problems.append(f"`{where}`: {error}")
        return
    if name.startswith(OWN) and any(
        p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters
    ):
        problems.append(
            f"`{where}`: `{name}` takes *args or **kwargs, so its arguments cannot be checked; "
            "name them in the signature"
        )
        return
    problems += _argument_problems(node, path, parameters, runtime)


def _argument_problems(
    node: dict[Any, Any],
    path: str,
    parameters: list[inspect.Parameter],
    runtime: Collection[str],
) -> list[str]:
    problems = []
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given = {str(key): value for key, value in node.items() if key not in (TARGET, PARTIAL)}
    if not isinstance(node.get(PARTIAL, False), bool):
        problems.append(f"`{_join(path, PARTIAL)}`: must be bool, got {node[PARTIAL]!r}")
    if not takes_any:
        problems += [unknown(_join(path, k), k, list(named)) for k in given if k not in named]
    problems += [
        f"`{_join(path, name)}`: missing, `{node[TARGET]}` needs it"
        for name, parameter in named.items()
        if parameter.default is parameter.empty and name not in given and name not in runtime
    ]
    try:
        hints = _hints(node[TARGET])
    except (NameError, AttributeError, TypeError) as error:
        return [*problems, f"`{_join(path, TARGET)}`: an annotation cannot be resolved: {error}"]
    for name, value in given.items():
        if name not in named or name not in hints or (value is None is named[name].default):
            continue
        if not fits(value, hints[name], _node_fits):
            expected = describe(hints[name])
            problems.append(f"`{_join(path, name)}`: must be {expected}, got {_shown(value)}")
    return problems


def _hints(name: str) -> dict[str, Any]:
    """Resolved annotations of a target's arguments; none where another project's do not resolve."""
    target = locate(name)
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, AttributeError, TypeError):
        if name.startswith(OWN):
            raise
        return {}


def _node_fits(node: dict[Any, Any], annotation: Any) -> bool:  # noqa: ANN401
    """Whether the object that a node builds may stand where an annotation stands."""
    if node.get(PARTIAL) is True:
        return takes_factory(annotation)
    try:
        target = locate(node[TARGET])
        built = target if inspect.isclass(target) else _hints(node[TARGET]).get("return")
    except (ValueError, NameError, AttributeError, TypeError):
        return True  # Reported where the node itself is checked.
    wanted = get_origin(annotation) or annotation
    if takes_factory(annotation) or not (inspect.isclass(wanted) and inspect.isclass(built)):
        return True
    return is_protocol(built) or issubclass(built, wanted)


def _shown(value: object) -> str:
    if is_node(value):
        return f"a factory of `{value[TARGET]}`" if value.get(PARTIAL) else f"`{value[TARGET]}`"
    if isinstance(value, dict):
        return f"a mapping without `{TARGET}`: {value!r}"
    return "null" if value is None else repr(value)
