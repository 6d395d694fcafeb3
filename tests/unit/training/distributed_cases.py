"""What one process and several compute of the same batches; started by `test_distributed.py`.

    python distributed_cases.py <prepared folder> <folder of results> <rank> <size> <port>

Every case is a task and its training examples. The batches hold 22 examples, which 4 processes
cannot share evenly, and the last one of an epoch 3, so that one of 4 processes has none.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from twotower.data.batches import WEIGHTS
from twotower.data.prepared import FEATURES_FOLDER, open_prepared
from twotower.data.schema import ITEM_ROWS, TRAIN
from twotower.data.shuffled_batches import ShuffledBatches
from twotower.features.pipeline import FeaturePipeline
from twotower.losses.blockwise_softmax import BlockwiseSoftmax
from twotower.losses.cosine_contrastive import CosineContrastive
from twotower.losses.gbce import GBCE
from twotower.losses.hard_negatives import HardNegatives
from twotower.losses.negatives import MixedNegatives, WholeCatalogue
from twotower.losses.objective import Objective
from twotower.losses.pairwise import BPR
from twotower.losses.queue import CrossBatchQueue
from twotower.losses.ranking import BinaryLogLoss
from twotower.losses.sampled_softmax import FullSoftmax, SampledSoftmax
from twotower.losses.streaming_frequency import StreamingFrequency
from twotower.models import embedding
from twotower.models.columns import stage_columns
from twotower.models.gru import GRU
from twotower.models.history import MeanPooling
from twotower.models.tables import halve_tables
from twotower.training.batches import EventBatches, SequenceBatches, UserBatches
from twotower.training.distributed import DistributedRanks, take_part
from twotower.training.examples import (
    ExampleBatches,
    Examples,
    ImpressionExamples,
    examples_of_first,
)
from twotower.training.optimizers import OptimizerSettings
from twotower.training.ranking import RankingTask
from twotower.training.retrieval import RetrievalTask

BATCH, NUM_EXAMPLES = 22, 2 * 22 + 3
CPU = torch.device("cpu")
OPTIMIZER = OptimizerSettings(learning_rate=0.01, table_learning_rate=0.1)

softmax = partial(SampledSoftmax, temperature=0.3)
mixed = partial(MixedNegatives, in_batch=True, num_uniform=13)
uniform = partial(MixedNegatives, in_batch=False, num_uniform=13)
queue = partial(CrossBatchQueue, size=30, warm_up=1)


def streaming():
    return StreamingFrequency(num_buckets=17, num_hashes=2, rate=0.1)


def everything():
    hard = HardNegatives(num=3, num_queries=9, every=2, warm_up=1)
    negatives = mixed(queue=queue(), frequency=streaming())
    return Objective(loss=softmax(), negatives=negatives, hard=hard)


OBJECTIVES = {
    "in batch": lambda: Objective(loss=softmax(), negatives=mixed(num_uniform=0)),
    "mixed": lambda: Objective(loss=softmax(), negatives=mixed(), mask_cold=True),
    "uniform": lambda: Objective(loss=softmax(), negatives=uniform()),
    "frequency": lambda: Objective(loss=softmax(), negatives=mixed(frequency=streaming())),
    "queue": lambda: Objective(loss=softmax(), negatives=mixed(queue=queue())),
    "queue of uniform": lambda: Objective(loss=softmax(), negatives=uniform(queue=queue())),
    "everything": everything,
    "earlier masked": lambda: Objective(loss=softmax(), negatives=mixed(), mask_later=False),
    "catalogue": lambda: Objective(loss=FullSoftmax(temperature=0.3), negatives=WholeCatalogue()),
    "blockwise": lambda: BlockwiseSoftmax(temperature=0.3, block=16),
    "bpr": lambda: Objective(loss=BPR(), negatives=uniform()),
    "cosine contrastive": lambda: Objective(
        loss=CosineContrastive(weight=10, margin=0.1), negatives=uniform()
    ),
    "gbce": lambda: Objective(loss=GBCE(calibration=0.75), negatives=uniform()),
    "bpr, mined": lambda: Objective(
        loss=BPR(), negatives=uniform(), hard=HardNegatives(num=3, num_queries=9, every=1)
    ),
}
SHAPES = ("event", "sequence", "user")
CASES = (
    *(f"event: {name}" for name in OBJECTIVES),
    *(f"{shape}: {name}" for shape in SHAPES[1:] for name in ("everything", "bpr", "blockwise")),
    *("event: mixed, sparse", "ranking", "ranking, sparse", "ranking, batch norm"),
    *("event: mixed, half", "event: mixed, half, sparse", "ranking, half, sparse"),
)


def world_of(folder):
    """The world of the tests, from its prepared data."""
    path = Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("training_conftest", path)
    conftest = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = conftest
    spec.loader.exec_module(conftest)
    prepared = open_prepared(Path(folder))
    pipeline = FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)
    return conftest.World(prepared=prepared, pipeline=pipeline)


def build_case(name, world, ranks):
    """Task and training examples."""
    if name.startswith("ranking"):
        examples = ExampleBatches(
            examples=ImpressionExamples().examples(world.prepared, TRAIN, None),
            columns=world.columns("ranking"),
            with_scores=False,
        )
        task = RankingTask(
            model=world.ranker(batch_norm=name.endswith("batch norm")),
            loss=BinaryLogLoss(),
            optimizer=OPTIMIZER,
            ranks=ranks,
        )
        return task, examples.of_epochs()
    shape, _, objective = name.partition(": ")
    inputs = world.pipeline.inputs("retrieval")
    if shape == "user":
        kept = tuple(f for f in inputs.features if f.side != "context")
        inputs = replace(inputs, features=kept)
    history = partial(GRU, hidden=5) if shape == "sequence" else MeanPooling
    columns = stage_columns(world.prepared, inputs, CPU)
    batches = {"sequence": SequenceBatches(), "user": UserBatches()}.get(shape, EventBatches())
    probability = torch.rand(
        world.prepared.num_catalogue, generator=torch.Generator().manual_seed(0)
    )
    events = world.prepared.events.item_rows[world.prepared.train_events()]
    cold = set(range(len(probability))) - set(events.tolist())
    probability[[*cold][:1]] = 0  # for `mask_cold`
    model = world.towers_for(inputs, history=history)
    task = RetrievalTask(
        model=model,
        objective=OBJECTIVES[objective.removesuffix(", sparse").removesuffix(", half")](),
        columns=columns,
        item_probability=probability.double() / probability.sum(),
        optimizer=OPTIMIZER,
        ranks=ranks,
    )
    return task, batches.examples(world.prepared, columns, model)


def with_weights(assemble):
    """Weights that differ, as a mean over processes would not notice equal ones."""

    def weighted(rows):
        batch = assemble(rows)
        factor = 0.5 + (batch[ITEM_ROWS] % 3).float()
        return batch | {WEIGHTS: batch[WEIGHTS] * factor}

    return weighted


def run_case(name, world, ranks):
    """Loss and gradients of every batch of an epoch, and what is remembered then."""
    several, rows = isinstance(ranks, DistributedRanks), embedding.MIN_SPARSE_ROWS
    embedding.MIN_SPARSE_ROWS = 0 if name.endswith("sparse") else rows
    task, examples = build_case(name, world, ranks)
    embedding.MIN_SPARSE_ROWS = rows
    is_half = ", half" in name
    if is_half:
        halve_tables(task)
    torch.manual_seed(11)
    if several:
        take_part(task, ranks)
        torch.manual_seed(1000 + ranks.rank)
    loader = ShuffledBatches(
        examples.rows[:NUM_EXAMPLES],
        batch_size=BATCH,
        seed=3,
        assemble=with_weights(examples.share_of_batch(ranks)),
    )
    task.forward = lambda batch: task.training_step(batch, 0)
    step = task
    if several:
        step = DistributedDataParallel(task, process_group=ranks.group, broadcast_buffers=False)
    steps = []
    for batch in loader:
        task.zero_grad()
        step(batch).backward()
        task.on_after_backward()
        gradients = {
            name: p.grad.to_dense() if p.grad.is_sparse else p.grad.clone()
            for name, p in task.named_parameters()
        }
        (loss,) = map(float, task.figures.values())
        sparse = sum(p.grad.is_sparse for p in task.parameters())
        steps.append({"loss": loss, "gradients": gradients, "sparse": sparse})
    if is_half:
        task.settings.optimizer(task).step()
    weights = dict(task.named_parameters())
    tables = {n: w.detach() for n, w in weights.items() if w.dtype == torch.bfloat16}
    remembered = {n: v for n, v in task.state_dict().items() if n not in weights}
    return {"steps": steps, "remembered": remembered, "tables": tables}


EXAMPLES = Examples(
    interactions=np.arange(5),
    item_rows=np.arange(5, dtype=np.int32)[::-1],
    labels=np.array([0, 1, 0, 0, 1], np.float32),
    weights=np.linspace(0, 1, 5, dtype=np.float32),
    scores=None,
    negative_rate=0.3,
    tasks={"like": np.ones(5, np.float32), "buy": np.zeros(5, np.float32)},
    num_drawn=2,
)


def of_first(ranks):
    """What a process gets of examples that the first one alone can make."""

    def make():
        if ranks.rank:
            raise RuntimeError("only the first process makes examples")
        return EXAMPLES

    return plain(examples_of_first(make, ranks))


def plain(examples):
    """Examples as a dictionary of lists, with the types of their arrays."""
    fields = vars(examples) | {name: won for name, won in examples.tasks.items()}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    others = {name: fields[name] for name in ("scores", "ranks", "negative_rate", "num_drawn")}
    return others | {name: [a.dtype.str, *a.tolist()] for name, a in arrays.items()}


def main(prepared, results, rank, size, port):
    """Run every case in groups of 2 and of all processes; each process writes what it found."""
    torch.set_num_threads(1)
    rank, size = int(rank), int(size)
    store = dist.TCPStore("127.0.0.1", int(port), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    world = world_of(prepared)
    torch.save(of_first(DistributedRanks()), Path(results) / f"examples-{rank}.pt")
    groups = {2: dist.new_group([0, 1]), size: None}
    for num, group in groups.items():
        if rank < num:
            found = {name: run_case(name, world, DistributedRanks(group)) for name in CASES}
            torch.save(found, Path(results) / f"{num}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
