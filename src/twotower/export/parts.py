"""What an export is given: a trained run, read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from twotower.data.prepared import Prepared
from twotower.features.pipeline import FeaturePipeline
from twotower.losses.calibration import Calibration
from twotower.models.dcn import DCNv2
from twotower.models.two_tower import TwoTower


@dataclass(frozen=True, kw_only=True)
class ExportParts:
    """What a run gives.

    Args:
        prepared: The data set it was trained on.
        pipeline: Its features with their fitted state.
        two_tower: The towers, or None; the export moves them to the CPU.
        ranker: The ranker, or None; the export moves it to the CPU.
        calibration: From the ranker's logits to probabilities; None without one.
        remove_seen: Whether items that a user took before are kept out of the recommendations.
        figures: Metrics of the run by name.
        describe: Adds files to the bundle that only later stages can write, such as the reference
            of monitoring, once the models are written; it is given the folder of the bundle and
            the data set with the events of the catalogue alone.
        space: Name of the space that the towers' vectors lie in; None for one of their own.
        run: Folder of the run, None where there is none.

    Raises:
        ValueError: When there is no model, or the ranker lacks what it needs.
    """

    prepared: Prepared
    pipeline: FeaturePipeline
    two_tower: TwoTower | None
    ranker: DCNv2 | None
    calibration: Calibration | None
    remove_seen: bool
    figures: Mapping[str, float]
    describe: Callable[[Path, Prepared], None] | None = None
    space: str | None = None
    run: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.two_tower is None and self.ranker is None:
            problems.append("export: the run has neither towers nor a ranker; one is needed")
        if self.ranker is not None and self.calibration is None:
            problems.append("export: a ranker needs its `calibration`")
        if self.ranker is not None and self.ranker.takes_retrieval and self.two_tower is None:
            problems.append("export: the ranker takes the score of the towers, but there are none")
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the run has trained."""
        models = {"retrieval": self.two_tower, "ranking": self.ranker}
        return tuple(stage for stage, model in models.items() if model is not None)

    @property
    def retrieval_score(self) -> bool:
        """Whether the ranker takes the score of the retrieval."""
        return self.ranker is not None and self.ranker.score_scale is not None
