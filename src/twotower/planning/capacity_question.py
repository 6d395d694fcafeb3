"""What a plan is made for: the size of the business, the model, the wishes and the machines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from twotower.planning.capacity_devices import GB, GPUS, Gpu
from twotower.planning.capacity_index import KINDS
from twotower.planning.capacity_memory import OPTIMIZERS, PRECISIONS

# Users and items are numbered by int32.
MAX_ROWS: Final = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One of several machines that are alike.

    Args:
        gpu: Its GPUs, or None without any.
        gpus: How many.
        cores: CPU cores.
        ram: Bytes of memory.
    """

    gpu: Gpu | None
    gpus: int
    cores: int
    ram: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """Everything that a plan depends on; see the fields of `twotower.config_schema.PlanConfig`.

    Args:
        users: Users with a row of their own.
        items: Items of the catalogue.
        dim: Width of the vectors.
        embedding_dim: Width of the tables; None for that of the vectors.
        precision: Of the tables, one of `PRECISIONS`.
        optimizer: Of the tables, one of `OPTIMIZERS`.
        hidden: Widths of the hidden layers of the towers.
        interactions_per_day: Rows that the log grows by; None for one a user.
        positive_share: Share of them that are positives.
        window_days: Days that are trained on.
        epochs: Times that they are.
        history: Events that a model looks at.
        batch: Examples of a step on one GPU.
        negatives: Uniform negatives of a step.
        training_hours: In so many both stages shall be trained.
        queries_per_second: Requests at the peak.
        latency_ms: Most milliseconds of 99 in 100 requests.
        recall: Share of the exact candidates that the index shall find.
        candidates: Items that the ranker orders.
        stored_items: Items that a batch job stores for a user.
        index: Kinds of index that are looked at.
        gpu: A key of `GPUS`, or ``none``.
        gpu_memory_gb: Memory of a GPU, where it is not that of the data sheet.
        gpus: GPUs of a machine.
        cores: CPU cores of a machine.
        ram_gb: Memory of a machine.

    Raises:
        ValueError: Lists every value that is out of range.
    """

    users: int
    items: int
    dim: int
    embedding_dim: int | None
    precision: str
    optimizer: str
    hidden: tuple[int, ...]
    interactions_per_day: int | None
    positive_share: float
    window_days: int
    epochs: int
    history: int
    batch: int
    negatives: int
    training_hours: float
    queries_per_second: float
    latency_ms: float
    recall: float
    candidates: int
    stored_items: int
    index: tuple[str, ...]
    gpu: str
    gpu_memory_gb: float | None
    gpus: int
    cores: int
    ram_gb: float

    def __post_init__(self) -> None:
        problems = [*self._counts(), *self._amounts(), *self._names()]
        if problems:
            raise ValueError("\n".join(problems))

    def _counts(self) -> list[str]:
        """Problems of whole numbers."""
        least = {
            **dict.fromkeys(("users", "items", "dim", "embedding_dim", "interactions_per_day"), 1),
            **dict.fromkeys(("window_days", "epochs", "batch", "candidates", "stored_items"), 1),
            **dict.fromkeys(("history", "negatives", "gpus"), 0),
            "cores": 1,
        }
        values = {name: getattr(self, name) for name in least}
        for name in ("embedding_dim", "interactions_per_day"):
            if values[name] is None:
                del values[name]
        values |= {f"hidden[{place}]": width for place, width in enumerate(self.hidden)}
        problems = [
            f"`{name}` must be a whole number of at least {least.get(name, 1)}, got {value}"
            for name, value in values.items()
            if not isinstance(value, int) or value < least.get(name, 1)
        ]
        problems += [
            f"`{name}` must be at most {MAX_ROWS:,}, rows are numbered by int32, got {value:,}"
            for name in ("users", "items")
            if isinstance(value := values[name], int) and value > MAX_ROWS
        ]
        return problems

    def _amounts(self) -> list[str]:
        """Problems of other numbers."""
        positive = ["queries_per_second", "latency_ms", "training_hours", "ram_gb"]
        positive += [] if self.gpu_memory_gb is None else ["gpu_memory_gb"]
        problems = [
            f"`{name}` must be above 0 and finite, got {value}"
            for name in positive
            if not 0 < (value := getattr(self, name)) < float("inf")
        ]
        if not 0 < self.recall <= 1:
            problems.append(f"`recall` must lie in (0, 1], got {self.recall}")
        if not 0 < self.positive_share <= 1:
            problems.append(f"`positive_share` must lie in (0, 1], got {self.positive_share}")
        return problems

    def _names(self) -> list[str]:
        """Problems of choices."""
        allowed = {
            "precision": (self.precision, tuple(PRECISIONS)),
            "optimizer": (self.optimizer, OPTIMIZERS),
            "gpu": (self.gpu, (*GPUS, "none")),
            **{f"index[{n}]": (kind, KINDS) for n, kind in enumerate(self.index)},
        }
        problems = [
            f"`{name}` must be one of {', '.join(names)}, got {value}"
            for name, (value, names) in allowed.items()
            if value not in names
        ]
        if not self.index:
            problems.append(f"`index` must name at least one of {', '.join(KINDS)}")
        return problems

    @property
    def width(self) -> int:
        """Width of the tables."""
        return self.dim if self.embedding_dim is None else self.embedding_dim

    @property
    def num_interactions(self) -> int:
        """Rows that are trained on in an epoch."""
        a_day = self.users if self.interactions_per_day is None else self.interactions_per_day
        return a_day * self.window_days

    @property
    def num_events(self) -> int:
        """Positives among them."""
        return max(1, round(self.num_interactions * self.positive_share))

    @property
    def machine(self) -> Machine:
        """The machine, with what its GPUs are known to do."""
        gpu = GPUS.get(self.gpu) if self.gpus else None
        if gpu is not None and self.gpu_memory_gb is not None:
            gpu = replace(gpu, memory=round(self.gpu_memory_gb * GB))
        gpus = 0 if gpu is None else self.gpus
        return Machine(gpu=gpu, gpus=gpus, cores=self.cores, ram=round(self.ram_gb * GB))
