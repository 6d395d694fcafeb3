"""From a config to a prepared data set; shared by `prepare` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twotower.config import build
from twotower.data.prepare import prepare
from twotower.data.prepared import FEATURES_FOLDER, Prepared
from twotower.data.schema import DataError
from twotower.data.training_part import EncoderFactory
from twotower.features.continuation import Continuation
from twotower.features.infer import PipelineFactory
from twotower.features.pipeline import FEATURES_FILE, FeaturePipeline

if TYPE_CHECKING:
    from omegaconf import DictConfig


def prepare_from(cfg: DictConfig) -> Prepared:
    """Open the prepared data set that a config describes, building it when needed.

    Args:
        cfg: With ``data``, ``split``, ``features``, ``catalogue``, ``workers``, ``prepared_dir``,
            ``warm_start`` and ``evict_vanished``.
    """
    return prepare(
        source=build(cfg.data),
        splitter=build(cfg.split),
        encoders=encoders_from(cfg),
        root=Path(cfg.prepared_dir),
        catalogue=cfg.catalogue,
        workers=None if cfg.workers is None else build(cfg.workers),
        progress=not cfg.quiet,
    )


def encoders_from(cfg: DictConfig) -> EncoderFactory:
    """What fits the features: of the data alone, or so that an earlier run can be gone on from.

    Args:
        cfg: With ``features``, ``warm_start`` and ``evict_vanished``.

    Raises:
        DataError: When there is no such run, or rows are to be evicted without one.
    """
    provider = build(cfg.features)
    if cfg.warm_start is not None:
        return Continuation(
            provider=provider, before=earlier_features(cfg.warm_start), evict=cfg.evict_vanished
        )
    if cfg.evict_vanished:
        raise DataError(["evict_vanished: without warm_start=<run> there are no rows to evict"])
    return PipelineFactory(provider=provider)


def earlier_features(run: str) -> FeaturePipeline:
    """The features of the run that is gone on from.

    Raises:
        DataError: When there is no such run.
    """
    folder = Path(run) / FEATURES_FOLDER
    if not (folder / FEATURES_FILE).is_file():
        raise DataError([f"warm_start={run}: no run here (no {FEATURES_FOLDER}/{FEATURES_FILE})"])
    return FeaturePipeline.load(folder)
