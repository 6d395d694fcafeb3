"""This project on the work of `bare_two_tower.py` and `bare_ranker.py`, through its own train.py.

    python benchmarks/speed/ours.py --data FOLDER --stage retrieval|ranking [--mode loop|step]

"loop" is `twotower train` itself: its data set, its loader, its Lightning trainer with callbacks,
log and checkpoints; only the clock is ours, read after every step. "step" is the same task on a few
batches that lie ready, without a trainer: forward, backward, optimizers, schedule.

Prints one line of JSON as the bare loops do.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from twotower.cli.main import main as twotower
from twotower.training import fit
from twotower.training.callbacks import Throughput

WARM_UP = 3
READY = 4
DIM, CLICK_DIM = 32, 16


def feature_file(world: Mapping[str, Any], stage: str, folder: Path) -> Path:
    """The features that the bare loops have, as a spec."""
    lines = ["version: 1", "features:"]

    def add(name: str, side: str, kind: str) -> None:
        lines.append(f"- {{name: {name}, side: {side}, kind: {kind}}}")

    if stage == "retrieval":
        for side in ("user", "item"):
            for name in world[f"{side}s"]:
                add(name, side, "id" if name.endswith("_id") else "categorical")
        lines.append("history: {length: 50, features: [item_id]}")
    else:
        for name in click_columns(world, folder):
            add(name, "context", "categorical" if name.startswith("c") else "numeric")
    path = folder / f"{stage}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def click_columns(world: Mapping[str, Any], folder: Path) -> list[str]:
    """Columns of the click table that are features."""
    return [*world["click_columns"], *world["dense_columns"]]


def retrieval(data: Path) -> list[str]:
    """Overrides of the two towers."""
    return [
        "data=tables",
        *(f"data.{name}={data / name}.parquet" for name in ("interactions", "users", "items")),
        "split=leave_one_out",
        "models.retrieval.dim=64",
        f"models.retrieval.embedding_dim={DIM}",
        "models.retrieval.hidden=[256,128]",
        "models.retrieval.dropout=0",
        "losses.retrieval.mask_known=false",
        "losses.retrieval.negatives.num_uniform=0",
        "evaluation.max_users=100",
    ]


def ranking(data: Path) -> list[str]:
    """Overrides of the cross network."""
    return [
        "data=impressions",
        f"data.interactions={data / 'clicks.parquet'}",
        "split=given",
        f"models.ranking.embedding_dim={CLICK_DIM}",
        "models.ranking.cross.num_layers=3",
        "models.ranking.deep.hidden=[256,128,64]",
        "models.ranking.deep.dropout=0",
    ]


class Clock(Throughput):
    """CPU seconds at the end of every step, beside what the callback does anyway."""

    seconds: list[float] = []
    losses: list[Tensor] = []
    task: pl.LightningModule

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Read the clock."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        assert isinstance(outputs, Mapping)
        self.seconds.append(time.process_time())
        self.losses.append(outputs["loss"].detach())


class Stepper(Clock):
    """Takes its steps by itself before the first of the trainer, then ends the program's training."""

    steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Step on batches that lie ready."""
        (optimizer,), (scheduler,) = trainer.optimizers, trainer.lr_scheduler_configs
        pl_module.log = lambda *arguments, **options: None  # type: ignore[method-assign]
        loader = trainer.train_dataloader
        for batch in islice(cycle(list(islice(iter(loader), READY))), self.steps):
            loss = pl_module.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            pl_module.configure_gradient_clipping(optimizer)
            optimizer.step()
            scheduler.scheduler.step()
            self.seconds.append(time.process_time())
            self.losses.append(loss.detach())
        raise KeyboardInterrupt


def measure(
    data: Path, stage: str, mode: str, steps: int, batch: int, kept: Path
) -> dict[str, Any]:
    """The median over steps, in one thread."""
    torch.set_num_threads(1)
    world = json.loads((data / "world.json").read_text())
    clock = Clock if mode == "loop" else Stepper
    Stepper.steps = WARM_UP + steps
    fit.Throughput = clock  # type: ignore[misc,attr-defined]
    with tempfile.TemporaryDirectory() as runs:
        code = twotower(
            [
                "train",
                *(retrieval(data) if stage == "retrieval" else ranking(data)),
                "features=file",
                f"features.path={feature_file(world, stage, Path(runs))}",
                f"stages=[{stage}]",
                f"training.{stage}.batch_size={batch}",
                f"trainer.max_steps={WARM_UP + steps}",
                "trainer.accelerator=cpu",
                f"prepared_dir={kept}",
                f"output_dir={runs}/run",
                "quiet=true",
            ]
        )
    if code and mode == "loop":
        sys.exit(code)
    seconds = np.median(np.diff(clock.seconds[WARM_UP - 1 : WARM_UP + steps]))
    return {
        "peer": "ours",
        "mode": mode,
        "examples_per_cpu_second": batch / seconds,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "loss": float(torch.stack(clock.losses[-5:]).mean()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stage", choices=["retrieval", "ranking"], required=True)
    parser.add_argument("--mode", choices=["loop", "step"], default="loop")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4096)
    given = parser.parse_args()
    kept = given.data / "prepared"
    found = measure(given.data, given.stage, given.mode, given.steps, given.batch, kept)
    print(json.dumps(found))
