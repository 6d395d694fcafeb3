"""What is refused before anything is trained: settings first, then data that do not suffice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from twotower.cli.warm_run import check_warm
from twotower.config import build
from twotower.data.prepared import Prepared
from twotower.data.queries import EvaluationSettings
from twotower.data.schema import SPLIT_NAMES, TEST, VALIDATION, DataError
from twotower.training.stages import RANKING, RETRIEVAL, STAGES, validation_metrics

if TYPE_CHECKING:
    from omegaconf import DictConfig


def check_settings(cfg: DictConfig) -> None:
    """Refuse, before the data are prepared, what could not be trained.

    Raises:
        ValueError: When `stages` names something else than the two stages, or a setting of theirs
            is out of range.
    """
    check_stages(cfg.stages)
    check_warm(cfg)
    build(cfg.trainer).device()
    for stage in cfg.stages:
        names = validation_metrics(stage, build(cfg.evaluation).ks)
        build(cfg.training[stage]).check_monitor(names)


def check_stages(stages: list[str]) -> None:
    """Refuse stages that do not exist.

    Raises:
        DataError: Names them and what is allowed.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        received = ", ".join(unknown) or "none"
        raise DataError([f"stages: must be some of {', '.join(STAGES)}, got {received}"])


def check_parts(prepared: Prepared, cfg: DictConfig, evaluation: EvaluationSettings) -> None:
    """Refuse, before anything is trained, data on which a stage could not be trained or tested.

    Raises:
        DataError: When retrieval has no users or items, a part has nothing to be found, or no
            examples can be made for the ranker.
        ValueError: When a stage is to be stopped by what the data does not give.
    """
    stages, has_users = cfg.stages, prepared.users is not None
    if RETRIEVAL in stages:
        prepared.require_events()
    rows = prepared.interactions
    counts = np.bincount(rows.split, weights=rows.positive, minlength=len(SPLIT_NAMES))
    problems = [
        f"the {part} part has no positive among its {prepared.manifest['counts'][part]} rows; a "
        "positive is a row whose label is at least data.label.positive_from="
        f"{prepared.manifest['label']['positive_from']:g}"
        for part, count in zip(SPLIT_NAMES, counts, strict=True)
        if count == 0
    ]
    problems += [
        f"the {part} part has only rows of one outcome in `{task}` (data.label.tasks); a ranker of "
        "this task needs both"
        for task, won in rows.tasks.items()
        for number, part in enumerate(SPLIT_NAMES)
        if RANKING in stages and len(np.unique(won[rows.split == number])) < 2
    ]
    if problems:
        raise DataError(problems)
    if RETRIEVAL in stages:
        for part in (VALIDATION, TEST):
            evaluation.queries(prepared, part)
    if RANKING in stages:
        names = validation_metrics(RANKING, evaluation.ks, has_users=has_users)
        build(cfg.training.ranking).check_monitor(names)
        build(cfg.training.examples).check(prepared, has_retriever=RETRIEVAL in stages)
