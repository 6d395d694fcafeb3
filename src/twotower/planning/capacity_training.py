"""What training takes: memory of each stage, GPUs, hours.

The stages are trained one after the other, each with tables of its own. Past one GPU the tables are
divided by rows (TorchRec), and every GPU keeps the columns of its share of the users; what is said
of several GPUs is arithmetic that nobody has run here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from twotower.planning.capacity_devices import Gpu
from twotower.planning.capacity_memory import (
    checkpoint_bytes,
    column_bytes,
    optimizer_bytes,
    step_bytes,
    table_bytes,
)
from twotower.planning.capacity_question import Question
from twotower.planning.capacity_work import (
    Ranker,
    Towers,
    Work,
    core_seconds,
    gpu_seconds,
    ranker_work,
    towers_work,
)

# Share of a memory that is planned for; the rest is the driver's, and lost between allocations.
USABLE: Final = 0.9
HOUR: Final = 3600
# The ranker of the default config.
RANKER_HIDDEN, CROSS_LAYERS = (128, 64), 2
# Where the log is of positives alone the ranker learns from at most so many of a user, each with so
# many other candidates.
POSITIVES_PER_USER, CANDIDATES_PER_POSITIVE = 20, 5
# Scores of the sampled softmax that are in memory at a time, on a GPU.
SOFTMAX_BLOCK: Final = 2**27


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Training of one stage.

    Args:
        name: ``retrieval`` or ``ranking``.
        tables: Bytes of the embedding tables.
        optimizer: Bytes of their optimiser.
        columns: Bytes of the prepared columns on the device.
        step: Bytes of a step.
        checkpoints: Bytes of the stage's checkpoints on disk.
        examples: Examples of all epochs.
        core_hours: Hours of one CPU core.
        gpu_hours: Hours of one GPU, were its memory large enough; None without.
        memory_gpus: GPUs over which tables and columns must be divided; None without GPUs, or where
            a step alone is too large.
    """

    name: str
    tables: int
    optimizer: int
    columns: int
    step: int
    checkpoints: int
    examples: int
    core_hours: float
    gpu_hours: float | None
    memory_gpus: int | None

    @property
    def memory(self) -> int:
        """Bytes that all of it takes on one device."""
        return self.tables + self.optimizer + self.columns + self.step


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Training of both stages.

    Args:
        stages: Each of them.
        gpus: GPUs that hold them and train them in time; None where that cannot be.
        hours: Hours on so many GPUs; None without.
        core_hours: Hours of one CPU core.
        machines: Machines with so many GPUs.
    """

    stages: tuple[StagePlan, StagePlan]
    gpus: int | None
    hours: float | None
    core_hours: float
    machines: int


def towers_of(question: Question) -> Towers:
    """The towers that are planned for."""
    return Towers(
        width=question.width,
        hidden=question.hidden,
        dim=question.dim,
        history=question.history,
    )


def ranker_of(question: Question) -> Ranker:
    """The ranker that is planned for."""
    return Ranker(
        width=question.width,
        hidden=RANKER_HIDDEN,
        cross_layers=CROSS_LAYERS,
        history=question.history,
    )


def plan_training(question: Question) -> TrainingPlan:
    """What training takes.

    Args:
        question: What is planned for.
    """
    machine, batch = question.machine, question.batch
    towers, ranker = towers_of(question), ranker_of(question)
    scores = min(SOFTMAX_BLOCK, batch * (batch + question.negatives))
    stages = (
        _stage(
            "retrieval",
            question,
            work=towers_work(towers, batch=batch, negatives=question.negatives),
            step=_step(question, towers.dense, (*towers.hidden, *towers.hidden), towers.weights)
            + 5 * scores,  # a score and whether it is masked
            examples=question.num_events,
        ),
        _stage(
            "ranking",
            question,
            work=ranker_work(ranker),
            step=_step(question, ranker.dense, ranker.hidden, ranker.weights),
            examples=ranking_examples(question),
        ),
    )
    core_hours = sum(stage.core_hours for stage in stages)
    if machine.gpu is None or any(stage.memory_gpus is None for stage in stages):
        return TrainingPlan(stages=stages, gpus=None, hours=None, core_hours=core_hours, machines=1)
    gpu_hours = sum(stage.gpu_hours or 0.0 for stage in stages)
    in_time = math.ceil(gpu_hours / question.training_hours)
    gpus = max(in_time, *(stage.memory_gpus or 1 for stage in stages))
    return TrainingPlan(
        stages=stages,
        gpus=gpus,
        hours=gpu_hours / gpus,
        core_hours=core_hours,
        machines=math.ceil(gpus / machine.gpus),
    )


def ranking_examples(question: Question) -> int:
    """Examples of the ranker in an epoch: the log, or positives with other candidates.

    Args:
        question: What is planned for.
    """
    if question.positive_share < 1:
        return question.num_interactions
    positives = min(question.num_events, POSITIVES_PER_USER * question.users)
    return positives * (1 + CANDIDATES_PER_POSITIVE)


def usable(gpu: Gpu) -> int:
    """Bytes of a GPU that are planned for."""
    return round(USABLE * gpu.memory)


def _step(question: Question, dense: tuple[int, ...], hidden: tuple[int, ...], weights: int) -> int:
    return step_bytes(
        question.batch,
        question.history,
        question.width,
        dense=dense,
        hidden=hidden,
        weights=weights,
    )


def _stage(
    name: str,
    question: Question,
    *,
    work: Work,
    step: int,
    examples: int,
) -> StagePlan:
    gpu, width, precision = question.machine.gpu, question.width, question.precision
    sizes = (question.users, question.items)
    tables = sum(table_bytes(size, width, precision) for size in sizes)
    optimizer = sum(optimizer_bytes(n, width, question.optimizer) for n in sizes)
    columns = column_bytes(*sizes, question.num_interactions, question.num_events)
    examples *= question.epochs
    gpu_hours = memory_gpus = None
    if gpu is not None:
        gpu_hours = examples * gpu_seconds(work, gpu, batch=question.batch) / HOUR
        room = usable(gpu) - step
        if room > 0:
            memory_gpus = math.ceil((tables + optimizer + columns) / room)
    return StagePlan(
        name=name,
        tables=tables,
        optimizer=optimizer,
        columns=columns,
        step=step,
        checkpoints=checkpoint_bytes(tables, optimizer),
        examples=examples,
        core_hours=examples * core_seconds(work) / HOUR,
        gpu_hours=gpu_hours,
        memory_gpus=memory_gpus,
    )
