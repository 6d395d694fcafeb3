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
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from bare_two_tower import WARM_UP, seconds_of_step
from torch import Tensor
from turns import end_step
from world import CLICK_FILES, click_sizes

from twotower.cli.main import main as twotower
from twotower.models.tables import TableGroup
from twotower.training import fit
from twotower.training.callbacks import Throughput

READY = 4
DIM, CLICK_DIM = 32, 16


def feature_file(world: Mapping[str, Any], stage: str, further: str, folder: Path) -> Path:
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
        for name in click_columns(world, further):
            add(name, "context", "categorical" if name.startswith("c") else "numeric")
        lines.append("history: {length: 0, features: []}")
    path = folder / f"{stage}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def click_columns(world: Mapping[str, Any], further: str) -> list[str]:
    """Columns of a click table that are features."""
    return [*click_sizes(world, further), *world["dense_columns"]]


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


def ranking(data: Path, columns: list[str], further: str) -> list[str]:
    """Overrides of the cross network."""
    return [
        "data=impressions",
        f"data.interactions={data / CLICK_FILES[further]}",
        f"data.context=[{','.join(columns)}]",
        "split=given",
        f"models.ranking.embedding_dim={CLICK_DIM}",
        "models.ranking.cross.num_layers=3",
        "models.ranking.deep.hidden=[256,128,64]",
        "models.ranking.deep.dropout=0",
    ]


def give_rows_to_all(sizes: Mapping[str, int]) -> None:
    """From now on tables have a row for every value that can occur, as those of the bare loop do.

    By itself a table has rows for the values of the training part: 389,183 of 10M.
    """
    make = TableGroup.__init__

    def made(self: TableGroup, *, num_rows: Mapping[str, int], dim: int, sparse: bool) -> None:
        longer = {name: 1 + sizes[name] for name in num_rows}
        make(self, num_rows=longer, dim=dim, sparse=sparse)

    TableGroup.__init__ = made  # type: ignore[method-assign]


class Clock(Throughput):
    """CPU seconds at the end of every step, beside what the callback does anyway."""

    seconds: ClassVar[list[float]] = []
    losses: ClassVar[list[Tensor]] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Read the clock."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.seconds.append(time.process_time())
        self.losses.append(outputs["loss"].detach())
        end_step()


class Stepper(Clock):
    """Takes its steps by itself before the first of the trainer's, then ends the training."""

    steps: ClassVar[int] = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Step on batches that lie ready."""
        (optimizer,), (scheduler,) = trainer.optimizers, trainer.lr_scheduler_configs
        for batch in islice(cycle(list(islice(trainer.train_dataloader, READY))), self.steps):
            with trainer.precision_plugin.train_step_context():
                loss = pl_module.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            pl_module.configure_gradient_clipping(optimizer)
            optimizer.step()
            scheduler.scheduler.step()
            self.seconds.append(time.process_time())
            self.losses.append(loss.detach())
            end_step()
        raise KeyboardInterrupt


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Figures of a run in one thread."""
    torch.set_num_threads(1)
    data, stage, steps = given.data, given.stage, given.steps
    is_retrieval = stage == "retrieval"
    world = json.loads((data / "world.json").read_text())
    clock = Clock if given.mode == "loop" else Stepper
    Stepper.steps = WARM_UP + steps
    fit.Throughput = clock  # type: ignore[misc]
    columns = click_columns(world, given.further)
    if not is_retrieval:
        give_rows_to_all(click_sizes(world, given.further))
    with tempfile.TemporaryDirectory() as runs:
        code = twotower(
            [
                "train",
                *(retrieval(data) if is_retrieval else ranking(data, columns, given.further)),
                "features=file",
                f"features.path={feature_file(world, stage, given.further, Path(runs))}",
                f"stages=[{stage}]",
                f"training.{stage}.batch_size={given.batch}",
                f"trainer.max_steps={WARM_UP + steps}",
                "trainer.accelerator=cpu",
                f"trainer.precision={given.precision}",
                f"prepared_dir={data / 'prepared'}",
                f"output_dir={runs}/run",
                "quiet=true",
            ]
        )
    if code and given.mode == "loop":
        sys.exit(code)
    seconds = seconds_of_step(clock.seconds[: WARM_UP + steps])
    return {
        "peer": "ours",
        "mode": given.mode,
        "examples_per_cpu_second": given.batch / seconds,
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
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument(
        "--further", choices=list(CLICK_FILES), default="none", help="ranking: a column"
    )
    print(json.dumps(measure(parser.parse_args())))
