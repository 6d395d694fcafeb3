"""A finished run read back: its config, its features, its models with the best weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from twotower.cli.run import TRAINING_NEEDS
from twotower.config import ConfigError, build, check
from twotower.config_files import read_yaml
from twotower.data.prepared import FEATURES_FOLDER, Prepared, checksum, open_prepared
from twotower.data.schema import DataError
from twotower.export.parts import ExportParts
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Stage
from twotower.losses.calibration import Calibration
from twotower.models.dcn import DCNv2
from twotower.models.tables import halve_tables
from twotower.models.two_tower import TwoTower
from twotower.monitoring.reference import write_reference
from twotower.training.cross_version import Space
from twotower.training.read_checkpoint import read_checkpoint
from twotower.training.run_folder import (
    BEST,
    CONFIG,
    FINISHED,
    PREPARED,
    RANKER_STATE,
    read_json,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A run read back.

    Args:
        folder: The run folder.
        config: Its resolved config.
        pipeline: Its features.
        prepared: The data set it was trained on.
        two_tower: The towers, or None.
        ranker: The ranker, or None.
        calibration: From the ranker's logits to probabilities; None without one.
    """

    folder: Path
    config: DictConfig
    pipeline: FeaturePipeline
    prepared: Prepared
    two_tower: TwoTower | None
    ranker: DCNv2 | None
    calibration: Calibration | None

    def parts(self, figures: Mapping[str, float]) -> ExportParts:
        """What an export is given.

        Args:
            figures: Metrics of the run by name.
        """
        space = None if self.two_tower is None else Space.load(self.folder)
        return ExportParts(
            prepared=self.prepared,
            pipeline=self.pipeline,
            two_tower=self.two_tower,
            ranker=self.ranker,
            calibration=self.calibration,
            remove_seen=self.config.evaluation.remove_seen,
            figures=figures,
            space=None if space is None else space.space,
            run=str(self.folder.resolve()),
            describe=partial(write_reference, pipeline=self.pipeline),
        )


def load_run(folder: Path) -> LoadedRun:
    """Read a run folder.

    Args:
        folder: As `train` wrote it.

    Raises:
        ValueError: When there is no run, a stage was not finished, or its data set is gone.
    """
    if not (folder / CONFIG).is_file():
        raise DataError(
            [f"{folder}: no run here (no {CONFIG}); runs are written by `twotower train`"]
        )
    config = read_yaml(folder / CONFIG)
    try:
        # It may be of a release with other names, or edited; what trains is not needed, nor loaded.
        check(config, TRAINING_NEEDS, unused=("training", "trainer"))
    except ConfigError as error:
        problems = [f"{folder / CONFIG}: {problem}" for problem in error.problems]
        raise ConfigError(problems) from None
    unfinished = [stage for stage in config.stages if not (folder / stage / FINISHED).is_file()]
    if unfinished:
        names = ", ".join(unfinished)
        raise DataError(
            [f"{folder}: not finished: {names}; go on with twotower train resume={folder}"]
        )
    prepared = open_data(folder)
    _check_features(folder, prepared)
    pipeline = FeaturePipeline.load(folder / FEATURES_FOLDER)
    ranker = None
    if "ranking" in config.stages:
        ranker = read_json(folder / RANKER_STATE, _ranker_state)
        config.models.ranking.retrieval_score = ranker.retrieval_score
        config.models.ranking.retrieval_rank = ranker.retrieval_rank
    return LoadedRun(
        folder=folder,
        config=config,
        pipeline=pipeline,
        prepared=prepared,
        two_tower=_model(folder, config, pipeline, "retrieval"),
        ranker=_model(folder, config, pipeline, "ranking", () if ranker is None else ranker.tasks),
        calibration=None if ranker is None else ranker.calibration,
    )


@dataclass(frozen=True, kw_only=True)
class _RankerState:
    retrieval_score: bool
    retrieval_rank: bool
    tasks: tuple[str, ...]
    calibration: Calibration


def _ranker_state(found: Any) -> _RankerState:  # noqa: ANN401
    return _RankerState(
        retrieval_score=bool(found["retrieval_score"]),
        retrieval_rank=bool(found["retrieval_rank"]),
        tasks=tuple(map(str, found["tasks"])),
        calibration=Calibration(**found["calibration"]),
    )


def _check_features(folder: Path, prepared: Prepared) -> None:
    """The features of a run are copies of those of its data, whose checksums are known."""
    problems = [
        f"{folder / name}: missing or changed since it was written; copy {prepared.folder / name}"
        for name, digest in prepared.manifest["files"].items()
        if name.startswith(f"{FEATURES_FOLDER}/")
        and not ((folder / name).is_file() and checksum(folder / name) == digest)
    ]
    if problems:
        raise DataError(problems)


def open_data(folder: Path) -> Prepared:
    """The data set that a run was trained on.

    Args:
        folder: The run folder.

    Raises:
        DataError: When it is gone or is another one.
    """
    where, fingerprint = read_json(
        folder / PREPARED, lambda found: (Path(found["folder"]), str(found["fingerprint"]))
    )
    prepared = open_prepared(where)
    if prepared.manifest["fingerprint"] != fingerprint:
        raise DataError(
            [
                f"{where}: fingerprint {prepared.manifest['fingerprint']}, the run "
                f"{folder} was trained on {fingerprint}; train again"
            ]
        )
    return prepared


def _model(
    folder: Path,
    config: DictConfig,
    pipeline: FeaturePipeline,
    stage: Stage,
    tasks: Sequence[str] = (),
) -> Any:  # noqa: ANN401
    if stage not in config.stages:
        return None
    inputs = replace(pipeline.inputs(stage), tasks=tuple(tasks))
    check(config.models[stage], TRAINING_NEEDS)  # The run may come from somebody else.
    model = build(config.models[stage], inputs=inputs)
    path = folder / stage / f"{BEST}.ckpt"
    weights = read_checkpoint(path)["state_dict"]
    prefix = "model."
    own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    if any(weight.dtype == torch.bfloat16 for weight in own.values()):
        halve_tables(model)
    model.load_state_dict(own)
    return model.eval()
