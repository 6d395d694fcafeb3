"""The reference of a bundle: profiles of its training and validation part, laid down at export.

``reference/training.npz`` says how features and labels were distributed when the models learned;
``reference/validation.npz`` says what is normal for later data: how many ids are new, and how the
scores of the models are distributed. Both have the same bins.

Shape letters: R rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from twotower.data.naming import OnBadRows
from twotower.data.prepared import Prepared
from twotower.data.schema import (
    ITEM_ID,
    MICROSECONDS,
    TIMESTAMP,
    TRAIN,
    USER_ID,
    VALIDATION,
    DataError,
    Label,
)
from twotower.export.bundle import Bundle
from twotower.features.pipeline import FeaturePipeline
from twotower.monitoring.accumulate import Accumulator, Block, groups_in_turn, groups_of
from twotower.monitoring.lay_bins import blocks_of, lay_bins
from twotower.monitoring.profile import Profile, check_same_bins
from twotower.monitoring.validation_scores import Scored, score_validation
from twotower.monitoring.windows import WindowForm

REFERENCE = "reference"
TRAINING_FILE, VALIDATION_FILE = "training.npz", "validation.npz"

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What windows are held against.

    Args:
        training: Profile of the training part.
        validation: Profile of the validation part.
    """

    training: Profile
    validation: Profile

    @property
    def parts(self) -> tuple[Profile, Profile]:
        """Both profiles."""
        return self.training, self.validation

    def save(self, folder: Path) -> None:
        """Write both profiles into a folder of a bundle that is being written."""
        (folder / REFERENCE).mkdir()
        self.training.save(folder / REFERENCE / TRAINING_FILE)
        self.validation.save(folder / REFERENCE / VALIDATION_FILE)

    @staticmethod
    def of(bundle: Bundle) -> Reference:
        """The reference of a bundle.

        Raises:
            DataError: When it has none, from before there was monitoring.
        """
        return Reference.load(bundle.folder)

    @staticmethod
    def load(folder: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            DataError: When there is none.
        """
        inside = folder / REFERENCE
        if not (inside / TRAINING_FILE).is_file():
            raise DataError(
                [f"{folder}: holds no {REFERENCE}/{TRAINING_FILE}; export the run again"]
            )
        found = Reference(
            training=Profile.load(inside / TRAINING_FILE),
            validation=Profile.load(inside / VALIDATION_FILE),
        )
        check_same_bins(found.training, found.validation)
        return found


def make_reference(
    prepared: Prepared, pipeline: FeaturePipeline, scored: Scored | None = None
) -> Reference:
    """Profiles of the training and the validation part.

    Args:
        prepared: The data set of the bundle.
        pipeline: Its features.
        scored: Scores of the ranker on rows of the validation part; None without a ranker.
    """
    bins = lay_bins(prepared, pipeline, None if scored is None else scored.scores)
    accumulator = Accumulator(
        bins={one.name: one for one in bins},
        pipeline=pipeline,
        users=prepared.users,
        items=prepared.items,
        num_items=prepared.num_catalogue,
    )
    groups = None if prepared.users is None else groups_of(pa.chunked_array([prepared.users.ids]))
    parts = {}
    for part in (TRAIN, VALIDATION):
        profile = Profile.empty(accumulator.bins, accumulator.num_items, _facts(prepared, pipeline))
        for rows in blocks_of(len(prepared.interactions.split)):
            block = _block(prepared, groups, part, rows, scored if part == VALIDATION else None)
            if len(block.groups):
                profile = profile.merge(accumulator.profile(block))
        parts[part] = profile
    return Reference(training=parts[TRAIN], validation=parts[VALIDATION])


def write_reference(folder: Path, prepared: Prepared, *, pipeline: FeaturePipeline) -> None:
    """Write the reference into a bundle whose models are written.

    Args:
        folder: Of the bundle.
        prepared: The data set, with the events of the catalogue alone.
        pipeline: Its features.
    """
    make_reference(prepared, pipeline, score_validation(folder, prepared, pipeline)).save(folder)


def window_form(
    reference: Reference,
    *,
    columns: Mapping[str, str] | None = None,
    on_bad_rows: OnBadRows = "fail",
    max_repeated: float = WindowForm.max_repeated,
) -> WindowForm:
    """What a window must look like to be held against a reference.

    Args:
        reference: Of the bundle.
        columns: Canonical name to the name in the files of the window.
        on_bad_rows: See `WindowForm`.
        max_repeated: See `WindowForm`.
    """
    facts = reference.training.facts
    label = facts["label"]
    return WindowForm(
        columns=columns or {},
        label=None if label is None else Label(**label),
        required=tuple(facts["required"]),
        id_types={name: pa.type_for_alias(kind) for name, kind in facts["id_types"].items()},
        on_bad_rows=on_bad_rows,
        max_repeated=max_repeated,
    )


def _facts(prepared: Prepared, pipeline: FeaturePipeline) -> dict[str, Any]:
    """What a window must have in common with the training data."""
    log = prepared.interactions
    there = {USER_ID: log.user_rows, ITEM_ID: log.item_rows, TIMESTAMP: log.timestamps}
    required = [name for name, values in there.items() if values is not None]
    required += [name for name in pipeline.source_columns("context") if name not in required]
    entities = {USER_ID: prepared.users, ITEM_ID: prepared.items}
    return {
        "required": required,
        "id_types": {name: str(one.ids.type) for name, one in entities.items() if one is not None},
        "label": prepared.manifest["label"],
    }


def _block(
    prepared: Prepared,
    groups: npt.NDArray[np.uint8] | None,
    part: int,
    rows: slice,
    scored: Scored | None,
) -> Block:
    log = prepared.interactions
    kept = np.flatnonzero(np.asarray(log.split[rows]) == part)

    def of(values: Array) -> Array:
        return np.asarray(values[rows])[kept]

    users = None if log.user_rows is None else of(log.user_rows)
    span = None
    if log.timestamps is not None and len(kept):
        times = of(log.timestamps)
        span = (int(times.min()) // MICROSECONDS, int(times.max()) // MICROSECONDS + 1)
    scores = None
    if scored is not None:
        scores = np.full(rows.stop - rows.start, np.nan, np.float32)
        inside = slice(*np.searchsorted(scored.rows, (rows.start, rows.stop)))
        scores[scored.rows[inside] - rows.start] = scored.scores[inside]
        scores = scores[kept]
    return Block(
        groups=groups_in_turn(len(kept)) if groups is None or users is None else groups[users],
        user_rows=users,
        item_rows=None if log.item_rows is None else of(log.item_rows),
        encoded={name: of(values) for name, values in log.context.items()},
        labels=None if prepared.manifest["label"] is None else of(log.labels),
        scores=scores,
        span=span,
    )
