"""Does a value written in YAML fit the annotation of the argument it is meant for?

YAML knows null, booleans, numbers, text, lists and mappings. A mapping with ``_target_`` stands for
the object that it builds; whether that object fits is asked of the caller (`NodeFits`).

===========================  ================================================================
annotation                   what fits
===========================  ================================================================
``bool``                     a boolean
``int``                      an integer; not a boolean
``float``                    a number; not a boolean
``Literal[...]``             one of the values, of the same type
``X | None``                 null, or what fits ``X``
list, tuple, Sequence, ...   a list whose elements fit; text is not a list
dict, Mapping                a mapping whose keys and values fit
class, Protocol, Callable    a node with ``_target_``
===========================  ================================================================
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
from collections.abc import Callable
from typing import (
    Annotated,
    Any,
    Literal,
    NewType,
    TypeAlias,
    TypeGuard,
    Union,
    get_args,
    get_origin,
)

TARGET = "_target_"
PARTIAL = "_partial_"

# Stands for a value that is not known yet; its absence has been reported where it was found.
UNKNOWN = object()

NodeFits: TypeAlias = Callable[[dict[Any, Any], Any], bool]

_LISTS = (
    list,
    tuple,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Collection,
    collections.abc.Iterable,
)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def is_node(value: object) -> TypeGuard[dict[Any, Any]]:
    """Whether a value is a mapping that names what it builds."""
    return isinstance(value, dict) and TARGET in value


def is_protocol(annotation: object) -> bool:
    """Whether an annotation is a class that only describes an interface."""
    return inspect.isclass(annotation) and bool(getattr(annotation, "_is_protocol", False))


def takes_factory(annotation: object) -> bool:
    """Whether a function that builds the object later may be given for an annotation."""
    origin = get_origin(annotation) or annotation
    return is_protocol(origin) or origin in (collections.abc.Callable, functools.partial)


def fits(value: object, annotation: Any, node_fits: NodeFits) -> bool:  # noqa: ANN401
    """Whether a plain value may be passed where an annotation stands.

    Args:
        value: What YAML gave: null, scalar, list, or mapping.
        annotation: A resolved annotation. One that this function has no rule for accepts anything.
        node_fits: Decides for mappings with ``_target_``.

    Returns:
        True when it may be passed.
    """
    annotation = _unwrapped(annotation)
    origin = get_origin(annotation)
    if value is UNKNOWN or annotation in (Any, object, inspect.Parameter.empty):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, choice, node_fits) for choice in get_args(annotation))
    if annotation in (None, type(None)):
        return value is None
    if origin is Literal:
        return any(type(v) is type(value) and v == value for v in get_args(annotation))
    if is_node(value):
        return node_fits(value, annotation)
    container = origin or annotation
    if container in _LISTS:
        return isinstance(value, list) and _elements_fit(value, annotation, node_fits)
    if container in _MAPPINGS:
        return isinstance(value, dict) and _entries_fit(value, annotation, node_fits)
    return _scalar_fits(value, container)


def describe(annotation: Any) -> str:  # noqa: ANN401
    """An annotation in words that fit a YAML file.

    Example:
        >>> describe(Literal["cosine", "dot"] | None)
        "one of 'cosine', 'dot' or null"
    """
    annotation = _unwrapped(annotation)
    if annotation in (None, type(None)):
        return "null"
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(describe(choice) for choice in get_args(annotation))
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(value) for value in get_args(annotation))
    return inspect.formatannotation(annotation)


def _unwrapped(annotation: Any) -> Any:  # noqa: ANN401
    """Without the wrappers that do not change which values fit."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        else:
            return annotation


def _elements_fit(values: list[Any], annotation: Any, node_fits: NodeFits) -> bool:  # noqa: ANN401
    arguments = get_args(annotation)
    if not arguments:
        return True
    if get_origin(annotation) is tuple and arguments[-1] is not Ellipsis:
        return len(values) == len(arguments) and all(
            fits(value, argument, node_fits)
            for value, argument in zip(values, arguments, strict=True)
        )
    return all(fits(value, arguments[0], node_fits) for value in values)


def _entries_fit(values: dict[Any, Any], annotation: Any, node_fits: NodeFits) -> bool:  # noqa: ANN401
    arguments = get_args(annotation)
    if not arguments:
        return True
    key_type, value_type = arguments
    return all(
        fits(key, key_type, node_fits) and fits(value, value_type, node_fits)
        for key, value in values.items()
    )


def _scalar_fits(value: object, annotation: Any) -> bool:  # noqa: ANN401
    """Classes and everything this module has no rule for."""
    if isinstance(value, bool) and annotation in (int, float):
        return False
    if annotation is float:
        return isinstance(value, int | float)
    if takes_factory(annotation) or get_origin(annotation) is type or annotation is type:
        return False
    return isinstance(value, annotation) if inspect.isclass(annotation) else True
