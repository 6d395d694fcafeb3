"""``warm_start=<run>``: what a training takes over from an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from twotower.cli.data import earlier_features
from twotower.cli.load_run import open_data
from twotower.config import build
from twotower.data.prepared import Prepared
from twotower.data.schema import DataError
from twotower.features.pipeline import FeaturePipeline
from twotower.losses.alignment import NoAlignment
from twotower.losses.streaming_frequency import StreamingFrequency
from twotower.serving.ids import find_rows
from twotower.training.carried import Carried
from twotower.training.cross_version import Space
from twotower.training.warm_start import check_warm_start, known_items, warm_start
from twotower.training.warm_towers import Warm

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True, kw_only=True)
class WarmRun:
    """An earlier run to go on from.

    Args:
        cfg: Config of the training.
        run: Folder of the earlier run.
        before: Its features.
        pipeline: The features of the training, continued from those.
        prepared: The data of the training.
    """

    cfg: DictConfig
    run: Path
    before: FeaturePipeline
    pipeline: FeaturePipeline
    prepared: Prepared

    @staticmethod
    def of(cfg: DictConfig, pipeline: FeaturePipeline, prepared: Prepared) -> WarmRun | None:
        """The earlier run that a config names, or None."""
        if cfg.warm_start is None:
            return None
        return WarmRun(
            cfg=cfg,
            run=Path(cfg.warm_start),
            before=earlier_features(cfg.warm_start),
            pipeline=pipeline,
            prepared=prepared,
        )

    def carry(self, model: nn.Module, stage: str) -> Carried:
        """Let a fresh model go on from that of the earlier run."""
        return warm_start(
            model,
            stage=stage,
            run=self.run,
            before=self.before,
            pipeline=self.pipeline,
            prepared=self.prepared,
        )

    def towers(self, objective: nn.Module, carried: Carried) -> Warm:
        """What towers that went on from the earlier ones are held to and compared with.

        Args:
            objective: Of the training; its estimate of item frequencies goes on.
            carried: What `carry` gave.
        """
        self._carry_frequency(objective, carried)
        return Warm(
            alignment=build(self.cfg.losses.alignment),
            known=known_items(self.prepared, self.before, self.pipeline),
            before=Space.load(self.run),
        )

    def _carry_frequency(self, objective: nn.Module, carried: Carried) -> None:
        """Estimates of item frequencies go on under the rows that the items have now."""
        for name, module in objective.named_modules():
            prefix = f"objective.{name}."
            saved = {
                key.removeprefix(prefix): value
                for key, value in carried.weights.items()
                if key.startswith(prefix)
            }
            if not isinstance(module, StreamingFrequency) or not saved:
                continue
            old = open_data(self.run)
            _, _, old_items = old.require_events()
            _, _, items = self.prepared.require_events()
            now = find_rows(
                items.ids.slice(0, self.prepared.num_catalogue),
                old_items.ids.slice(0, old.num_catalogue).to_pylist(),
            )
            before = torch.arange(len(now))
            after = torch.from_numpy(now)
            module.go_on(saved, before[after >= 0], after[after >= 0])


def check_warm(cfg: DictConfig) -> None:
    """Refuse, before anything is prepared, what cannot be gone on from.

    Raises:
        DataError: When the run lacks a stage, tables are to be split, or vectors are to be aligned
            with those of no run.
    """
    if cfg.warm_start is not None:
        check_warm_start(cfg.stages, Path(cfg.warm_start), split_tables=cfg.trainer.split_tables)
    elif not isinstance(build(cfg.losses.alignment), NoAlignment):
        raise DataError(
            ["losses/alignment: without warm_start=<run> there are no vectors to align with"]
        )
