"""What `twotower plan` says of one core of this machine, beside what the core does, at two sizes.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/speed/plan.py

Before every row the rates of the core are measured as those of `capacity_devices.CORE` were:
products of matrices, a copy, rows of a large table at random places. From these and the counted
work follows the planned time of a training step, a request or a search; the measured one is the
median of repeated runs in CPU seconds. A ratio is measured over planned: above 1 the plan was too
hopeful.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from twotower.export.onnx import export_query_tower, export_ranker
from twotower.features.spec import FeatureInput, ModelInputs
from twotower.index.flat import Flat
from twotower.index.graph import HNSW
from twotower.index.inverted_file import IVFPQ, IVFFlat
from twotower.losses.calibration import Calibration
from twotower.losses.fused_softmax import fused_softmax
from twotower.losses.logits import Logits
from twotower.losses.masks import PositiveMask
from twotower.models.cross import full_rank
from twotower.models.dcn import DCNv2, Parallel
from twotower.models.history import MeanPooling, RecentAndMean
from twotower.models.mlp import MLP
from twotower.models.two_tower import Cosine, TwoTower
from twotower.planning import capacity_index, capacity_work
from twotower.planning.capacity_devices import CORE, Core
from twotower.planning.capacity_work import NUM_RECENT, Ranker, Towers
from twotower.training.memory import keep_freed_memory
from twotower.training.optimizers import OptimizerSettings

NUM_USERS, NUM_ITEMS, NEGATIVES = 1_000_000, 500_000, 512
BUILDERS = {"flat": Flat, "ivf_flat": IVFFlat, "ivf_pq": IVFPQ, "hnsw": HNSW}
TOWERS = (
    (2048, Towers(width=32, hidden=(128,), dim=64, history=20)),
    (4096, Towers(width=64, hidden=(256, 128), dim=64, history=50)),
)
RANKERS = (
    (2048, Ranker(width=32, hidden=(128, 64), cross_layers=2, history=20)),
    (4096, Ranker(width=64, hidden=(128, 64), cross_layers=2, history=50)),
)


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of a call, after two that are not counted."""
    taken = []
    for _ in range(repeats + 2):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return statistics.median(taken[2:])


def this_core() -> Core:
    """The rates of this core."""
    left, right = torch.randn(4096, 512), torch.randn(512, 512)
    products = seconds(lambda: left @ right, 20)
    source, target = torch.randn(2**26), torch.empty(2**26)
    copy = seconds(lambda: target.copy_(source), 5)
    table, places = source.view(-1, 64), torch.randint(2**20, (2**20,))
    rows = seconds(lambda: table.index_select(0, places), 5)
    return Core(
        bandwidth=2 * 4 * 2**26 / copy,
        rows=2**20 / rows,
        full_precision=2 * 4096 * 512 * 512 / products,
        lookups=CORE.lookups,
        source="measured now",
    )


def inputs_of(history: int) -> ModelInputs:
    features = tuple(
        FeatureInput(name=f"{side}_id", side=side, kind="id", dim=0, num_rows=rows + 1, width=0)
        for side, rows in (("user", NUM_USERS), ("item", NUM_ITEMS))
    )
    return ModelInputs(features=features, history_length=history, history_features=("item_id",))


def batch_of(size: int, history: int) -> dict[str, Tensor]:
    return {
        "user_id": torch.randint(1, NUM_USERS, (size,)),
        "item_id": torch.randint(1, NUM_ITEMS, (size,)),
        "history.item_id": torch.randint(1, NUM_ITEMS, (size, history)),
        "history.mask": torch.ones(size, history, dtype=torch.bool),
        "retrieval_score": torch.rand(size),
    }


def towers_of(shape: Towers) -> TwoTower:
    return TwoTower(
        inputs=inputs_of(shape.history),
        dim=shape.dim,
        embedding_dim=shape.width,
        hidden=shape.hidden,
        history=MeanPooling,
        similarity=Cosine(),
        dropout=0.1,
    )


def ranker_of(shape: Ranker) -> DCNv2:
    return DCNv2(
        inputs=inputs_of(shape.history),
        embedding_dim=shape.width,
        structure=Parallel,
        cross=functools.partial(full_rank, num_layers=shape.cross_layers),
        deep=functools.partial(MLP, hidden=shape.hidden, dropout=0.1),
        history=functools.partial(RecentAndMean, num_recent=NUM_RECENT),
        retrieval_score=True,
    )


def towers_loss(model: TwoTower, batch: dict[str, Tensor]) -> Tensor:
    """Sampled softmax over the batch and uniform negatives."""
    queries, targets = model.embed_queries(batch), model.embed_items(batch)
    drawn = torch.randint(1, NUM_ITEMS, (NEGATIVES,))
    candidates = torch.cat([targets, model.embed_items({"item_id": drawn})])
    rows = torch.cat([batch["item_id"], drawn])
    own, none = torch.arange(len(queries)), torch.zeros(0, dtype=torch.long)
    mask = PositiveMask(
        target_rows=batch["item_id"],
        users=own,
        num_users=len(queries),
        known_users=none,
        known_rows=none,
    )
    logits = Logits(
        temperature=0.05, log_expected_count=torch.zeros(len(rows)), masked=mask.on(rows)
    )
    return fused_softmax(queries, targets, candidates, logits)


def ranker_loss(model: DCNv2, batch: dict[str, Tensor]) -> Tensor:
    labels = torch.randint(2, (len(batch["item_id"]),)).float()
    return functional.binary_cross_entropy_with_logits(model(batch), labels)


def step_seconds(
    model: nn.Module, loss: Callable[[dict[str, Tensor]], Tensor], batch: int, history: int
) -> float:
    """Median seconds of a training step with a batch drawn anew each time."""
    settings = OptimizerSettings(learning_rate=1e-3, table_learning_rate=0.05, max_norm=5.0)
    optimizer = settings.optimizer(model)

    def step() -> None:
        optimizer.zero_grad()
        loss(batch_of(batch, history)).backward()
        settings.clip(model)
        optimizer.step()

    return seconds(step, 10)


def training() -> Iterator[tuple[str, float, float]]:
    """Microseconds of an example: planned, measured."""
    for batch, towers in TOWERS:
        core = this_core()
        model = towers_of(towers)
        loss = functools.partial(towers_loss, model)
        work = capacity_work.towers_work(towers, batch=batch, negatives=NEGATIVES)
        found = step_seconds(model, loss, batch, towers.history) / batch
        name = f"towers, batch {batch}, width {towers.width}, history {towers.history}"
        yield name, 1e6 * capacity_work.core_seconds(work, core), 1e6 * found
    for batch, ranker in RANKERS:
        core = this_core()
        dcn = ranker_of(ranker)
        loss = functools.partial(ranker_loss, dcn)
        work = capacity_work.ranker_work(ranker)
        found = step_seconds(dcn, loss, batch, ranker.history) / batch
        name = f"ranker, batch {batch}, width {ranker.width}, history {ranker.history}"
        yield name, 1e6 * capacity_work.core_seconds(work, core), 1e6 * found


def requests() -> Iterator[tuple[str, float, float]]:
    """Milliseconds of a request without the search: planned, measured."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    towers, ranker = TOWERS[0][1], RANKERS[0][1]
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "query_tower.onnx", Path(folder) / "ranker.onnx"
        inputs = inputs_of(towers.history)
        export_query_tower(towers_of(towers), inputs, paths[0])
        export_ranker(
            ranker_of(ranker), inputs, paths[1], calibration=Calibration(negative_rate=1.0)
        )
        sessions = [onnxruntime.InferenceSession(str(path), options) for path in paths]
        for candidates in (200, 1000):
            columns = batch_of(1, towers.history)
            pairs = batch_of(candidates, towers.history)
            owned = {name: pairs[name] for name in ("item_id", "retrieval_score")}
            owned["owner"] = torch.zeros(candidates, dtype=torch.long)
            feeds = [
                {given.name: batch[given.name].numpy() for given in session.get_inputs()}
                for session, batch in zip(sessions, (columns, columns | owned), strict=True)
            ]

            def ask(feeds: list[dict[str, np.ndarray]] = feeds) -> None:
                for session, feed in zip(sessions, feeds, strict=True):
                    session.run(None, feed)

            core = this_core()
            planned = capacity_work.scoring_seconds(towers, ranker, candidates)
            planned *= CORE.full_precision / core.full_precision
            yield f"models, {candidates} candidates", 1e3 * planned, 1e3 * seconds(ask, 30)


def cloud(num_items: int, seed: int) -> np.ndarray:
    """Unit vectors without clusters, as those on which the recall of graphs was measured."""
    draws = np.random.default_rng(seed).standard_normal((num_items, 64), dtype=np.float32)
    draws *= (np.arange(1, 65) ** -0.5).astype(np.float32)
    return draws / np.linalg.norm(draws, axis=1, keepdims=True)


def searches(sizes: list[int]) -> Iterator[tuple[str, float, float]]:
    """Milliseconds of a search: planned, measured."""
    for num_items in sizes:
        capacity_index.CORE = this_core()  # type: ignore[misc]
        items, queries = cloud(num_items, 0), cloud(100, 1)
        for option in capacity_index.index_options(
            num_items, 64, k=200, recall=0.95, gpu=None, kinds=capacity_index.KINDS
        ):
            values = dict(text.removeprefix("index.").split("=") for text in option.overrides)
            numbers = {name: int(value) for name, value in values.items()}
            index = BUILDERS[option.kind](**numbers, device="cpu").build(items)
            turn = iter(range(10**6))

            def search(index=index, turn=turn) -> None:
                row = next(turn) % 100
                index.search(queries[row : row + 1], 200)  # noqa: B023

            name = f"{option.kind} {option.note}, {num_items:,} items".replace(" ,", ",")
            yield name, 1e3 * option.seconds, 1e3 * seconds(search, 100)


def main(sizes: list[int]) -> None:
    """Print what is planned beside what is measured."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    core = this_core()
    print(
        f"this core: {core.full_precision / 1e9:.0f} GFLOP/s, {core.bandwidth / 1e9:.1f} GB/s, "
        f"{core.rows / 1e6:.1f} million rows/s (the plan's: {CORE.full_precision / 1e9:.0f}, "
        f"{CORE.bandwidth / 1e9:.1f}, {CORE.rows / 1e6:.1f})"
    )
    print(f"{'':52}{'planned':>10}{'measured':>10}{'ratio':>7}")
    for unit, rows in (
        ("us an example", training()),
        ("ms a request", requests()),
        ("ms a search", searches(sizes)),
    ):
        for name, planned, measured in rows:
            ratio = measured / planned
            print(f"{name:52}{planned:10.2f}{measured:10.2f}{ratio:7.2f}  {unit}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 200_000])
    given = parser.parse_args()
    main(given.sizes)
