"""Both stages at the size of a large GPU: examples a second, against the floor that is counted.

    python benchmarks/speed/gpu_training.py --json FILE          10M users, 10M items, batch 65,536
    python benchmarks/speed/gpu_training.py --profile FOLDER     and where a step goes
    python benchmarks/speed/gpu_training.py --scale small        the same in small, on any machine

Retrieval: user and item of width 128 with eight features of 16 each, history of the last 50 items,
towers 512-256-128, cosine, softmax over the batch. Ranking: 26 columns of width 128 and 13 numbers
that are projected to 128, three low-rank cross layers of rank 512 beside 1024-1024-512-256. Data
are drawn at random where columns lie after preparing, so that no hour goes into files; from there
on all is as in training: columns on the device, loader, Lightning trainer with its callbacks, bf16,
optimizers. One user in forty has events, and as many before its first example that every history
is full. A device is waited for by `torch.cuda.synchronize` at the end of the warm-up and of the
measurement; in between its utilisation is asked for ten times a second.

The floors, 11.1M and 8.2M examples a second on one H200, are counted from products and bytes, with
all of them overlapped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
import torch

from twotower.data.prepared import Entities, Events, Interactions, Prepared
from twotower.data.shuffled_batches import ShuffledBatches
from twotower.features.spec import FeatureInput, ModelInputs
from twotower.losses.negatives import MixedNegatives
from twotower.losses.objective import Objective
from twotower.losses.ranking import BinaryLogLoss
from twotower.losses.sampled_softmax import SampledSoftmax
from twotower.models.columns import stage_columns
from twotower.models.cross import low_rank
from twotower.models.dcn import DCNv2, Parallel
from twotower.models.history import MeanPooling
from twotower.models.mlp import MLP
from twotower.models.two_tower import Cosine, TwoTower
from twotower.training import fit
from twotower.training.batches import EventBatches
from twotower.training.callbacks import Throughput
from twotower.training.optimizers import OptimizerSettings
from twotower.training.ranking import RankingTask
from twotower.training.retrieval import RetrievalTask
from twotower.training.settings import StageSettings, TrainerSettings
from twotower.training.task import StageTask

DIM, FEATURE_DIM, NUM_FEATURES, FEATURE_ROWS, HISTORY = 128, 16, 8, 1000, 50
NUM_COLUMNS, NUM_NUMBERS = 26, 13
EVENTS_OF_USER = 200
WARM_UP = 20
FLOORS = {"retrieval": 11.1e6, "ranking": 8.2e6}
SCALES = {
    "full": {"rows": 10_000_000, "events": 50_000_000, "clicks": 20_000_000, "batch": 65_536},
    "small": {"rows": 20_000, "events": 100_000, "clicks": 100_000, "batch": 2_048},
}


def log_of(size: int, context: Mapping[str, Any], **columns: Any) -> Interactions:
    """Interactions of the training part, all of them positives unless labels say otherwise."""
    ones = np.ones(size, np.float32)
    given: dict[str, Any] = {
        "rows": np.arange(size),
        "split": np.zeros(size, np.int8),
        "labels": ones,
        "positive": np.ones(size, bool),
        "weights": ones,
        "history_end": np.zeros(size, np.int64),
        **dict.fromkeys(("user_rows", "item_rows", "timestamps")),
    }
    return Interactions(**given | columns, context=context, tasks={})


@cache
def events_world(num_rows: int, num_events: int) -> Prepared:
    """Some of the users with as many events each; items by a power law.

    The first events of a user are of another part, so that every example has a full history.
    """
    rng = np.random.default_rng(0)
    active = np.arange(0, num_rows, num_rows * EVENTS_OF_USER // num_events)
    num_events = len(active) * EVENTS_OF_USER
    items = (num_rows * rng.random(num_events, dtype=np.float32) ** 3).astype(np.int32)
    items = np.minimum(items, num_rows - 1)
    offsets = np.searchsorted(active, np.arange(num_rows + 1)) * EVENTS_OF_USER

    def entities(side: str) -> Entities:
        columns = {f"{side}_id": np.arange(1, num_rows + 1, dtype=np.int32)}
        for number in range(NUM_FEATURES):
            columns[f"{side}{number}"] = rng.integers(FEATURE_ROWS, size=num_rows, dtype=np.int32)
        return Entities(ids=pa.array(np.arange(num_rows)), table=pa.table({}), columns=columns)

    users = np.repeat(active.astype(np.int32), EVENTS_OF_USER)
    places = np.arange(num_events)
    counts = {"negatives": 0, "catalogue": num_rows, "events": num_events}
    return Prepared(
        folder=Path(),
        manifest={"counts": counts},
        interactions=log_of(num_events, {}, user_rows=users, item_rows=items, history_end=places),
        events=Events(
            offsets=offsets,
            item_rows=items,
            interactions=places,
            split=(places % EVENTS_OF_USER < HISTORY).astype(np.int8),
        ),
        users=entities("user"),
        items=entities("item"),
    )


def feature(name: str, side: Any, kind: Any, rows: int, dim: int) -> FeatureInput:
    """A feature with a table."""
    return FeatureInput(name=name, side=side, kind=kind, dim=dim, num_rows=rows, width=0)


def retrieval(scale: Mapping[str, int], device: torch.device) -> tuple[StageTask, ShuffledBatches]:
    """The two towers and their batches."""
    prepared = events_world(scale["rows"], scale["events"])
    features = []
    for side in ("user", "item"):
        features.append(feature(f"{side}_id", side, "id", scale["rows"] + 1, DIM))
        features += [
            feature(f"{side}{number}", side, "categorical", FEATURE_ROWS, FEATURE_DIM)
            for number in range(NUM_FEATURES)
        ]
    inputs = ModelInputs(
        features=tuple(features), history_length=HISTORY, history_features=("item_id",)
    )
    with device:
        model = TwoTower(
            inputs=inputs,
            dim=DIM,
            embedding_dim=DIM,
            hidden=[512, 256],
            history=MeanPooling,
            similarity=Cosine(),
        )
    columns = stage_columns(prepared, inputs, device)
    counts = np.bincount(prepared.interactions.item_rows, minlength=scale["rows"])  # type: ignore[arg-type]
    task = RetrievalTask(
        model=model,
        objective=Objective(
            loss=SampledSoftmax(temperature=0.05),
            negatives=MixedNegatives(in_batch=True, num_uniform=0),
            mask_known=False,
        ),
        columns=columns,
        item_probability=torch.from_numpy(counts / counts.sum()),
        optimizer=OptimizerSettings(learning_rate=1e-3, table_learning_rate=0.05),
    )
    examples = EventBatches().examples(prepared, columns, model)
    batches = ShuffledBatches(
        examples.rows, batch_size=scale["batch"], seed=0, assemble=examples.assemble
    )
    return task, batches


def ranking(scale: Mapping[str, int], device: torch.device) -> tuple[StageTask, ShuffledBatches]:
    """The ranker and its batches."""
    rng, size = np.random.default_rng(0), scale["clicks"]
    rows_of = [max(4, int(0.6 * scale["rows"] * 0.45**number)) for number in range(NUM_COLUMNS)]
    context: dict[str, Any] = {
        f"c{at}": rng.integers(rows, size=size, dtype=np.int32) for at, rows in enumerate(rows_of)
    }
    context["numbers"] = rng.standard_normal((size, NUM_NUMBERS), dtype=np.float32)
    prepared = Prepared(
        folder=Path(),
        manifest={"counts": {"negatives": size, "catalogue": 0, "events": None}},
        interactions=log_of(size, context, positive=rng.random(size) < 0.2),
        events=None,
        users=None,
        items=None,
    )
    columns_of = [
        feature(f"c{at}", "context", "categorical", n, DIM) for at, n in enumerate(rows_of)
    ]
    numbers = FeatureInput(
        name="numbers", side="context", kind="vector", dim=DIM, num_rows=0, width=NUM_NUMBERS
    )
    inputs = ModelInputs(features=(*columns_of, numbers), history_length=0, history_features=())
    with device:
        model = DCNv2(
            inputs=inputs,
            embedding_dim=DIM,
            structure=Parallel,
            cross=partial(low_rank, num_layers=3, rank=512),
            deep=partial(MLP, hidden=[1024, 1024, 512, 256]),
            history=MeanPooling,
            retrieval_score=False,
        )
    columns = stage_columns(prepared, inputs, device)
    optimizer = OptimizerSettings(learning_rate=1e-3, table_learning_rate=0.02)
    task = RankingTask(model=model, loss=BinaryLogLoss(), optimizer=optimizer)
    batches = ShuffledBatches(
        torch.arange(size), batch_size=scale["batch"], seed=0, assemble=columns.examples
    )
    return task, batches


class Measured(Exception):  # noqa: N818 - it is none
    """The last step was timed; no checkpoint of 10 GB has to be written for it."""


class Stopwatch(Throughput):
    """Seconds between the end of the warm-up and the last step; the device is waited for there."""

    marks: list[float]
    ticks: list[float]
    last: int
    utilisation: list[int]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Mapping[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        """Look at the clock at two steps."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.ticks.append(time.perf_counter())
        if trainer.global_step in (WARM_UP, self.last):
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())
            if pl_module.device.type == "cuda" and len(self.marks) == 1:
                threading.Thread(target=self.watch, daemon=True).start()
        if trainer.global_step == self.last:
            raise Measured

    def watch(self) -> None:
        """Ask how busy the device is until the measurement ends; 100 is at every moment."""
        while len(self.marks) == 1:
            self.utilisation.append(torch.cuda.utilization())
            time.sleep(0.1)


def measure(
    stage: str, scale: Mapping[str, int], steps: int, *, compiled: bool, profiled: Path | None
) -> dict[str, Any]:
    """Examples a second of a stage; with a folder for profiles, not to be compared."""
    settings = TrainerSettings(
        checkpoint_every=10**9, compile=compiled, profile=profiled is not None
    )
    device = settings.device()
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.utilization()  # what it loads at its first call is not measured
    task, batches = (retrieval if stage == "retrieval" else ranking)(scale, device)
    if WARM_UP + steps >= len(batches):
        raise SystemExit(f"--steps: {WARM_UP + steps} steps are more than an epoch, {len(batches)}")
    Stopwatch.marks, Stopwatch.ticks, Stopwatch.utilisation = [], [], []
    Stopwatch.last = WARM_UP + steps
    fit.Throughput = Stopwatch  # type: ignore[misc]
    name = "recall@10" if stage == "retrieval" else "auc"
    with tempfile.TemporaryDirectory() as folder, suppress(Measured):
        fit.fit_stage(
            stage=stage,
            task=task,
            loader=batches,
            evaluate=lambda: {f"{stage}/validation/{name}": 0.5},
            settings=StageSettings(
                batch_size=scale["batch"],
                max_epochs=-(-(WARM_UP + steps) // len(batches)),
                patience=10**6,
                monitor=name,
                optimizer=task.settings,
            ),
            trainer_settings=settings,
            folder=profiled or Path(folder),
            progress=False,
        )
    pauses = np.diff(Stopwatch.ticks[WARM_UP:])  # in which the host came from step to step
    rate = steps * scale["batch"] / (Stopwatch.marks[1] - Stopwatch.marks[0])
    row: dict[str, Any] = {
        "stage": stage,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "batch": scale["batch"],
        "compiled": compiled,
        "rows_of_tables": sum(
            p.shape[0] for n, p in task.named_parameters() if n.endswith("tables.128.rows.weight")
        ),
        "examples_per_second": rate,
        "median_step_ms": 1000 * float(np.median(pauses)),
        "longest_steps_ms": [
            [int(at), 1000 * float(pauses[at])] for at in pauses.argsort()[:-4:-1]
        ],
    }
    if device.type == "cuda":
        row["share_of_floor"] = rate / FLOORS[stage]
        row["utilisation"] = np.mean(Stopwatch.utilisation[1:] or np.nan)
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCALES), default="full")
    parser.add_argument("--stages", nargs="+", choices=list(FLOORS), default=list(FLOORS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compiled", type=int, nargs="+", choices=[0, 1], default=[0, 1])
    parser.add_argument("--profile", type=Path, help="a folder for a table and a trace of steps")
    parser.add_argument("--json", type=Path, help="where the rows are written")
    given = parser.parse_args()
    rows = []
    for stage, compiled in product(given.stages, given.compiled):
        row = measure(
            stage,
            SCALES[given.scale],
            given.steps,
            compiled=bool(compiled),
            profiled=given.profile,
        )
        rows.append(row)
        print(json.dumps(row), flush=True)
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
