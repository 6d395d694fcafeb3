"""Bytes of a plan against bytes of the real thing, at two sizes each."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.unit.planning.meters import (
    NUM_ITEMS,
    NUM_USERS,
    batch_of,
    peak_bytes,
    ranker_model,
    tables_of,
    towers_loss,
    towers_model,
)
from twotower.data.batches import ColumnNames, Columns
from twotower.data.prepare import prepare
from twotower.data.prepared import Prepared
from twotower.data.split import TemporalSplit
from twotower.data.synthetic import SyntheticSource
from twotower.data.tables import TableSource
from twotower.features.infer import AutoSpec, PipelineFactory
from twotower.features.spec import FeatureInput
from twotower.models.embedding import FeatureEmbedder
from twotower.models.tables import halve_tables
from twotower.planning.capacity_memory import (
    PRECISIONS,
    checkpoint_bytes,
    column_bytes,
    optimizer_bytes,
    prepared_bytes,
    preparing_bytes,
    step_bytes,
    store_bytes,
    table_bytes,
)
from twotower.planning.capacity_work import Ranker, Towers
from twotower.training.optimizers import OptimizerSettings
from twotower.training.table_optimizers import LazyAdam, RowWiseAdagrad

SIZES = ((1_000, 16), (70_000, 64))
MOMENTS = ("exp_avg", "exp_avg_sq")


def embedder_of(num_values: int, width: int) -> FeatureEmbedder:
    feature = FeatureInput(
        name="item_id", side="item", kind="id", dim=width, num_rows=num_values + 1, width=0
    )
    return FeatureEmbedder(features=[feature], default_dim=8, vector_dim=8, sparse=True)


def nbytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(("num_values", "width"), SIZES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_table_and_its_optimizers(num_values, width, precision):
    embedder = embedder_of(num_values, width)
    if precision == "bfloat16":
        halve_tables(embedder)
    tables = tables_of(embedder)
    assert nbytes(tables) == table_bytes(num_values, width, precision)
    for name, optimizer in (("rowwise_adagrad", RowWiseAdagrad), ("lazy_adam", LazyAdam)):
        state = optimizer(tables, lr=0.1).state[tables[0]]
        kept = nbytes([tensor for tensor in state.values() if tensor.dim() > 0])
        assert kept == optimizer_bytes(num_values, width, name)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [8, 32])
def test_checkpoints(width, precision, tmp_path):
    """What `fit` saves: weights of the best epoch, weights and optimiser of the last."""
    embedder = embedder_of(20_000, width)
    if precision == "bfloat16":
        halve_tables(embedder)
    settings = OptimizerSettings(learning_rate=0.1, table_learning_rate=0.1)
    weights, state = embedder.state_dict(), settings.optimizer(embedder).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "best.ckpt")
    torch.save({"state_dict": weights, "optimizer_states": [state]}, tmp_path / "last.ckpt")
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    planned = checkpoint_bytes(
        table_bytes(20_000, width, precision),
        optimizer_bytes(20_000, width, "rowwise_adagrad"),
    )
    assert written == pytest.approx(planned, abs=8_000)


@pytest.mark.parametrize(
    ("batch", "towers"),
    [
        (512, Towers(width=32, hidden=(128,), dim=64, history=20)),
        (1024, Towers(width=64, hidden=(128,), dim=64, history=50)),
        (512, Towers(width=64, hidden=(512, 256), dim=64, history=5)),
    ],
)
def test_a_step_of_the_towers(batch, towers):
    model, columns = towers_model(towers), batch_of(batch, towers.history)
    found = bytes_of_a_step(model, lambda: towers_loss(model, columns))
    planned = step_bytes(
        *(batch, towers.history, towers.width),
        dense=towers.dense,
        hidden=[*towers.hidden, *towers.hidden],
        weights=towers.weights,
    )
    assert found == pytest.approx(planned, rel=0.25)


@pytest.mark.parametrize(
    ("batch", "ranker"),
    [
        (512, Ranker(width=32, hidden=(128, 64), cross_layers=2, history=20)),
        (1024, Ranker(width=48, hidden=(256,), cross_layers=3, history=50)),
    ],
)
def test_a_step_of_the_ranker(batch, ranker):
    model, columns = ranker_model(ranker), batch_of(batch, ranker.history)
    found = bytes_of_a_step(model, lambda: model(columns).sum())
    planned = step_bytes(
        *(batch, ranker.history, ranker.width),
        dense=ranker.dense,
        hidden=ranker.hidden,
        weights=ranker.weights,
    )
    assert found == pytest.approx(planned, rel=0.25)


def bytes_of_a_step(model, loss) -> int:
    """Peak of the second training step, and AdamW's moments, which the first one made."""
    optimizer = OptimizerSettings(learning_rate=0.1, table_learning_rate=0.1).optimizer(model)

    def step():
        loss().backward()
        optimizer.step()

    step()
    optimizer.zero_grad()
    adam = optimizer.members[0]
    moments = nbytes([state[name] for state in adam.state.values() for name in MOMENTS])
    return moments + peak_bytes(step)


@dataclass(frozen=True)
class Log:
    """A prepared log of positives with integer ids and times."""

    num_rows: int
    prepared: Prepared

    @property
    def counts(self) -> dict[str, int]:
        return {
            "num_users": len(self.prepared.users),
            "num_items": len(self.prepared.items),
            "num_interactions": self.num_rows,
            "num_events": self.num_rows,
        }


def write_log(path: Path, num_rows: int) -> None:
    draws = np.random.default_rng(0)
    columns = {
        "user_id": draws.integers(0, num_rows // 20, num_rows),
        "item_id": draws.integers(0, num_rows // 50, num_rows),
        "timestamp": np.sort(draws.integers(1_700_000_000, 1_702_600_000, num_rows)),
    }
    pq.write_table(pa.table(columns), path)


@pytest.fixture(scope="module", params=[20_000, 100_000])
def log(request, tmp_path_factory) -> Log:
    folder = tmp_path_factory.mktemp("log")
    write_log(folder / "log.parquet", request.param)
    prepared = prepare(
        source=TableSource(interactions=str(folder / "log.parquet")),
        splitter=TemporalSplit(),
        encoders=PipelineFactory(provider=AutoSpec()),
        root=folder / "prepared",
    )
    return Log(num_rows=request.param, prepared=prepared)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_prepared_data_set(log):
    """All but the headers of 17 files, two vocabularies and the manifest."""
    written = folder_bytes(log.prepared.folder)
    assert written == pytest.approx(prepared_bytes(**log.counts), abs=8_000)


def test_columns_on_the_device(log):
    names = ColumnNames(
        user=["user_id"],
        item=["item_id"],
        context=["timestamp"],
        history=["item_id"],
        history_length=20,
    )
    columns = Columns(log.prepared, names, torch.device("cpu"))
    parts = [columns._users, columns._items, columns._context]
    tensors = [tensor for part in parts for tensor in part._single.values()]
    assert not any(part._blocks for part in parts)  # one column each: nothing to lay side by side
    tensors += [columns._offsets, columns._train_end, columns._event_items]
    c = log.counts
    assert nbytes(tensors) == column_bytes(
        c["num_users"], c["num_items"], c["num_interactions"], c["num_events"]
    )


def synthetic(num_users: int, root: Path) -> Prepared:
    """The built-in world: impressions, with words, tags and pictures of items."""
    source = SyntheticSource(
        num_users=num_users, num_items=400, num_days=20, slates_per_user=8, slate_size=8, seed=0
    )
    factory = PipelineFactory(provider=AutoSpec())
    return prepare(source=source, splitter=TemporalSplit(), encoders=factory, root=root)


def test_prepared_built_in_world(tmp_path):
    """What the rest of a user and an item takes is seen on one size, and foretells the other."""
    worlds = [synthetic(num_users, tmp_path / str(num_users)) for num_users in (300, 1_200)]
    small = worlds[0].folder
    entities = {
        side: folder_bytes(small / f"{side}s")
        + (small / f"features/{side}_id.arrow").stat().st_size
        for side in ("user", "item")
    }
    context = sum(
        array.itemsize * array[0].size for array in worlds[0].interactions.context.values()
    )
    for world in worlds:
        planned = prepared_bytes(
            num_interactions=len(world.interactions.rows),
            num_events=len(world.events.item_rows),
            num_users=len(world.users),
            num_items=len(world.items),
            user_bytes=round(entities["user"] / len(worlds[0].users)),
            item_bytes=round(entities["item"] / len(worlds[0].items)),
            context_bytes=context,
        )
        assert folder_bytes(world.folder) == pytest.approx(planned, rel=0.03)


PREPARE = """
import re, sys
from pathlib import Path
from twotower.data.prepare import prepare
from twotower.data.split import TemporalSplit
from twotower.data.tables import TableSource
from twotower.features.infer import AutoSpec, PipelineFactory
def peak():  # of this process alone; that of `resource` begins with its parent's
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
before = peak()
prepare(
    source=TableSource(interactions=sys.argv[1]), splitter=TemporalSplit(), root=Path(sys.argv[2]),
    encoders=PipelineFactory(provider=AutoSpec()),
)
print(peak() - before)
"""


def test_memory_of_preparing(tmp_path):
    """A bound for every length of the log, and not far above what a longer one takes."""
    sizes, grown = (400_000, 1_600_000), []
    for size in sizes:
        path = tmp_path / f"{size}.parquet"
        write_log(path, size)
        arguments = [sys.executable, "-c", PREPARE, str(path), str(tmp_path / f"{size}")]
        done = subprocess.run(arguments, check=True, capture_output=True, text=True)
        grown.append(json.loads(done.stdout.splitlines()[-1]))
    for size, peak in zip(sizes, grown, strict=True):
        assert peak < preparing_bytes(size)
    assert grown[1] > 0.4 * preparing_bytes(sizes[1])


@pytest.mark.parametrize(("num_users", "num_stored"), [(20_000, 10), (40_000, 100), (3_000, 400)])
def test_store(num_users, num_stored, tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="LMDB is not installed: its pages are not counted")
    with lmdb.open(str(tmp_path), map_size=1 << 30) as store:
        with store.begin(write=True) as transaction:
            for user in range(num_users):
                value = bytes(16 + 12 * num_stored)
                transaction.put(user.to_bytes(8, "big"), value, append=True)
        stat = store.stat()
    pages = sum(stat[f"{kind}_pages"] for kind in ("leaf", "branch", "overflow"))
    assert store_bytes(num_users, num_stored) == pytest.approx(stat["psize"] * pages, rel=0.01)


def test_store_by_hand():
    """A node of 10 items is 154 bytes, 26 fit a page; one of 400 has two pages and a pointer."""
    assert store_bytes(26, 10) == 4096
    assert store_bytes(27, 10) == 2 * 4096
    assert store_bytes(5, 400) == 5 * (2 * 4096 + 26)


def test_sizes_of_the_meters_are_those_of_their_tables():
    towers = Towers(width=8, hidden=(8,), dim=8, history=2)
    tables = tables_of(towers_model(replace(towers, width=16)))
    planned = sum(table_bytes(size, 16, "float32") for size in (NUM_USERS, NUM_ITEMS))
    assert nbytes(tables) == planned
