"""Where the time of a training step goes: a table by part, and a trace of some steps.

Parts are timed by hooks that only a profiled run has: ``data`` from one step to the next,
``lookup`` in the tables, ``towers`` (towers, encoder of the history, cross network), ``loss``,
``backward``, ``optimizer``, and ``other``, what is left of the step: negatives, masks, logging. A
GPU is waited for at every bound, so the parts are its own; the whole is slower than without.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from twotower.models.embedding import FeatureEmbedder
from twotower.training.run_folder import write_whole

log = logging.getLogger(__name__)

SKIPPED, TIMED, TRACED = 5, 20, 5  # steps
DATA, LOOKUP, TOWERS, LOSS = "data", "lookup", "towers", "loss"
BACKWARD, OPTIMIZER, OTHER = "backward", "optimizer", "other"
PARTS = (DATA, LOOKUP, TOWERS, LOSS, BACKWARD, OPTIMIZER, OTHER)
TABLE, TRACE = "profile.txt", "trace.json"


class Profile(pl.Callback):
    """Times some steps part by part, then traces some; writes both into the stage's folder.

    Args:
        folder: Of the stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = defaultdict(float)
        self._steps = 0
        self._since = 0.0
        self._started: dict[str, float] = {}
        self._wait: Callable[[], None] = _nothing
        self._trace: torch.profiler.profile | None = None

    @property
    def _timing(self) -> bool:
        return SKIPPED <= self._steps < SKIPPED + TIMED

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the hooks in."""
        if pl_module.device.type == "cuda":
            self._wait = torch.cuda.synchronize
        for part, module in parts_of(pl_module):
            module.register_forward_pre_hook(self._begins(part))
            module.register_forward_hook(self._ends(part))
            if isinstance(module, FeatureEmbedder):
                self._time_means(module)
        self._mark()

    def _time_means(self, embedder: FeatureEmbedder) -> None:
        means = embedder.means

        def timed(*arguments: Any) -> Tensor:  # noqa: ANN401 - as they came
            self._start(LOOKUP)
            found = means(*arguments)
            self._stop(LOOKUP)
            return found

        embedder.means = timed  # type: ignore[method-assign,assignment]

    def on_train_batch_start(self, trainer: pl.Trainer, *arguments: object) -> None:
        """The batch is there."""
        self._add(DATA, self._mark())
        self._start("step")

    def on_before_backward(self, *arguments: object) -> None:
        """The loss is there."""
        self._start(BACKWARD)

    def on_after_backward(self, *arguments: object) -> None:
        """The gradients are there."""
        self._stop(BACKWARD)
        self._start(OPTIMIZER)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: object
    ) -> None:
        """The step is done."""
        self._stop(OPTIMIZER)
        self._stop("step")
        self._steps += 1
        if self._steps == SKIPPED + TIMED:
            self._write_table()
            self._trace = torch.profiler.profile()
            self._trace.start()
        elif self._trace is not None and self._steps == SKIPPED + TIMED + TRACED:
            self._trace.stop()
            self._trace.export_chrome_trace(str(self.folder / TRACE))
            self._trace = None
        self._mark()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say when there were too few steps."""
        if self._steps < SKIPPED + TIMED + TRACED:
            needed = SKIPPED + TIMED + TRACED
            log.warning("profile: needs %d steps, training had %d", needed, self._steps)
        if self._trace is not None:
            self._trace.stop()
            self._trace = None

    def _write_table(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = table(self.seconds, TIMED)
        write_whole(self.folder / TABLE, text)
        log.info("Where a step goes, %s:\n%s", self.folder / TABLE, text)

    def _begins(self, part: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: self._start(part)

    def _ends(self, part: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, outputs: self._stop(part)

    def _mark(self) -> float:
        """Seconds since the last mark."""
        self._wait()
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        return passed

    def _start(self, part: str) -> None:
        self._wait()
        self._started[part] = time.perf_counter()

    def _stop(self, part: str) -> None:
        self._wait()
        self._add(part, time.perf_counter() - self._started[part])

    def _add(self, part: str, seconds: float) -> None:
        if self._timing:
            self.seconds[part] += seconds


def parts_of(task: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a task that are timed, none within another."""
    model = task.get_submodule("model")
    found: list[tuple[str, nn.Module]] = [
        (LOOKUP if isinstance(module, FeatureEmbedder) else TOWERS, module)
        for module in model.children()
    ]
    loss = getattr(getattr(task, "objective", task), "loss", None)
    return [*found, (LOSS, loss)] if isinstance(loss, nn.Module) else found


def table(seconds: dict[str, float], steps: int) -> str:
    """Milliseconds a step and shares, by part.

    Args:
        seconds: Of all steps, by part, and of the whole ``step``.
        steps: How many.
    """
    known = [part for part in PARTS if part not in (DATA, OTHER)]
    other = seconds["step"] - sum(seconds[part] for part in known)
    rows = {part: seconds.get(part, 0.0) for part in PARTS} | {OTHER: max(0.0, other)}
    whole = sum(rows.values())
    lines = [f"{'part':10} {'ms a step':>10} {'share':>7}"]
    lines += [
        f"{part:10} {1e3 * spent / steps:>10.2f} {spent / whole:>7.1%}"
        for part, spent in rows.items()
    ]
    return "\n".join([*lines, f"{'whole':10} {1e3 * whole / steps:>10.2f}"]) + "\n"


def _nothing() -> None:
    """A CPU has nothing to be waited for."""
