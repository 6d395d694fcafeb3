"""What serving takes with each kind of index: memory, cores, GPUs, machines, what speaks against.

A request runs on one core: query tower, search, ranker on all candidates. Devices are planned to be
busy half of the time at the peak, and a request alone to take half of the milliseconds that it may,
so that 99 in 100 are in time although they wait for each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from twotower.index.shards import SHARDED_KINDS
from twotower.planning.capacity_index import IndexOption, index_options
from twotower.planning.capacity_memory import table_bytes
from twotower.planning.capacity_question import Question
from twotower.planning.capacity_training import USABLE, ranker_of, towers_of, usable
from twotower.planning.capacity_work import scoring_seconds

BUSY, ALONE = 0.5, 0.5
# So many times the cores of an approximate index is exact search worth.
WORTH: Final = 2.0
# What one ONNX file holds; see `twotower.export.onnx`.
MAX_MODEL: Final = 2**31


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """Serving with one kind of index.

    Args:
        option: The index.
        milliseconds: Of a request alone.
        cores: Cores that are needed at the peak.
        gpus: GPUs that are needed.
        gpu_pieces: GPUs over which the index is divided.
        num_shards: Setting of the index that divides it over them; 1 where it is not divided, or
            over GPUs of several machines.
        ram_pieces: Machines over which it is divided; 0 where the models alone are too large.
        machines: Machines that have all of this.
        problems: Why it cannot be taken; empty if it can.
    """

    option: IndexOption
    milliseconds: float
    cores: float
    gpus: int
    gpu_pieces: int
    num_shards: int
    ram_pieces: int
    machines: int
    problems: tuple[str, ...]

    @property
    def is_divided(self) -> bool:
        """Whether the index is larger than a device."""
        return self.gpu_pieces > 1 or self.ram_pieces > 1


def tables_bytes(question: Question) -> int:
    """Bytes of the tables of one exported model, which keeps them as they were trained.

    Query tower and ranker both look up users, and items: of the history, and as candidates.

    Args:
        question: What is planned for.
    """
    sizes = (question.users, question.items)
    return sum(table_bytes(size, question.width, question.precision) for size in sizes)


def model_bytes(question: Question) -> int:
    """Bytes of the exported models and what they look up, on every machine that serves.

    Beside query tower and ranker these are the events of every user, and an id row of users and
    items.

    Args:
        question: What is planned for.
    """
    return (
        2 * tables_bytes(question)
        + 4 * question.num_events
        + (8 + 4) * question.users
        + 4 * question.items
    )


def scoring_milliseconds(question: Question) -> float:
    """Milliseconds of a core for query tower and ranker in one request."""
    towers, ranker = towers_of(question), ranker_of(question)
    return 1000 * scoring_seconds(towers, ranker, question.candidates)


def plan_serving(question: Question) -> tuple[ServingPlan, ...]:
    """Serving with each kind of index that there is for the machines.

    Args:
        question: What is planned for.
    """
    options = index_options(
        question.items,
        question.dim,
        k=min(question.candidates, question.items),
        recall=question.recall,
        gpu=question.machine.gpu,
        kinds=question.index,
    )
    return tuple(_serve(question, option) for option in options)


def choose(plans: tuple[ServingPlan, ...]) -> ServingPlan | None:
    """The one that is in time, finds enough, and needs the fewest machines, GPUs and cores.

    An index that lies on one device is preferred to one that must be divided, and exact search to
    one that spares few cores.

    Args:
        plans: With each kind of index.

    Returns:
        One of them, or None where none can be taken.
    """
    fit = sorted(
        (plan for plan in plans if not plan.problems),
        key=lambda plan: (plan.is_divided, plan.machines, plan.gpus, plan.cores),
    )
    if not fit:
        return None
    best = fit[0]
    exact = [
        plan
        for plan in fit
        if plan.option.recall == 1.0
        and (plan.is_divided, plan.machines, plan.gpus)
        == (best.is_divided, best.machines, best.gpus)
        and plan.cores <= WORTH * best.cores
    ]
    return (exact or fit)[0]


def in_milliseconds(milliseconds: float) -> str:
    """Milliseconds as people read them.

    Example:
        >>> in_milliseconds(5.62), in_milliseconds(42_248.02)
        ('5.6', '42,248')
    """
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def _serve(question: Question, option: IndexOption) -> ServingPlan:
    machine = question.machine
    scoring = scoring_milliseconds(question)
    gpu_pieces, gpus = 0, 0
    if machine.gpu is not None and option.gpu:
        gpu_pieces = math.ceil((option.gpu + option.pruning) / usable(machine.gpu))
        busy = question.queries_per_second * option.gpu_seconds / BUSY
        gpus = max(gpu_pieces, math.ceil(busy))
    room = round(USABLE * machine.ram) - model_bytes(question)
    ram_pieces = max(1, math.ceil(option.ram / room)) if room > 0 else 0
    on_core = scoring / 1000 + option.core_seconds
    cores = question.queries_per_second * on_core / BUSY
    milliseconds = scoring + 1000 * (option.core_seconds + option.gpu_seconds / max(1, gpu_pieces))
    machines = max(
        ram_pieces,
        math.ceil(cores / machine.cores),
        math.ceil(gpus / machine.gpus) if gpus else 0,
    )
    problems = []
    if gpu_pieces > 1 and option.kind not in SHARDED_KINDS:
        problems.append(f"larger than a GPU, and FAISS does not divide it over {gpu_pieces}")
    if option.recall < question.recall - 1e-9:
        problems.append(f"recall {option.recall:.2f} of {question.recall:.2f}")
    if milliseconds > ALONE * question.latency_ms:
        limit = ALONE * question.latency_ms
        problems.append(f"{in_milliseconds(milliseconds)} ms alone of {limit:g}")
    if not ram_pieces:
        problems.append("the models leave no memory")
    return ServingPlan(
        option=option,
        milliseconds=milliseconds,
        cores=cores,
        gpus=gpus,
        gpu_pieces=gpu_pieces,
        num_shards=gpu_pieces if 1 < gpu_pieces <= machine.gpus else 1,
        ram_pieces=ram_pieces,
        machines=machines,
        problems=tuple(problems),
    )
