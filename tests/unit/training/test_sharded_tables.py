"""Tables split over processes learn what whole ones learn, and move to other numbers of them."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from twotower.training.sharded_adagrad import ShardedRowWiseAdagrad
from twotower.training.sharded_checkpoint import load_tables, read_tables, save_tables
from twotower.training.sharded_tables import ShardedTable, shard_tables

SCRIPT = Path(__file__).with_name("sharded_cases.py")
CPU = torch.device("cpu")
needs_torchrec = pytest.mark.skipif(
    importlib.util.find_spec("torchrec") is None,
    reason="the extra `distributed` (TorchRec) is not installed",
)


def load_cases():
    spec = importlib.util.spec_from_file_location("sharded_cases", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = load_cases()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Where every process of 2, then 1, then 4 has written what it found."""
    folder = tmp_path_factory.mktemp("shards")
    for size in cases.SIZES:
        start(folder, size)
    return folder


def start(folder, size):
    """Run the cases in so many processes."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, folder, *map(str, (rank, size, store.port))],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    try:
        errors = [process.communicate(timeout=120)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * size, "\n".join(errors)


@pytest.fixture(scope="module")
def whole_tables():
    """Losses and tables of one process with whole tables and the optimizer of whole tables."""
    return cases.one_process()


@pytest.fixture
def one_of_one(tmp_path):
    """One process is all there is."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def found(folder, kind, num):
    return [torch.load(folder / f"{kind}-{num}-{rank}.pt") for rank in range(num)]


def split(table, eps=1e-10):
    """The table, split over the processes that there are."""
    return shard_tables(nn.ModuleDict({"table": table}), device=CPU, eps=eps)["table"]


def table_of(rows, **named):
    table = nn.Embedding(len(rows), len(rows[0]), sparse=True, **named)
    table.weight.data = torch.tensor(rows)
    return table


@needs_torchrec
@pytest.mark.parametrize("num", cases.SIZES)
def test_the_loss_curve_is_that_of_whole_tables(results, whole_tables, num):
    curve, _, tables = whole_tables
    assert curve[-1] < curve[0] - 0.1  # it learns, so that equal curves say something
    for process in found(results, "trained", num):
        assert process["curve"] == pytest.approx(curve, abs=1e-5)
        for name, rows in tables.items():
            torch.testing.assert_close(process["tables"][name], rows, atol=1e-5, rtol=0)


@needs_torchrec
@pytest.mark.parametrize("num", cases.SIZES)
def test_saved_by_two_and_resumed_by_others(results, whole_tables, num):
    curve, _, tables = whole_tables
    for process in found(results, "resumed", num):
        assert process["curve"] == pytest.approx(curve[cases.SAVED_AFTER :], abs=1e-5)
        for name, rows in tables.items():
            torch.testing.assert_close(process["tables"][name], rows, atol=1e-5, rtol=0)


@needs_torchrec
def test_what_two_saved_is_read_into_whole_tables(results, whole_tables):
    _, saved, _ = whole_tables
    model = cases.build(seed=99)
    dense = {name: p.clone() for name, p in model.named_parameters() if "_mlp" in name}
    read_tables(model, results / "tables")
    for name, rows in cases.tables_of(model).items():
        torch.testing.assert_close(rows, saved[name], atol=1e-5, rtol=0)
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in dense.items())


@needs_torchrec
def test_the_rows_are_no_parameters_of_the_model(results):
    for process in found(results, "trained", 2):
        assert process["parameters"]
        assert not [name for name in process["parameters"] if "_embedder" in name]


@needs_torchrec
def test_a_row_is_stepped_once_for_all_its_look_ups(one_of_one):
    """Row 2 is looked up in two calls with gradients (1, 1, 0, 0) and (2, 2, 3, 5).

    Their sum is (3, 3, 3, 5), its mean square 52 / 4 = 13; the accumulator goes from 3 to 16, the
    step is 0.4 * (3, 3, 3, 5) / 4. At the rate 0.2, (2, 2, 2, 2) then brings the accumulator to 20.
    """
    table = split(table_of([[0.0] * 4, [1.0] * 4, [2.0] * 4]), eps=0.0)
    optimizer = ShardedRowWiseAdagrad({"table": table}, lr=0.4, initial=3.0)
    first, second = table(torch.tensor([[2, 0]])), table(torch.tensor([2, 2]))
    optimizer.zero_grad()  # drops no look-up
    twice = second[0] * torch.tensor([1.0, 2, 3, 4]) + second[1] * torch.tensor([1.0, 0, 0, 1])
    (first[0, 0, :2].sum() + twice.sum()).backward()
    optimizer.step()
    expected = torch.tensor([[0.0] * 4, [1.0] * 4, [1.7, 1.7, 1.7, 1.5]])
    torch.testing.assert_close(table.shard, expected)
    torch.testing.assert_close(table.sums, torch.tensor([3.0, 3.0, 16.0]))

    optimizer.param_groups[0]["lr"] = 0.2
    (2 * table(torch.tensor([2]))).sum().backward()
    optimizer.step()
    expected[2] -= 0.2 * 2 / 20**0.5
    torch.testing.assert_close(table.shard, expected)


@needs_torchrec
def test_nothing_looked_up_moves_nothing(one_of_one):
    table = split(table_of([[1.0] * 4, [2.0] * 4]))
    optimizer = ShardedRowWiseAdagrad({"table": table}, lr=1.0)
    with torch.no_grad():
        assert table(torch.tensor([1, 0, 1]))[:, 0].tolist() == [2.0, 1.0, 2.0]
    assert table(torch.empty(0, 3, dtype=torch.long)).shape == (0, 3, 4)
    table(torch.tensor([1])).sum().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert table.shard.tolist() == [[1.0] * 4, [2.0] * 4]
    assert table.sums.tolist() == [0.0, 0.0]


@needs_torchrec
def test_the_padding_has_no_gradient(one_of_one):
    """The other row has the gradient 1, so it goes from 2 to 2 - 1 / sqrt(1)."""
    table = split(table_of([[1.0] * 4, [2.0] * 4], padding_idx=0))
    optimizer = ShardedRowWiseAdagrad({"table": table}, lr=1.0)
    table(torch.tensor([0, 1])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(table.shard, torch.ones(2, 4))
    assert table.sums.tolist() == [0.0, 1.0]


@needs_torchrec
def test_a_closure_is_called_and_its_loss_returned(one_of_one):
    table = split(table_of([[2.0] * 4]))
    optimizer = ShardedRowWiseAdagrad({"table": table}, lr=1.0)

    def closure():
        loss = table(torch.tensor([0])).sum()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == 8.0
    torch.testing.assert_close(table.shard, torch.ones(1, 4))


@needs_torchrec
def test_a_table_in_two_places_stays_one(one_of_one):
    shared = table_of([[1.0] * 4, [2.0] * 4])
    model = nn.ModuleDict({"a": nn.ModuleDict({"x": shared, "y": shared}), "b": shared})
    model["dense"] = nn.Embedding(2, 1)
    tables = shard_tables(model, device=CPU)
    assert list(tables) == ["b"]
    assert model["a"]["x"] is model["a"]["y"] is model["b"] is tables["b"]
    assert isinstance(model["dense"], nn.Embedding)


@needs_torchrec
def test_what_is_drawn_later_stays_the_same(one_of_one):
    table = table_of([[1.0] * 4])
    state = torch.get_rng_state()
    split(table)
    assert torch.equal(torch.get_rng_state(), state)


@needs_torchrec
def test_nothing_is_said(one_of_one, caplog):
    with caplog.at_level(logging.INFO):
        split(table_of([[1.0] * 4]))
        assert caplog.text == ""
        logging.getLogger("twotower").info("still heard")
    assert "still heard" in caplog.text


@needs_torchrec
def test_wrong_rates(one_of_one):
    table = split(table_of([[1.0] * 4]))
    with pytest.raises(ValueError, match="`lr` of the tables must be above 0, got 0"):
        ShardedRowWiseAdagrad({"table": table}, lr=0)
    with pytest.raises(ValueError, match="`initial` of the tables must be at least 0, got -1"):
        ShardedRowWiseAdagrad({"table": table}, lr=1.0, initial=-1)


@needs_torchrec
def test_a_checkpoint_of_other_tables(one_of_one, tmp_path):
    table = split(table_of([[1.0] * 4, [2.0] * 4]))
    other = split(table_of([[1.0] * 4]))
    save_tables({"table": table}, tmp_path / "saved")
    with pytest.raises(ValueError, match="saved is there already: each checkpoint of tables needs"):
        save_tables({"table": table}, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"table.rows is \[2, 4\] there and \[1, 4\] in the model"):
        load_tables({"table": other}, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"b.rows is missing there and \[2, 4\] in the model"):
        load_tables({"b": table}, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"table.rows is \[2, 4\] there and missing in the model"):
        read_tables(nn.ModuleDict({"b": table_of([[1.0] * 4])}), tmp_path / "saved")


@needs_torchrec
def test_a_model_without_a_table_to_split(one_of_one):
    with pytest.raises(ValueError, match="no table to split: none has sparse gradients"):
        shard_tables(nn.Sequential(nn.Embedding(3, 2)), device=CPU)


@needs_torchrec
def test_tables_that_cannot_be_split(one_of_one, monkeypatch):
    """Of 5 rows 4 processes take 2, 2, 1 and none."""
    with pytest.raises(ValueError, match="a multiple of 4 wide, as fbgemm stores it; got 6"):
        split(table_of([[1.0] * 6]))
    table = split(table_of([[1.0] * 4] * 5))
    assert table.shard.shape == (5, 4)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 4)
    with pytest.raises(ValueError, match="5 rows cannot be split over 4 processes of 2 rows each"):
        ShardedTable(table_of([[1.0] * 4] * 5), env=None, device=CPU, eps=1e-10)


def test_without_the_extra(one_of_one, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrec.distributed.types", None)
    monkeypatch.setitem(sys.modules, "torchrec", None)
    with pytest.raises(ImportError, match=r"pip install 'twotower\[distributed\]'"):
        split(table_of([[1.0] * 4]))
