"""The parts of a training run, built from the config and put together."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table

from twotower.cli.data import prepare_from
from twotower.config import build
from twotower.config_files import to_yaml, write_spec
from twotower.data.prepared import FEATURES_FOLDER, Prepared
from twotower.data.schema import TEST, DataError
from twotower.features.pipeline import FeaturePipeline
from twotower.training.board import Board
from twotower.training.report import report_ranking, report_retrieval
from twotower.training.run_folder import (
    METRICS,
    RANKER_STATE,
    point_latest,
    start_run,
    write_json,
    write_metrics,
)
from twotower.training.stages import (
    RANKING,
    RETRIEVAL,
    STAGES,
    Context,
    Trained,
    ranking_examples,
    train_ranking,
    train_retrieval,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainingRun:
    """A run in progress.

    Args:
        cfg: The composed config.
        context: Data, folder and settings that the stages share.
        pipeline: The fitted features.
        metrics: Figures so far.
    """

    cfg: DictConfig
    context: Context
    pipeline: FeaturePipeline
    metrics: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def start(cfg: DictConfig) -> TrainingRun:
        """Prepare the data and open the run folder.

        Raises:
            ValueError: When `stages` names something else than the two stages.
        """
        check_stages(cfg.stages)
        pl.seed_everything(cfg.seed, verbose=False)
        prepared: Prepared = prepare_from(cfg)
        pipeline = FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)
        folder = Path(cfg.output_dir)
        context = Context(
            prepared=prepared,
            folder=folder,
            trainer=build(cfg.trainer),
            evaluation=build(cfg.evaluation),
            seed=cfg.seed,
            progress=not cfg.quiet,
        )
        start_run(folder, to_yaml(cfg), prepared)
        write_spec(folder / "features.yaml", pipeline.spec.to_dict())
        return TrainingRun(cfg=cfg, context=context, pipeline=pipeline)

    def wants(self, stage: str) -> bool:
        """Whether a stage is to be trained."""
        return stage in self.cfg.stages

    def retrieval(self) -> Trained:
        """Train and test the two towers."""
        inputs = self.pipeline.inputs(RETRIEVAL)
        torch.manual_seed(self.cfg.seed)
        model = build(self.cfg.models.retrieval, inputs=inputs)
        trained = train_retrieval(
            self.context,
            model=model,
            inputs=inputs,
            objective=build(self.cfg.losses.retrieval),
            settings=build(self.cfg.training.retrieval),
        )
        report = report_retrieval(self.context, trained)
        self._record(RETRIEVAL, dict(report.metrics), trained.fitted.seconds)
        _, _, items = self.context.prepared.require_events()
        board = Board(self.context.folder, RETRIEVAL)
        board.config(to_yaml(self.cfg))
        board.metrics(report.metrics)
        board.recall_by_popularity(report.deciles)
        counts = torch.from_numpy(trained.frequency.counts)
        board.items(trained.retriever.items, items.ids, items.table, counts)
        board.close()
        return trained

    def ranking(self, trained: Trained | None) -> None:
        """Train and test the ranker."""
        inputs = self.pipeline.inputs(RANKING)
        torch.manual_seed(self.cfg.seed)
        if trained is None and self.cfg.models.ranking.retrieval_score:
            log.warning("No retrieval stage in this run: the ranker does without its score")
            self.cfg.models.ranking.retrieval_score = False
        model = build(self.cfg.models.ranking, inputs=inputs)
        source = build(self.cfg.training.examples)
        retriever = None if trained is None else trained.retriever
        ranker = train_ranking(
            self.context,
            model=model,
            inputs=inputs,
            loss=build(self.cfg.losses.ranking),
            source=source,
            retriever=retriever,
            settings=build(self.cfg.training.ranking),
        )
        test = ranking_examples(self.context, source, TEST, model, ranker.columns, retriever)
        report = report_ranking(self.context, model, test)
        self._record(RANKING, dict(report.metrics), ranker.fitted.seconds)
        state = {
            "negative_rate": ranker.negative_rate,
            "retrieval_score": model.score_scale is not None,
        }
        write_json(self.context.folder / RANKER_STATE, state)
        board = Board(self.context.folder, RANKING)
        board.config(to_yaml(self.cfg))
        board.metrics(report.metrics)
        board.reliability(report.reliability)
        board.close()

    def finish(self) -> dict[str, float]:
        """Write the figures and print the short table."""
        folder = self.context.folder
        write_metrics(folder, self.metrics)
        point_latest(folder)
        if not self.cfg.quiet:
            Console().print(figures_table(self.metrics))
            Console().print(
                f"run folder: {folder}\n"
                f"curves:     tensorboard --logdir {folder}\n"
                f"next:       python export.py run={folder}",
                highlight=False,
                soft_wrap=True,
            )
        return self.metrics

    def _record(self, stage: str, metrics: dict[str, float], seconds: float) -> None:
        self.metrics |= metrics | {f"{stage}/train/seconds": seconds}
        write_metrics(self.context.folder, self.metrics)


def check_stages(stages: list[str]) -> None:
    """Refuse stages that do not exist.

    Raises:
        DataError: Names them and what is allowed.
    """
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        received = ", ".join(unknown) or "none"
        raise DataError([f"stages: must be some of {', '.join(STAGES)}, got {received}"])


def figures_table(metrics: dict[str, float]) -> Table:
    """The headline figures with their intervals."""
    table = Table(title="Test part")
    for column in ("figure", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, value in metrics.items():
        shown = "/test/" in name and not name.endswith(("/low", "/high"))
        if shown and not name.startswith(tuple(_hidden())):
            low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
            interval = "" if low is None or high is None else f"{low:.4f} .. {high:.4f}"
            table.add_row(name, f"{value:.4f}", interval)
    return table


def _hidden() -> list[str]:
    """Figures that stand in ``metrics.json`` but not in the short table."""
    kinds = ("precision", "mrr", "map")
    return [
        f"{name}/test/{kind}@" for name in ("retrieval", "popularity", "item_knn") for kind in kinds
    ]


def read_metrics(folder: Path) -> dict[str, float]:
    """The figures of a finished run.

    Raises:
        DataError: When the run was not finished.
    """
    path = folder / METRICS
    if not path.is_file():
        raise DataError(
            [f"{folder}: no {METRICS}; the run was not finished, resume={folder} goes on"]
        )
    values: dict[str, float | None] = json.loads(path.read_text())
    return {name: float("nan") if value is None else value for name, value in values.items()}
