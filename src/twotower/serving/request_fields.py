"""Fields of a request that come as text of JSON, where no web framework has looked at them before.

What may stand in them, and how much of it, is what the body of an HTTP request may hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, get_args

from twotower.serving.requests import Filter, Operator, RequestError

MAX_K = 500
MAX_HISTORY = 1000
MAX_FILTERS = 32
MAX_COLUMNS = 256
MAX_VALUES = 4096
MAX_TEXT = 512
END_OF_9999 = 253_402_300_799

INT64 = range(-(2**63), 2**63)
SHOWN = 80
VALUE = (
    f"text of at most {MAX_TEXT} characters, a 64-bit integer, a finite number, true, false, null "
    f"or a list of at most {MAX_VALUES} numbers or of texts, null among these where one is missing"
)
FILTER_KEYS = {"column", "operator", "values"}


def read_columns(place: str, text: str) -> dict[str, Any]:
    """Values by column.

    Args:
        place: Which field it is, for the message.
        text: A JSON object; nothing for no columns.

    Raises:
        RequestError: When it is none, or holds what no column can.
    """
    columns = _parsed(place, text, {})
    if not isinstance(columns, dict):
        raise RequestError(place, f"must be a JSON object, got {shown(columns)}")
    if len(columns) > MAX_COLUMNS:
        raise RequestError(place, f"at most {MAX_COLUMNS} columns, got {len(columns)}")
    for name, value in columns.items():
        if not name or not is_text(name):
            raise RequestError(place, f"a column has a name of 1 to {MAX_TEXT} characters")
        if not _is_value(value):
            raise RequestError(f"{place}.{name[:SHOWN]}", f"must be {VALUE}, got {shown(value)}")
    return columns


def read_filters(place: str, text: str) -> list[Filter]:
    """What an item must be like.

    Args:
        place: Which field it is, for the message.
        text: A JSON list of objects with `FILTER_KEYS`; nothing for no filter.

    Raises:
        RequestError: When it is none.
    """
    filters = _parsed(place, text, [])
    if not isinstance(filters, list) or len(filters) > MAX_FILTERS:
        received = len(filters) if isinstance(filters, list) else shown(filters)
        raise RequestError(place, f"must be a list of at most {MAX_FILTERS}, got {received}")
    return [_filter(f"{place}[{number}]", one) for number, one in enumerate(filters)]


def is_text(value: object) -> bool:
    """Whether it is text that is not too long and can be sent: no half of a surrogate pair."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: object) -> str:
    """A value as a message shows it, of limited length."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested deeply"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _filter(place: str, given: object) -> Filter:
    if not isinstance(given, dict) or given.keys() != FILTER_KEYS:
        keys = sorted(given) if isinstance(given, dict) else given
        raise RequestError(
            place, f"must be an object with {', '.join(sorted(FILTER_KEYS))}, got {shown(keys)}"
        )
    column, operator, values = given["column"], given["operator"], given["values"]
    if not column or not is_text(column):
        problem = f"must be the name of a column of the item table, got {shown(column)}"
        raise RequestError(f"{place}.column", problem)
    if operator not in get_args(Operator):
        allowed = ", ".join(get_args(Operator))
        raise RequestError(f"{place}.operator", f"must be {allowed}, got {shown(operator)}")
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_VALUES:
        problem = f"must be a list of 1 to {MAX_VALUES} values, got {shown(values)}"
        raise RequestError(f"{place}.values", problem)
    wrong = [value for value in values if value is None or not _is_scalar(value)]
    if wrong:
        problem = f"must be texts, finite numbers, true or false, got {shown(wrong[0])}"
        raise RequestError(f"{place}.values", problem)
    return Filter(column=column, operator=operator, values=values)


def _parsed(place: str, text: str, default: Mapping[str, Any] | list[Any]) -> object:
    if not text:
        return default
    try:
        return json.loads(text, parse_constant=_not_finite)
    except RecursionError as error:
        raise RequestError(place, "no JSON that is allowed: nested too deeply") from error
    except ValueError as error:
        raise RequestError(place, f"no JSON that is allowed: {error}") from error


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _is_value(value: object) -> bool:
    if not isinstance(value, list):
        return value is None or _is_scalar(value)
    if len(value) > MAX_VALUES or not all(one is None or _is_scalar(one) for one in value):
        return False
    if any(one is None or isinstance(one, str) for one in value):
        return all(one is None or isinstance(one, str) for one in value)
    return not any(isinstance(one, bool) for one in value)


def _is_scalar(value: object) -> bool:
    if isinstance(value, str):
        return is_text(value)
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return value in INT64
    return isinstance(value, float) and math.isfinite(value)
