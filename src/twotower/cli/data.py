"""From a config to a prepared data set; shared by `prepare` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twotower.config import build
from twotower.data.prepare import prepare
from twotower.data.prepared import Prepared
from twotower.features.infer import PipelineFactory

if TYPE_CHECKING:
    from omegaconf import DictConfig


def prepare_from(cfg: DictConfig) -> Prepared:
    """Open the prepared data set that a config describes, building it when needed.

    Args:
        cfg: With ``data``, ``split``, ``features``, ``catalogue``, ``workers`` and
            ``prepared_dir``.
    """
    return prepare(
        source=build(cfg.data),
        splitter=build(cfg.split),
        encoders=PipelineFactory(provider=build(cfg.features)),
        root=Path(cfg.prepared_dir),
        catalogue=cfg.catalogue,
        workers=None if cfg.workers is None else build(cfg.workers),
        progress=not cfg.quiet,
    )
