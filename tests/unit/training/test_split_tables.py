"""Folders of split tables: which are kept, and how a task gets its whole tables back."""

from __future__ import annotations

import importlib.util
import sys
import time
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from twotower.training import split_tables
from twotower.training.optimizers import OptimizerSettings
from twotower.training.settings import TrainerSettings
from twotower.training.sharded_tables import ShardedTable
from twotower.training.split_tables import TABLES, SplitTables, name_of_tables
from twotower.training.table_optimizers import LazyAdam, RowWiseAdagrad

CPU = torch.device("cpu")
needs_torchrec = pytest.mark.skipif(
    importlib.util.find_spec("torchrec") is None,
    reason="the extra `distributed` (TorchRec) is not installed",
)


@pytest.fixture(autouse=True)
def alone():
    """The process group that is made for one process ends with the test."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def task_of(value):
    task = nn.ModuleDict({"table": nn.Embedding(3, 4, sparse=True), "dense": nn.Linear(4, 1)})
    nn.init.constant_(task["table"].weight, value)
    return task


def split(task, folder):
    files = [folder / "last.ckpt", folder / "best.ckpt"]
    return SplitTables(task, device=CPU, checkpoints=files)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@needs_torchrec
def test_folders_are_kept_while_a_checkpoint_names_them(tmp_path):
    tables = split(task_of(1.0), tmp_path)
    torch.save({TABLES: tables.save(10)}, tmp_path / "best.ckpt")
    torch.save({TABLES: tables.save(10)}, tmp_path / "last.ckpt")  # the same step, saved once
    torch.save({TABLES: tables.save(20)}, tmp_path / "last.ckpt")
    tables.save(30)  # the process is killed before its checkpoint is written
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "tables-10", "tables-20", "tables-30"]
    resumed = split(task_of(2.0), tmp_path)
    resumed.clear()
    assert names(tmp_path) == ["best.ckpt", "last.ckpt", "tables-10", "tables-20"]
    resumed.load(name_of_tables(tmp_path / "last.ckpt"))
    assert resumed.tables["table"].shard.tolist() == [[1.0] * 4] * 3
    resumed.save(30)
    resumed.forget(tmp_path / "last.ckpt")
    assert names(tmp_path) == ["best.ckpt", "tables-10"]


@needs_torchrec
def test_tables_are_whole_again(tmp_path):
    """Rows are those of the checkpoint, not the later ones of the processes."""
    task = task_of(1.0)
    tables = split(task, tmp_path)
    assert [*task.state_dict()] == ["dense.weight", "dense.bias"]
    checkpoint = {"state_dict": task.state_dict(), TABLES: tables.save(1), "epoch": 3}
    tables.tables["table"].shard.fill_(5.0)
    whole = tables.make_whole(task, checkpoint)
    assert TABLES not in whole
    assert whole["epoch"] == 3
    assert isinstance(task["table"], nn.Embedding)
    assert task["table"].sparse
    assert whole["state_dict"]["table.weight"].tolist() == [[1.0] * 4] * 3
    task.load_state_dict(whole["state_dict"])

    again = task_of(2.0)
    assert split(again, tmp_path).make_whole(again, whole) is whole  # made whole, then killed
    again.load_state_dict(whole["state_dict"])
    assert again["table"].weight.tolist() == [[1.0] * 4] * 3


def make_whole_and_forget(rank, folder):
    """What one of two processes does; the second takes its time to read."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    task = task_of(1.0)
    tables = split(task, folder)
    checkpoint = {"state_dict": task.state_dict(), TABLES: tables.save(1)}
    read = split_tables.read_tables

    def late(*arguments):
        time.sleep(rank)
        read(*arguments)

    split_tables.read_tables = late
    tables.make_whole(task, checkpoint)
    tables.forget(folder / "last.ckpt")
    assert task["table"].weight.tolist() == [[1.0] * 4] * 3
    dist.destroy_process_group()


@needs_torchrec
def test_nobody_removes_tables_that_another_process_still_reads(tmp_path):
    multiprocessing.spawn(make_whole_and_forget, (tmp_path,), nprocs=2)
    assert names(tmp_path) == []


@needs_torchrec
def test_the_optimizer_of_a_model_steps_its_split_tables(tmp_path):
    task = task_of(1.0)
    split(task, tmp_path)
    assert isinstance(task["table"], ShardedTable)
    settings = partial(OptimizerSettings, learning_rate=0.1, table_learning_rate=0.5)
    optimizer = settings(table_optimizer=partial(RowWiseAdagrad, initial=3.0)).optimizer(task)
    assert [(g["name"], g["lr"]) for g in optimizer.param_groups] == [
        ("learning_rate", 0.1),
        ("split_table_learning_rate", 0.5),
    ]
    task["table"](torch.tensor([1])).sum().backward()
    optimizer.step()
    # The mean square 1 brings the accumulator to 4, so the step is 0.5 / 2.
    torch.testing.assert_close(
        task["table"].shard, torch.tensor([[1.0] * 4, [0.75] * 4, [1.0] * 4])
    )
    for other in (LazyAdam, partial(RowWiseAdagrad, eps=1e-3)):
        with pytest.raises(ValueError, match="RowWiseAdagrad with no option but `initial`, got"):
            settings(table_optimizer=other).optimizer(task)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrec", None)
    with pytest.raises(ValueError, match="trainer: `split_tables` needs the extra `distributed`"):
        TrainerSettings(split_tables=True)
