"""A plan in words: what to take, what it rests on, and what would make it smaller."""

from __future__ import annotations

import math
from collections.abc import Iterator

from twotower.planning.capacity import Plan, index_command
from twotower.planning.capacity_devices import Gpu
from twotower.planning.capacity_memory import table_bytes
from twotower.planning.capacity_serving import (
    ALONE,
    MAX_MODEL,
    ServingPlan,
    in_milliseconds,
    scoring_milliseconds,
    tables_bytes,
)
from twotower.planning.capacity_training import USABLE, usable

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def advice(plan: Plan) -> tuple[str, ...]:
    """The recommendation, a sentence or two for each part.

    Args:
        plan: The plan.
    """
    return (*_training(plan), *_preparing(plan), *_serving(plan))


def in_bytes(number: float) -> str:
    """A number of bytes as people read it.

    Example:
        >>> in_bytes(281_600_000_512), in_bytes(4_000)
        ('282 GB', '4.00 kB')
    """
    unit = 0
    while number >= 999.5 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    digits = 0 if unit == 0 or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {UNITS[unit]}"


def counted(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "GPU"), counted(8_000, "core")
        ('1 GPU', '8,000 cores')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_hours(hours: float) -> str:
    """A time as people read it.

    Example:
        >>> in_hours(0.004), in_hours(0.5), in_hours(7.04), in_hours(72)
        ('14 seconds', '30 minutes', '7.0 hours', '3.0 days')
    """
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} seconds"
    if hours < 1:
        return f"{60 * hours:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def _training(plan: Plan) -> Iterator[str]:
    training, question = plan.training, plan.question
    gpu = question.machine.gpu
    if training.core_hours <= question.training_hours:
        yield (
            f"Training: no GPU is needed, one CPU core does it in {in_hours(training.core_hours)} "
            f"of the {in_hours(question.training_hours)} there are."
        )
    elif gpu is None:
        cores = training.core_hours / question.training_hours
        yield (
            f"Training: without a GPU it takes {in_hours(training.core_hours)} of one CPU core, "
            f"{cores:,.0f} times what there is; plan with a GPU (gpu=h100)."
        )
    elif training.gpus is None:
        step = max(stage.step for stage in training.stages)
        yield (
            f"Training: a step takes {in_bytes(step)} and one {gpu.name} has "
            f"{in_bytes(usable(gpu))} to be used; take a smaller batch."
        )
    else:
        yield from _gpus(plan, gpu, training.gpus)


def _gpus(plan: Plan, gpu: Gpu, gpus: int) -> Iterator[str]:
    training, question, machine = plan.training, plan.question, plan.question.machine
    stage = max(training.stages, key=lambda stage: stage.memory)
    kept = stage.tables + stage.optimizer
    room = usable(gpu) - stage.step
    if kept > room:
        yield (
            f"Training: tables and optimiser of a stage take {in_bytes(kept)}, one {gpu.name} has "
            f"{in_bytes(room)} beside a step: their rows must be divided over {stage.memory_gpus} "
            "GPUs, with TorchRec (row-wise sharding)."
        )
        if question.precision != "float32":
            yield "Training divides float32 tables alone: plan with precision=float32."
    elif kept + stage.columns > room:
        yield (
            f"Training: the tables fit one {gpu.name}, but not beside {in_bytes(stage.columns)} of "
            "columns; divide the users over "
            f"{stage.memory_gpus} GPUs, or train on fewer days."
        )
    else:
        yield (
            f"Training: everything fits one {gpu.name} ({in_bytes(stage.memory)} of "
            f"{in_bytes(usable(gpu))}); tables need not be divided."
        )
    where = (
        f"of one machine with {machine.gpus}"
        if training.machines == 1
        else f"of {training.machines} machines with {machine.gpus} each"
    )
    hours = in_hours(training.hours or 0.0)
    yield f"Both stages: {counted(gpus, 'GPU')} {where}, {hours}."
    yield from _savings(plan, kept)


def _savings(plan: Plan, kept: int) -> Iterator[str]:
    """What would take less, where tables are what is large."""
    question, gpu = plan.question, plan.question.machine.gpu
    if not gpu or kept <= usable(gpu):
        return
    stage = max(plan.training.stages, key=lambda stage: stage.memory)
    halved = kept - stage.tables // 2
    if question.precision == "float32" and halved <= usable(gpu) - stage.step:
        yield (
            f"In bfloat16 (trainer.table_precision) tables and optimiser take {in_bytes(halved)} "
            "and fit one GPU."
        )
    if question.optimizer != "rowwise_adagrad":
        spared = plan.training.stages[0].optimizer - 4 * (question.users + question.items)
        yield f"Row-wise Adagrad would spare {in_bytes(spared)} a stage."
    users = table_bytes(question.users, question.width, question.precision)
    if 2 * users > kept:
        yield (
            f"The users' table is {in_bytes(users)} of it. Without `user_id` among the features "
            "users are known by their history, and the table falls away."
        )
    else:
        narrow = kept / question.width * 16
        yield (
            f"Tables of width 16 (features.dims) would take about {in_bytes(narrow)} a stage; a "
            "min_count in the features keeps rare items out of them."
        )


def _preparing(plan: Plan) -> Iterator[str]:
    needed, machine = plan.storage.preparing, plan.question.machine
    if needed > USABLE * machine.ram:
        yield (
            f"Preparing takes {in_bytes(needed)} of memory and a machine has "
            f"{in_bytes(machine.ram)}: train on fewer days, or take a machine with more."
        )


def _serving(plan: Plan) -> Iterator[str]:
    question, chosen = plan.question, plan.chosen
    if chosen is None:
        yield from _nothing_fits(plan)
        return
    option = chosen.option
    where = "on CPUs" if option.place == "cpu" else f"on {counted(chosen.gpus, 'GPU')}"
    found = "exact" if option.recall == 1.0 else f"recall {option.recall:.2f} or better"
    yield (
        f"Index: {option.kind} {where}, `twotower export run=<run> {index_command(chosen)}`: "
        f"{found}, {chosen.milliseconds:.1f} ms a request alone, "
        f"{in_bytes(option.ram + option.gpu)}."
    )
    others = [_why_not(plan, other, chosen) for other in plan.serving if other is not chosen]
    if others:
        yield f"Not taken: {'; '.join(others)}."
    yield from _division(chosen)
    machines = "one machine is enough" if chosen.machines == 1 else f"{chosen.machines} machines"
    index = f" and {in_bytes(option.ram)} of index" if option.ram else ""
    yield (
        f"Serving: {counted(max(1, round(chosen.cores)), 'core')} for "
        f"{question.queries_per_second:,.0f} requests a second, {machines}; "
        f"{in_bytes(plan.storage.models)} of models{index} in the memory of each."
    )
    model = tables_bytes(question)
    if model > MAX_MODEL:
        yield (
            f"A model of {in_bytes(model)} is more than one ONNX file holds ({in_bytes(MAX_MODEL)})"
            ": this release refuses to export it."
        )
    share = scoring_milliseconds(question) / chosen.milliseconds
    if share > 0.5:
        yield (
            f"The models are {100 * share:.0f} % of a request: fewer candidates than "
            f"{question.candidates} make it cheaper before another index does."
        )
    if option.place == "gpu":
        yield "GPUs: their figures are those of data sheets; no search was measured on one."
    if option.recall < 1.0:
        yield (
            "Recall is that of vectors that are hard to search. Trained ones are easier: "
            f"`index=auto index.recall_target={question.recall:g}` measures them and takes less."
        )


def _division(chosen: ServingPlan) -> Iterator[str]:
    if chosen.num_shards > 1:
        yield (
            f"The index is larger than a GPU: FAISS divides it over {chosen.num_shards} "
            "(`index.num_shards`), which was not yet run on GPUs."
        )
    elif chosen.gpu_pieces > 1:
        yield (
            f"The index lies on {chosen.gpu_pieces} GPUs, more than a machine has; this release "
            "divides it over the GPUs of one."
        )
    if chosen.ram_pieces > 1:
        yield (
            f"The index lies on {chosen.ram_pieces} machines, over which this release does not "
            "divide it."
        )


def _nothing_fits(plan: Plan) -> Iterator[str]:
    question = plan.question
    scoring = scoring_milliseconds(question)
    if scoring > ALONE * question.latency_ms:
        limit = ALONE * question.latency_ms
        yield (
            f"Serving: the ranker alone takes {in_milliseconds(scoring)} ms for "
            f"{question.candidates} candidates, and a request may take {limit:g} ms before others "
            "wait for it; rank fewer candidates or allow more milliseconds."
        )
        return
    reasons = [f"{_name(p)}: {', '.join(p.problems)}" for p in plan.serving]
    yield f"Serving: no kind of index does it. {'; '.join(reasons)}."
    found = [p for p in plan.serving if p.ram_pieces and p.option.recall >= question.recall]
    if found:
        first = min(found, key=lambda p: p.milliseconds)
        wanted = math.ceil(first.milliseconds / ALONE)
        yield f"With latency_ms={wanted} {_name(first)} would do."


def _why_not(plan: Plan, other: ServingPlan, chosen: ServingPlan) -> str:
    """Why another index was not taken, the first difference that decided."""
    name = _name(other)
    if other.problems:
        return f"{name} ({', '.join(other.problems)})"
    if other.is_divided and not chosen.is_divided:
        pieces = max(other.gpu_pieces, other.ram_pieces)
        what = "GPUs" if other.gpu_pieces > 1 else "machines"
        return f"{name} (must be divided over {pieces} {what})"
    if other.machines > chosen.machines:
        return f"{name} ({counted(other.machines, 'machine')} instead of {chosen.machines})"
    if other.gpus > chosen.gpus:
        return f"{name} ({counted(other.gpus, 'GPU')} instead of {chosen.gpus})"
    if other.cores < chosen.cores:
        return f"{name} (spares {chosen.cores - other.cores:,.1f} cores and is not exact)"
    more = round(other.cores) - round(chosen.cores)
    return f"{name} ({counted(more, 'core')} more)" if more else f"{name} (spares nothing)"


def _name(serving: ServingPlan) -> str:
    option = serving.option
    note = " not re-ranked" if option.note == "not re-ranked" else ""
    return f"{option.kind}{note} on {option.place.upper()}"
