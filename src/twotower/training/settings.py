"""How long, on what and where a stage trains."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from twotower.data.batches import Residency
from twotower.training.optimizers import OptimizerSettings
from twotower.training.processes import Place
from twotower.training.pruning import MedianPruning

FULL, HALF = "float32", "bfloat16"


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What both stages' trainers share.

    Args:
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        devices: How many GPUs of this machine are used, or on CPU how many processes; each of them
            takes its share of every batch. Under torchrun it stays 1: torchrun says how many.
        precision: ``auto`` (bf16 where the device has it), ``32-true`` or ``bf16-mixed``.
        table_precision: In what tables of embeddings are kept: ``float32`` or ``bfloat16``, which
            takes half the memory; see `twotower.models.half_tables`. Not of tables that are split.
        residency: Where the data live: on the ``device``, in the memory of the ``host``, or on
            ``disk``, as memory maps; see `twotower.data.batches.Columns`.
        compile: Whether perceptrons and cross networks go through `torch.compile`: half a minute at
            the start of each stage, for steps that are up to a tenth faster on a CPU; on a GPU a
            ranker of wide layers trains twice as fast.
        profile: Whether some steps are timed part by part and traced, into the stage's folder.
        log_every: Steps between two entries in TensorBoard; at least one an epoch is made.
        checkpoint_every: Steps between two checkpoints to resume from; every epoch ends with one.
        split_tables: Whether the rows of tables with sparse gradients are split over the processes,
            for tables that outgrow one GPU; needs the extra `distributed`.
        max_steps: Stop a stage after so many steps, -1 for never; for smoke runs.
        pruning: Set by a sweep, so that it can stop a trial.

    Raises:
        ValueError: When a number is out of range, or a package is missing.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    table_precision: Literal["float32", "bfloat16"] = "float32"
    residency: Residency = "device"
    compile: bool = False
    profile: bool = False
    log_every: int = 50
    checkpoint_every: int = 500
    split_tables: bool = False
    max_steps: int = -1
    pruning: MedianPruning | None = None

    def __post_init__(self) -> None:
        problems = _below_one(self, "devices", "log_every", "checkpoint_every")
        if self.max_steps != -1 and self.max_steps < 1:
            problems.append(f"`max_steps` must be at least 1, or -1, got {self.max_steps}")
        if self.residency not in get_args(Residency):
            allowed = ", ".join(get_args(Residency))
            problems.append(f"`residency` must be one of {allowed}, got {self.residency}")
        if self.table_precision not in (FULL, HALF):
            problems.append(
                f"`table_precision` must be one of {FULL}, {HALF}, got {self.table_precision}"
            )
        if self.split_tables and self.table_precision != FULL:
            problems.append(
                f"`split_tables` keeps rows in float32, got `table_precision` {HALF}; split the "
                "tables, or keep them whole in half the memory"
            )
        if self.split_tables and find_spec("torchrec") is None:
            problems.append(
                "`split_tables` needs the extra `distributed`: "
                "pip install -c constraints-distributed.txt 'twotower[distributed]'"
            )
        if problems:
            raise ValueError("\n".join(f"trainer: {problem}" for problem in problems))

    def device(self) -> torch.device:
        """The device that models and columns of this process live on.

        Raises:
            ValueError: When more GPUs are asked for than torch sees.
        """
        has_gpu = torch.cuda.is_available()
        if self.accelerator == "gpu" and not has_gpu:
            raise ValueError(
                "trainer: `accelerator` is gpu but torch sees none; `twotower doctor` says why, "
                "and auto or cpu train without"
            )
        if not has_gpu or self.accelerator == "cpu":
            return torch.device("cpu")
        place = Place.of_environment()
        if place is None and self.devices == 1:
            return torch.device("cuda")
        local_rank = 0 if place is None else place.local_rank
        needed, there = max(self.devices, local_rank + 1), torch.cuda.device_count()
        if needed > there:
            raise ValueError(f"trainer: {needed} `devices` are asked for, torch sees {there} GPUs")
        return torch.device("cuda", local_rank)

    def lightning_precision(self) -> Any:  # noqa: ANN401 - Lightning's own union of strings
        """The precision under Lightning's name."""
        if self.precision != "auto":
            return self.precision
        has_bf16 = self.device().type == "cuda" and torch.cuda.is_bf16_supported()
        return "bf16-mixed" if has_bf16 else "32-true"


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """How long and on what a stage trains.

    Args:
        batch_size: Examples a step.
        max_epochs: Epochs at most.
        patience: Epochs without a better `monitor` before training stops.
        monitor: Metric of the validation part that decides, such as ``recall@20`` or ``auc``.
        optimizer: Rates and schedule.
        keep: ``best``: the weights of the best epoch. ``last``: those of the last one, and no early
            stopping; for a number of epochs that was chosen before, so that the validation part
            may be small.
        min_steps: Where epochs are so short that `max_epochs` of them have fewer steps, there are
            as many as these steps take, and `patience` is longer by the same factor. 0 for none.

    Raises:
        ValueError: When a number is out of range.
    """

    batch_size: int
    max_epochs: int
    patience: int
    monitor: str
    optimizer: OptimizerSettings
    keep: Literal["best", "last"] = "best"
    min_steps: int = 0

    def __post_init__(self) -> None:
        problems = _below_one(self, "batch_size", "max_epochs", "patience")
        if self.min_steps < 0:
            problems.append(f"`min_steps` must be at least 0, got {self.min_steps}")
        if problems:
            raise ValueError("\n".join(f"training: {problem}" for problem in problems))

    def stretched(self, steps_of_epoch: int) -> StageSettings:
        """The settings with as many epochs as `min_steps` asks for.

        Args:
            steps_of_epoch: Steps of one epoch.
        """
        max_epochs = max(self.max_epochs, math.ceil(self.min_steps / steps_of_epoch))
        patience = math.ceil(self.patience * max_epochs / self.max_epochs)
        return replace(self, max_epochs=max_epochs, patience=patience)

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether smaller or larger is better."""
        small = ("loss", "calibration_error", "normalised_entropy")
        return "min" if self.monitor.endswith(small) else "max"

    def check_monitor(self, names: Collection[str]) -> None:
        """Refuse to decide by what is not measured.

        Args:
            names: The metrics of the validation part.

        Raises:
            ValueError: When `monitor` is none of them.
        """
        if self.monitor not in names:
            raise ValueError(
                f"training: `monitor` must be one of {', '.join(names)}, got {self.monitor}"
            )


def _below_one(settings: object, *names: str) -> list[str]:
    return [
        f"`{name}` must be at least 1, got {value}"
        for name in names
        if (value := getattr(settings, name)) < 1
    ]
