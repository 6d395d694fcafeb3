"""Filters on a command line: ``filters=[{column: price, operator: at_most, values: [20]}]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twotower.serving.requests import Filter

KEYS = ("column", "operator", "values")


def to_filters(given: Sequence[Any]) -> list[Filter]:
    """Filters out of mappings.

    Args:
        given: One mapping a filter; a value alone stands for a list of one.

    Raises:
        ValueError: When one is no mapping of the three keys; all that is wrong is listed.
    """
    from omegaconf import DictConfig, OmegaConf

    from twotower.serving.requests import Filter

    filters, problems = [], []
    for place, part in enumerate(given):
        plain = OmegaConf.to_container(part) if isinstance(part, DictConfig) else part
        if not isinstance(plain, dict) or set(plain) != set(KEYS):
            problems.append(
                f"filters[{place}]: must be {{column: <name>, operator: <in, not_in, at_least or "
                f"at_most>, values: [<values>]}}, got {plain}"
            )
            continue
        values = plain["values"] if isinstance(plain["values"], list) else [plain["values"]]
        filters.append(
            Filter(column=str(plain["column"]), operator=plain["operator"], values=values)
        )
    if problems:
        raise ValueError("\n".join(problems))
    return filters


def shortage(wanted: int, found: int, *, filtered: bool) -> str:
    """What is said of a list that is shorter than it was to be; empty for one that is not.

    Args:
        wanted: Items that were asked for.
        found: Items that there are.
        filtered: Whether filters were given.
    """
    if found >= wanted:
        return ""
    why = "the filters let no more through" if filtered else "there are no more"
    return f"{wanted - found} of {wanted} items are missing: {why}"
