"""What both stages of a training run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from twotower.data.batches import Columns
from twotower.data.prepared import Prepared
from twotower.data.queries import EvaluationSettings
from twotower.features.spec import ModelInputs
from twotower.losses.ranks import OneRank, Ranks
from twotower.models.columns import stage_columns
from twotower.training.carried import Carried
from twotower.training.settings import TrainerSettings


@dataclass(frozen=True, kw_only=True)
class Context:
    """What both stages share.

    Args:
        prepared: The data set.
        folder: The run folder.
        trainer: Settings of the trainer.
        evaluation: Settings of the metrics.
        seed: Seed of the order of batches.
        progress: Whether progress bars are shown.
        ranks: The processes that train together.
        carried: What the stage takes over from an earlier run; None where its model is fresh.
    """

    prepared: Prepared
    folder: Path
    trainer: TrainerSettings
    evaluation: EvaluationSettings
    seed: int
    progress: bool
    ranks: Ranks = field(default_factory=OneRank)
    carried: Carried | None = None

    def columns(self, inputs: ModelInputs) -> Columns:
        """The columns of a stage, for batches on the trainer's device."""
        trainer = self.trainer
        return stage_columns(self.prepared, inputs, trainer.device(), trainer.residency)
