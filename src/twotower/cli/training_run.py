"""The parts of a training run, built from the config and put together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from twotower.cli.compared_runs import run_figures, run_settings
from twotower.cli.data import prepare_from
from twotower.cli.tables import figures_table
from twotower.cli.training_checks import check_parts, check_settings
from twotower.cli.warm_run import WarmRun
from twotower.config import build
from twotower.config_files import read_yaml, to_yaml, write_spec
from twotower.data.prepared import FEATURES_FOLDER, Prepared
from twotower.data.schema import TEST, DataError
from twotower.features.pipeline import FeaturePipeline
from twotower.losses.ranks import Ranks
from twotower.metrics.top_k import metric_names
from twotower.training.baselines import ITEM_KNN, POPULARITY
from twotower.training.board import Board, compare_runs
from twotower.training.context import Context
from twotower.training.distributed import wait_for_all
from twotower.training.fit import Fitted, seed_everything
from twotower.training.processes import Place
from twotower.training.ranking import CLICK_METRICS
from twotower.training.report import report_ranking, report_retrieval
from twotower.training.run_folder import (
    CONFIG,
    RANKER_STATE,
    point_latest,
    start_run,
    write_json,
    write_metrics,
)
from twotower.training.stages import (
    RANKING,
    RETRIEVAL,
    Trained,
    ranking_examples,
    train_ranking,
    train_retrieval,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

# What may be said beside ``resume``: another number of processes goes on with the same batches.
BESIDE_RESUME = ("resume", "quiet", "trainer.devices")


@dataclass(kw_only=True)
class TrainingRun:
    """A run in progress.

    Args:
        cfg: The composed config.
        context: Data, folder and settings that the stages share.
        pipeline: The fitted features.
        warm: The run that this one goes on from, or None.
        metrics: Figures so far.
    """

    cfg: DictConfig
    context: Context
    pipeline: FeaturePipeline
    warm: WarmRun | None
    metrics: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def start(cfg: DictConfig, ranks: Ranks) -> TrainingRun:
        """Prepare the data and open the run folder.

        Args:
            cfg: The composed config.
            ranks: The processes that train together; the first one prepares and writes.

        Raises:
            ValueError: When `stages` names something else than the two stages, a setting of theirs
                is out of range, or the data lacks what they need.
        """
        evaluation = build(cfg.evaluation)
        prepared: Prepared | None = None
        if ranks.rank == 0:
            check_settings(cfg)
            prepared = prepare_from(cfg)
            check_parts(prepared, cfg, evaluation)
        wait_for_all(ranks)
        prepared = prepared or prepare_from(cfg)
        pipeline = FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)
        folder = Path(cfg.output_dir).resolve()
        context = Context(
            prepared=prepared,
            folder=folder,
            trainer=build(cfg.trainer),
            evaluation=evaluation,
            seed=cfg.seed,
            progress=not cfg.quiet,
            ranks=ranks,
        )
        if ranks.rank == 0:
            start_run(folder, to_yaml(cfg), prepared)
            write_spec(folder / "features.yaml", pipeline.spec.to_dict())
        wait_for_all(ranks)
        warm = WarmRun.of(cfg, pipeline, prepared)
        return TrainingRun(cfg=cfg, context=context, pipeline=pipeline, warm=warm)

    def wants(self, stage: str) -> bool:
        """Whether a stage is to be trained."""
        return stage in self.cfg.stages

    def retrieval(self) -> Trained:
        """Train and test the two towers."""
        inputs = self.pipeline.inputs(RETRIEVAL)
        self._open_board(RETRIEVAL, metric_names(self.context.evaluation.ks))
        seed_everything(self.cfg.seed)
        model = build(self.cfg.models.retrieval, inputs=inputs)
        objective = build(self.cfg.losses.retrieval)
        carried = None if self.warm is None else self.warm.carry(model, RETRIEVAL)
        trained = train_retrieval(
            replace(self.context, carried=carried),
            model=model,
            inputs=inputs,
            objective=objective,
            batches=build(self.cfg.training.batches),
            settings=build(self.cfg.training.retrieval),
            warm=None
            if self.warm is None or carried is None
            else self.warm.towers(objective, carried),
        )
        report = report_retrieval(self.context, trained)
        if report is None:
            return trained
        trained.space.save(self.context.folder)
        crossed = {
            f"{RETRIEVAL}/validation/{pair}_recall@{trained.space.k}": value
            for pair, value in trained.space.recall.items()
        }
        self._record(RETRIEVAL, dict(report.metrics) | crossed, trained.fitted, model)
        _, _, items = self.context.prepared.require_events()
        board = Board(self.context.folder, RETRIEVAL)
        board.metrics(report.metrics)
        board.recall_by_popularity(report.deciles, max(self.context.evaluation.ks))
        counts = torch.from_numpy(trained.frequency.counts)
        board.items(trained.retriever.items, items.ids, items.table, counts)
        board.close()
        return trained

    def ranking(self, trained: Trained | None) -> None:
        """Train and test the ranker."""
        tasks = tuple(self.context.prepared.interactions.tasks)
        inputs = replace(self.pipeline.inputs(RANKING), tasks=tasks)
        self._open_board(RANKING, CLICK_METRICS)
        seed_everything(self.cfg.seed)
        wanted = self.cfg.models.ranking
        if trained is None and (wanted.retrieval_score or wanted.retrieval_rank):
            log.warning("No retrieval stage in this run: the ranker does without score and rank")
            wanted.retrieval_score = wanted.retrieval_rank = False
        model = build(wanted, inputs=inputs)
        source = build(self.cfg.training.examples)
        retriever = None if trained is None else trained.retriever
        carried = None if self.warm is None else self.warm.carry(model, RANKING)
        ranker = train_ranking(
            replace(self.context, carried=carried),
            model=model,
            inputs=inputs,
            loss=build(self.cfg.losses.ranking),
            source=source,
            retriever=retriever,
            calibrator=build(self.cfg.training.calibration),
            settings=build(self.cfg.training.ranking),
        )
        test = ranking_examples(self.context, source, TEST, model, ranker.columns, retriever)
        report = report_ranking(self.context, model, ranker.calibration, test)
        if report is None:
            return
        self._record(RANKING, dict(report.metrics), ranker.fitted, model)
        state = {
            "calibration": asdict(ranker.calibration),
            "retrieval_score": model.score_scale is not None,
            "retrieval_rank": model.rank_scale is not None,
            "tasks": list(model.tasks),
        }
        write_json(self.context.folder / RANKER_STATE, state)
        board = Board(self.context.folder, RANKING)
        board.metrics(report.metrics)
        board.reliability(report.reliability)
        board.close()

    def _open_board(self, stage: str, names: Sequence[str]) -> None:
        """Show in TensorBoard what a stage is and how its curves are laid out, before it trains."""
        if self.context.ranks.rank == 0:
            board = Board(self.context.folder, stage)
            board.config(to_yaml(self.cfg))
            board.layout(names)
            board.close()

    def finish(self, *, summary: bool = True) -> dict[str, float]:
        """Write the figures and, as a summary, print the short table."""
        folder = self.context.folder
        if self.context.ranks.rank:
            return self.metrics
        write_metrics(folder, self.metrics)
        point_latest(folder)
        figures = run_figures(self.metrics, self.context.evaluation.ks)
        compare_runs(folder, run_settings(self.cfg), figures)
        if summary and not self.cfg.quiet:
            names = headline_figures(self.context.evaluation.ks)
            Console().print(figures_table("Test part", self.metrics, names))
            Console().print(
                f"run folder: {folder}\n"
                f"curves:     tensorboard --logdir {folder}\n"
                f"next:       twotower export run={folder}",
                highlight=False,
                soft_wrap=True,
            )
        return self.metrics

    def _record(
        self, stage: str, metrics: dict[str, float], fitted: Fitted, model: torch.nn.Module
    ) -> None:
        of_training = {
            f"{stage}/validation/{self.cfg.training[stage].monitor}": fitted.best,
            f"{stage}/train/seconds": fitted.seconds,
            f"{stage}/train/parameters": sum(p.numel() for p in model.parameters()),
        }
        self.metrics |= metrics | of_training
        write_metrics(self.context.folder, self.metrics)


def headline_figures(ks: Sequence[int]) -> list[str]:
    """Names of the figures in the short table; ``metrics.json`` holds all.

    Args:
        ks: Lengths of the lists, the headline one first.
    """
    k, longest = ks[0], max(ks)
    metrics = dict.fromkeys((f"hit_rate@{k}", f"ndcg@{k}", f"recall@{k}", f"recall@{longest}"))
    clicks = ("auc", "grouped_auc", "log_loss", "calibration_error", "calibration_error_before")
    return [
        *(f"{name}/test/{m}" for m in metrics for name in (RETRIEVAL, ITEM_KNN, POPULARITY)),
        *(f"{RETRIEVAL}/test/{kind}_recall@{longest}" for kind in ("cold", "warm")),
        *(f"{RANKING}/test/{name}" for name in clicks),
    ]


def config_to_resume(cfg: DictConfig) -> DictConfig:
    """The config of the run that is to go on, in the place of what was composed now.

    Args:
        cfg: Composed, with ``resume`` set to a run folder.

    Raises:
        ValueError: When the run has no config, or other settings are given beside it.
    """
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    names = [text.lstrip("+").split("=")[0] for text in given]
    others = [t for t, name in zip(given, names, strict=True) if name not in BESIDE_RESUME]
    if others:
        raise DataError(
            [f"resume={cfg.resume}: the run's own config is used; leave out {', '.join(others)}"]
        )
    saved = read_yaml(Path(cfg.resume) / CONFIG)
    saved.output_dir, saved.quiet = cfg.resume, cfg.quiet
    if "trainer.devices" in names or Place.of_environment() is not None:
        saved.trainer.devices = cfg.trainer.devices
    return saved
