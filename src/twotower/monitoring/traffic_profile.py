"""The profile of what a server was asked and answered, from what `twotower.serving.traffic` kept.

Features of users and context are as the models were given them; what is null and what was not seen
in training are one there. Of the items that were found only the exposures are taken: which items
are shown is decided by the bundle, and to hold their features against those of a log would be to
compare two policies. The slot of an item is not known when a request is answered, so that it is
left out, too.

Shape letters: Q requests, k items of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.schema import POSITION, DataError
from twotower.export.bundle import Bundle
from twotower.monitoring.accumulate import Accumulator, Block, groups_in_turn, groups_of
from twotower.monitoring.profile import NUM_GROUPS, Profile
from twotower.monitoring.reference import Reference
from twotower.serving.traffic import (
    COLUMN_PREFIX,
    DOCUMENT,
    ITEM_ROWS,
    TRAFFIC_VERSION,
    USER_ROWS,
)

Array = npt.NDArray[Any]
NUM_EXAMPLES = 5


def profile_traffic(folder: Path, bundle: Bundle, reference: Reference) -> Profile:
    """The profile of all requests of a bundle that are kept in a folder, or in folders below it.

    Args:
        folder: For one, that of the server or that of one day.
        bundle: The bundle.
        reference: Its reference.

    Raises:
        DataError: When there are none, or a file is damaged.
    """
    files = sorted(folder.rglob("[!.]*.npz"))
    accumulator = Accumulator(
        bins=reference.training.bins,
        pipeline=bundle.pipeline,
        users=None,
        items=None,
        num_items=len(reference.training.exposures),
    )
    groups = None
    if bundle.users is not None:
        groups = groups_of(pa.chunked_array([bundle.users.ids]))
    whole = Profile.empty(
        accumulator.bins, accumulator.num_items, {"encoded_only": True, "without": _without(bundle)}
    )
    problems: list[str] = []
    others: set[str] = set()
    for path in files:
        try:
            document, arrays = _read(path)
        except DataError as error:
            problems += error.problems
            continue
        if document["bundle"] != bundle.manifest.version:
            others.add(document["bundle"])
            continue
        try:
            whole = whole.merge(_profile(accumulator, groups, document, arrays))
        except (TypeError, ValueError, LookupError) as error:  # arrays of other names or types
            problems.append(f"{path}: no traffic, or damaged: {error}")
    if not problems and not whole.num_rows:
        there = f"there is traffic of {', '.join(sorted(others))}" if others else "there is none"
        problems.append(
            f"{folder}: no traffic of the bundle {bundle.manifest.version}; {there}; a server "
            "keeps it with traffic=<folder>"
        )
    if problems:
        raise DataError(problems)
    return whole


def _without(bundle: Bundle) -> list[str]:
    """Features that a request has no value of its own for."""
    features = bundle.pipeline.spec.features
    return [one.name for one in features if one.source_column == POSITION or one.side == "item"]


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        document: dict[str, Any] = json.loads(arrays.pop(DOCUMENT).tobytes())
        version = document["version"]
    except Exception as error:  # whatever NumPy, zip and JSON make of it
        raise DataError([f"{path}: no traffic, or damaged: {error}"]) from error
    if version != TRAFFIC_VERSION:
        problem = f"version {version!r}, this release reads {TRAFFIC_VERSION}"
        raise DataError([f"{path}: traffic of {problem}"])
    return document, arrays


def _profile(
    accumulator: Accumulator,
    groups: npt.NDArray[np.uint8] | None,
    document: Mapping[str, Any],
    arrays: Mapping[str, Array],
) -> Profile:
    users, items = arrays[USER_ROWS], arrays[ITEM_ROWS]
    of_requests = groups_in_turn(len(users))
    if groups is not None:
        known = users >= 0
        of_requests[known] = groups[users[known]]
    encoded = {
        name.removeprefix(COLUMN_PREFIX): values
        for name, values in arrays.items()
        if name.startswith(COLUMN_PREFIX)
    }
    start, end = document["span"]
    block = Block(groups=of_requests, encoded=encoded, span=(start, end))
    shown = Block(groups=groups_in_turn(items.size), item_rows=items.ravel())
    exposures = replace(accumulator.profile(shown), rows=np.zeros(NUM_GROUPS, np.int64))
    return accumulator.profile(block).merge(exposures)
