"""Lightning callbacks: metrics of every epoch, early stopping, resume, rates, progress."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, TQDMProgressBar
from torch import Tensor

from twotower.data.shuffled_batches import ShuffledBatches
from twotower.losses.ranks import Ranks
from twotower.training.distributed import DistributedRanks
from twotower.training.task import StageTask


class ValidationMetrics(pl.Callback):
    """Computes exact metrics after every epoch and logs them, before early stopping looks.

    Args:
        evaluate: Gives the metrics by full name, such as ``retrieval/validation/recall@20``.
    """

    def __init__(self, evaluate: Callable[[], Mapping[str, float]]) -> None:
        self.evaluate = evaluate

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate and log."""
        for name, value in self.evaluate().items():
            pl_module.log(name, torch.tensor(value, dtype=torch.float32), prog_bar=False)


class Stopping(EarlyStopping):
    """Stops when the metric has not improved for a while, or after so many steps.

    A resumed run stops at once when it had said stop before. Lightning's own limit of steps would
    make it evaluate an epoch twice.

    Args:
        monitor: Full name of the metric.
        mode: Whether the metric shall fall (``min``) or rise (``max``).
        patience: Epochs without a better value.
        max_steps: Steps at most; -1 for no limit.
    """

    def __init__(self, *, monitor: str, mode: str, patience: int, max_steps: int) -> None:
        super().__init__(
            monitor, mode=mode, patience=patience, check_on_train_epoch_end=True, check_finite=False
        )
        self.max_steps = max_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop where the run was killed between its last epoch and its end."""
        trainer.should_stop = self.wait_count >= self.patience or self._at_limit(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Stop at the limit; the epoch is evaluated as far as it came."""
        if self._at_limit(trainer):
            trainer.should_stop = True

    def _at_limit(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step >= self.max_steps > 0


class Together(pl.Callback):
    """Lets several processes end together: all stop when one of them has been told to.

    Args:
        ranks: The processes.
    """

    def __init__(self, ranks: DistributedRanks) -> None:
        self.ranks = ranks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let a signal to terminate end the process at once, as any other death.

        Lightning's handler talks to the other processes from within whatever they are doing.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree on whether to stop."""
        told = torch.tensor(float(trainer.should_stop))
        trainer.should_stop = bool(self.ranks.sum(told))


class ResumePoint(Checkpoint):
    """Writes the checkpoint that a killed run is resumed from: every few steps, and after epochs.

    None is written between the last step of an epoch and its evaluation. Lightning takes an epoch
    for complete when it resumes there, and the metrics of that epoch would be left out.

    Args:
        path: The file, replaced as a whole every time.
        every: Steps between two checkpoints within an epoch.
    """

    def __init__(self, *, path: Path, every: int) -> None:
        self.path = path
        self.every = every

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Save now and then."""
        ends = trainer.is_last_batch or trainer.should_stop
        if trainer.global_step % self.every == 0 and not ends:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save with the metrics of the epoch accounted for."""
        trainer.save_checkpoint(self.path)


class Throughput(pl.Callback):
    """Logs examples a second and the learning rates every `every` steps.

    Args:
        stage: Prefix of the names.
        every: Steps between two entries.
        num_processes: How many hold a share of every batch, of about the same size.
    """

    def __init__(self, *, stage: str, every: int, num_processes: int = 1) -> None:
        self.stage = stage
        self.every = every
        self.num_processes = num_processes
        self._since = 0.0
        self._examples = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a resumed run begins within an epoch."""
        self._since, self._examples = time.perf_counter(), 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock: time spent in evaluation is not training time."""
        self._since, self._examples = time.perf_counter(), 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Count the batch, log now and then."""
        self._examples += self.num_processes * len(next(iter(batch.values())))
        if (batch_idx + 1) % self.every and not trainer.should_stop:
            return
        now = time.perf_counter()
        rates = {f"{self.stage}/train/examples_per_second": self._examples / (now - self._since)}
        rates |= {
            f"{self.stage}/train/{group['name']}": group["lr"]
            for group in trainer.optimizers[0].param_groups
        }
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.global_step)
        self._since, self._examples = now, 0


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the stage before it and the loss alone beside it.

    The loss is asked for when the bar is drawn: what is logged for Lightning's own bar is read
    after every step, for which a GPU has to be waited for.

    Args:
        stage: Name of the stage.
    """

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=10)
        self.stage = stage

    @property
    def train_description(self) -> str:
        """What stands before the bar until the first epoch."""
        return self.stage

    def on_train_epoch_start(self, trainer: pl.Trainer, *arguments: object) -> None:
        """Show which epoch of the stage it is."""
        super().on_train_epoch_start(trainer, *arguments)
        epoch = f"{self.stage}, epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.train_progress_bar.set_description(epoch)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar."""
        figures = pl_module.figures if isinstance(pl_module, StageTask) else {}
        loss = figures.get(f"{self.stage}/train/loss")
        return {} if loss is None else {"loss": float(loss)}


class ResumeState(pl.Callback):
    """Keeps in the checkpoint where the loader and torch's generators stand.

    Lightning saves the loader's state too, but does not restore it when the schedule has asked for
    the number of steps, nor at the end of an epoch.

    Several processes share some random states and have one of their own each. A run that is resumed
    by another number of processes goes on with the same batches and the same shared states.

    Args:
        loader: The training batches.
        ranks: The processes that train together; None for one.
    """

    def __init__(self, loader: ShuffledBatches, ranks: Ranks | None = None) -> None:
        self.loader = loader
        self.ranks = ranks
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Position of the loader, states of the CPU's and every GPU's generator."""
        state = {"loader": self.loader.state_dict(), **_random_states(), "of_ranks": []}
        if isinstance(self.ranks, DistributedRanks):
            shared = self.ranks.random_states()
            state["of_ranks"] = _of_ranks(self.ranks)
            state |= {
                "cpu": shared["cpu"],
                "cuda": [shared[name] for name in shared if name != "cpu"],
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the states until training starts."""
        self._restored = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put all back, after everything that might draw on the way here."""
        state = self._restored
        if state:
            self.loader.load_state_dict(state["loader"])
        if isinstance(self.ranks, DistributedRanks):
            own = state["of_ranks"] if state else []
            if state:
                shared = zip(("cpu", "cuda"), [state["cpu"], *state["cuda"]], strict=False)
                self.ranks.set_random_states(dict(shared))
            # A seed of its own, or dropout would be the same everywhere.
            torch.manual_seed((torch.initial_seed() + 1) * 1_000_003 + self.ranks.rank)
            state = own[self.ranks.rank] if len(own) == self.ranks.size else {}
        if state:
            torch.set_rng_state(state["cpu"].cpu())
            if torch.cuda.is_available() and state["cuda"]:
                torch.cuda.set_rng_state_all([state.cpu() for state in state["cuda"]])


def _random_states() -> dict[str, Any]:
    """States of this process."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _of_ranks(ranks: DistributedRanks) -> list[dict[str, Any]]:
    """States of all processes."""
    own = _random_states()
    cpu = ranks.gather(own["cpu"].unsqueeze(0))  # (R, bytes)
    cuda = [ranks.gather(state.unsqueeze(0)) for state in own["cuda"]]
    return [
        {"cpu": cpu[rank].clone(), "cuda": [device[rank].clone() for device in cuda]}
        for rank in range(ranks.size)
    ]
