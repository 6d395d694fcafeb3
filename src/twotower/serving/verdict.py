"""Where an item was won or lost, in one sentence."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from twotower.serving.catalogue import Catalogue
from twotower.serving.explanation import Outcome, Places
from twotower.serving.requests import Filter, Request

Verdict: TypeAlias = tuple[Outcome, str]

WORDS = {"in": "in", "not_in": "not in", "at_least": "at least", "at_most": "at most"}


def left_out(
    items: Catalogue, request: Request, row: int, seen: npt.NDArray[np.int64]
) -> Verdict | None:
    """Why an item may not be shown, whatever its score; None where it may.

    Args:
        items: The catalogue.
        request: The request.
        row: The item.
        seen: (n,) item rows that are not shown because the user has taken them.
    """
    if items.is_removed(row):
        return "removed", "Left out: it was removed from the catalogue."
    if row in seen:
        return "seen", "Left out: the user has taken it before."
    for rule in request.filters:
        passing = items.allowed([rule])
        if passing is not None and not passing.contains(np.array([row]))[0]:
            has = items.values(row)[rule.column]
            return "filtered", f"Left out by a filter: {_worded(rule)}; the item has {_shown(has)}."
    return None


def verdict(places: Places, k: int, *, has_ranker: bool) -> Verdict:
    """What became of an item that may be shown.

    Args:
        places: Where it stands.
        k: How many items were asked for.
        has_ranker: Whether there is a ranker.
    """
    wanted, candidate = f"{places.num_candidates:,}", places.candidate_rank
    if places.place is not None:
        how = "by its score" if not has_ranker else f"the ranker had it as candidate {candidate:,}"
        return "shown", f"Shown at place {places.place:,} of {k:,}: {how}."
    if candidate is not None and has_ranker and (places.ranker_rank or 0) <= k:
        return "lost_by_ranker", (
            f"Lost in the screen before the ranker, which would put candidate {candidate:,} of "
            f"{wanted} at place {places.ranker_rank:,}; {k:,} are shown."
        )
    if candidate is not None and has_ranker:
        return "lost_by_ranker", (
            f"Lost in the ranker: candidate {candidate:,} of {wanted} is put at place "
            f"{places.ranker_rank:,}, and {k:,} are shown."
        )
    if candidate is not None:
        return "lost_by_retrieval", (
            f"Lost in the retrieval: place {candidate:,} by score, and {k:,} are shown."
        )
    rank = places.allowed_rank or 0
    if rank > places.num_candidates:
        return "lost_by_retrieval", (
            f"Lost in the retrieval: {rank - 1:,} items that may be shown have a higher score, and "
            f"the best {wanted} go on."
        )
    return "lost_by_index", (
        f"Lost by the approximate index: at place {rank:,} by exact score it was to go on, "
        f"{_missed(places)}."
    )


def _missed(places: Places) -> str:
    probe = places.probe
    if probe is None:
        return "but the search did not come upon it"
    if probe.looked_into:
        return "but its code in the index is not exact enough"
    return (
        f"but its cell is the {probe.place:,}. nearest to the user, and {probe.num_probes:,} are "
        "looked into"
    )


def _worded(rule: Filter) -> str:
    values = ", ".join(map(str, rule.values))
    listed = f"[{values}]" if rule.operator in ("in", "not_in") else values
    return f"`{rule.column}` {WORDS[rule.operator]} {listed}"


def _shown(value: object) -> str:
    if value is None:
        return "no value"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
