"""The two stages, each from its parts to a trained model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from twotower.data.batches import Columns
from twotower.data.leakage import check_leaks
from twotower.data.schema import TRAIN, VALIDATION
from twotower.data.shuffled_batches import ShuffledBatches
from twotower.features.frequency import ItemFrequency
from twotower.features.spec import ModelInputs
from twotower.losses.alignment import Aligned
from twotower.losses.calibration import Calibration, Calibrator
from twotower.losses.objective import RetrievalObjective
from twotower.metrics.top_k import metric_names
from twotower.models.dcn import DCNv2
from twotower.models.shared_tables import start_from_tables
from twotower.models.two_tower import TwoTower
from twotower.training.batches import TrainingBatches, TrainingExamples
from twotower.training.context import Context
from twotower.training.cpu_products import float32_by_onednn
from twotower.training.cross_version import OldVersion, Space, new_space
from twotower.training.distributed import agreed
from twotower.training.evaluation import catalogue_metrics
from twotower.training.examples import (
    ExampleBatches,
    Examples,
    ExampleSource,
    examples_of_first,
    with_ranks,
)
from twotower.training.fit import Fitted, fit_stage
from twotower.training.memory import keep_freed_memory
from twotower.training.ranking import (
    CLICK_METRICS,
    RankingLoss,
    RankingTask,
    click_metrics,
    predicted_logits,
    probabilities,
    task_metrics,
)
from twotower.training.retrieval import RetrievalTask
from twotower.training.retriever import Retriever
from twotower.training.settings import StageSettings, TrainerSettings
from twotower.training.warm_towers import Warm, measured, old_version

log = logging.getLogger(__name__)

RETRIEVAL: Final = "retrieval"
RANKING: Final = "ranking"
STAGES = (RETRIEVAL, RANKING)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained retrieval model.

    Args:
        retriever: The model with its columns and item vectors.
        frequency: Item counts that its loss was corrected with.
        fitted: What became of the training.
        space: In which space its vectors lie.
    """

    retriever: Retriever
    frequency: ItemFrequency
    fitted: Fitted
    space: Space


@dataclass(frozen=True, kw_only=True)
class TrainedRanker:
    """A trained ranking model.

    Args:
        model: The ranker.
        columns: Features of the ranking stage.
        calibration: From its logits to probabilities, fitted on the validation part.
        fitted: What became of the training.
    """

    model: DCNv2
    columns: Columns
    calibration: Calibration
    fitted: Fitted


def train_retrieval(
    context: Context,
    *,
    model: TwoTower,
    inputs: ModelInputs,
    objective: RetrievalObjective,
    batches: TrainingBatches,
    settings: StageSettings,
    warm: Warm | None = None,
) -> Trained:
    """Train the two towers on the training events.

    Args:
        context: Data, folder and settings.
        model: The towers, fresh.
        inputs: What they are given.
        objective: Loss and negatives.
        batches: What an example is.
        settings: Of the stage.
        warm: What towers that went on from earlier ones are compared with, or None.

    Raises:
        LeakError: When the item frequencies have seen more than the training part.
    """
    prepared, columns = context.prepared, context.columns(inputs)
    train_rows = np.flatnonzero(prepared.interactions.split == TRAIN)
    frequency = ItemFrequency.count(prepared, train_rows)
    check_leaks({"item frequencies": frequency.fitted_on}, prepared.training)
    queries = context.evaluation.queries(prepared, VALIDATION)

    def evaluate() -> Mapping[str, float]:
        means = catalogue_metrics(
            model,
            columns,
            queries,
            context.evaluation.ks,
            num_catalogue=prepared.num_catalogue,
            remove_seen=context.evaluation.remove_seen,
            ranks=context.ranks,
        )
        return {f"{RETRIEVAL}/validation/{name}": value for name, value in means.items()}

    old = None if warm is None else old_version(context, model, columns, queries, warm)
    task = RetrievalTask(
        model=model,
        objective=objective,
        columns=columns,
        item_probability=torch.from_numpy(frequency.probability()),
        optimizer=settings.optimizer,
        ranks=context.ranks,
        aligned=_aligned(warm, old),
    )
    examples = batches.examples(prepared, columns, model)
    fitted = _fit(context, RETRIEVAL, task, examples, evaluate, settings)
    model.eval()
    retriever = Retriever.of(
        model,
        columns,
        prepared.num_catalogue,
        remove_seen=context.evaluation.remove_seen,
        ranks=context.ranks,
    )
    space = new_space(model)
    if warm is not None and old is not None:
        space = measured(context, retriever, queries, warm, old)
    return Trained(retriever=retriever, frequency=frequency, fitted=fitted, space=space)


def _aligned(warm: Warm | None, old: OldVersion | None) -> Aligned | None:
    if warm is None or old is None:
        return None
    return Aligned(alignment=warm.alignment, frozen=old.items)


def train_ranking(
    context: Context,
    *,
    model: DCNv2,
    inputs: ModelInputs,
    loss: RankingLoss,
    source: ExampleSource,
    retriever: Retriever | None,
    calibrator: Calibrator,
    settings: StageSettings,
) -> TrainedRanker:
    """Train the ranker on impressions or candidates, and calibrate it.

    Args:
        context: Data, folder and settings.
        model: The ranker, fresh.
        inputs: What it is given.
        loss: What is minimised.
        source: Where examples come from.
        retriever: The trained retrieval stage, or None.
        calibrator: Fits the probabilities on the validation part.
        settings: Of the stage.

    Returns:
        The trained stage.
    """
    columns = context.columns(inputs)
    if retriever is not None and context.carried is None:
        reused = start_from_tables(model, retriever.model)
        log.info("Ranker: tables that start from the retrieval's: %s", ", ".join(reused) or "none")
    training = ranking_examples(context, source, TRAIN, model, columns, retriever)
    validation = ranking_examples(context, source, VALIDATION, model, columns, retriever)
    rate = training.examples.trained_rate

    def evaluate() -> Mapping[str, float]:
        as_trained = Calibration(negative_rate=rate)
        predicted = probabilities(model, validation, as_trained, context.ranks)
        values = click_metrics(context.prepared, validation, predicted)
        values |= task_metrics(model, validation, context.ranks)
        return {f"{RANKING}/validation/{name}": value for name, value in values.items()}

    task = RankingTask(model=model, loss=loss, optimizer=settings.optimizer, ranks=context.ranks)
    examples = training.of_epochs()
    fitted = _fit(context, RANKING, task, examples, evaluate, settings)
    model.eval()
    calibration = calibrator.fit(
        predicted_logits(model, validation, context.ranks)[:, 0].numpy(),
        validation.examples.labels,
        kept=validation.examples.negative_rate,
        trained=rate,
    )
    log.info("ranking: slope %.3f, bias %+.3f on validation", calibration.scale, calibration.bias)
    return TrainedRanker(model=model, columns=columns, calibration=calibration, fitted=fitted)


def ranking_examples(
    context: Context,
    source: ExampleSource,
    part: int,
    model: DCNv2,
    columns: Columns,
    retriever: Retriever | None,
) -> ExampleBatches:
    """The examples of a part, ready to be gathered."""

    def make() -> Examples:
        examples = source.examples(context.prepared, part, retriever)
        if model.rank_scale is None:
            return examples
        return with_ranks(examples, context.prepared, retriever)

    with_scores = model.score_scale is not None
    examples = examples_of_first(make, context.ranks)
    return ExampleBatches(examples=examples, columns=columns, with_scores=with_scores)


def validation_metrics(stage: str, ks: Sequence[int], *, has_users: bool = True) -> Sequence[str]:
    """What a stage can be stopped and selected by.

    Args:
        stage: ``retrieval`` or ``ranking``.
        ks: Lengths of the lists.
        has_users: Whether the log has users, to group by.
    """
    if stage == RETRIEVAL:
        return metric_names(ks)
    return [name for name in CLICK_METRICS if has_users or name != "grouped_auc"]


def _assembles_ahead(trainer: TrainerSettings, examples: TrainingExamples) -> bool:
    """Whether batches are gathered on the host while a GPU trains, without drawing anything."""
    is_apart = trainer.device().type == "cuda" and trainer.residency != "device"
    return is_apart and examples.assemble_share is None


def _fit(
    context: Context,
    stage: str,
    task: RetrievalTask | RankingTask,
    examples: TrainingExamples,
    evaluate: Callable[[], Mapping[str, float]],
    settings: StageSettings,
) -> Fitted:
    loader = ShuffledBatches(
        examples.rows,
        pool=examples.pool,
        num_drawn=examples.num_drawn,
        batch_size=settings.batch_size,
        seed=context.seed,
        assemble=examples.share_of_batch(context.ranks),
        ahead=_assembles_ahead(context.trainer, examples),
    )
    if context.trainer.device().type == "cpu":
        keep_freed_memory()
    task.carried = context.carried
    with float32_by_onednn(context.trainer.device()):
        return fit_stage(
            stage=stage,
            task=task,
            loader=loader,
            evaluate=lambda: agreed(evaluate(), context.ranks),
            settings=settings.stretched(len(loader)),
            trainer_settings=context.trainer,
            folder=context.folder,
            progress=context.progress,
        )
