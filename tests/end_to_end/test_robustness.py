"""Some kills and some damaged files; `benchmarks/robustness/` does as many as one likes."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from tests.conftest import TinyRun
from twotower.serving.store import open_reader
from twotower.serving.stored_list import StoreError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "robustness"
COMMANDS = ("prepare", "train", "export", "batch")
CASES = 8


@pytest.fixture(scope="module")
def kills():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("kills")


@pytest.fixture(scope="module")
def base(kills, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "base"
    kills.make_base(folder)
    return folder


@pytest.mark.parametrize("name", [*COMMANDS, pytest.param("retrain", marks=pytest.mark.slow)])
def test_a_killed_command_hurts_nothing_and_ends_as_if_never_killed(
    kills, base, tmp_path, name
) -> None:
    (command,) = (one for one in kills.COMMANDS if one.name == name)
    found = kills.Killer(command, tmp_path, base, seed=0).kill(3, seconds=60)
    assert found.kills + found.ended >= 1
    assert (found.hurt, found.other) == (0, 0)


@pytest.fixture(scope="module")
def fuzz_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("fuzz_files")


@pytest.fixture(scope="module")
def home(fuzz_files, tiny_run: TinyRun, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "home"
    fuzz_files.make_home(folder, tiny_run.run, (tiny_run.bundle / "current").resolve())
    return folder


def test_damaged_files_are_refused_or_read_right(fuzz_files, home) -> None:
    """Every reader; in processes of their own, which must not crash or hang."""
    refused = 0
    for number in range(len(fuzz_files.READERS)):
        found, faults = fuzz_files.fuzz(number, home, CASES, seed=1)
        assert not faults
        assert found.total() > 0
        refused += found[fuzz_files.REFUSED]
    assert refused > CASES * len(fuzz_files.READERS) / 2


def test_a_store_that_was_cut_is_refused_and_does_not_end_the_process(home, tmp_path) -> None:
    (data,) = home.glob("stores/tiny/[!.c]*/data.mdb")
    store = tmp_path / "stores" / "tiny"
    shutil.copytree(home / "stores" / "tiny", store, symlinks=True)
    cut = store / data.parent.name / "data.mdb"
    cut.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(StoreError, match=r"data\.mdb: cut; `twotower batch` writes it again"):
        open_reader(str(store)).lookup("u000001")


def test_a_fault_is_found(fuzz_files, home, monkeypatch) -> None:
    """The other kinds of outcome, of readers that are wrong on purpose."""
    reader = fuzz_files.Reader("x", ("items.journal",), lambda home: {}["no"], guarded=True)
    path = home / "items.journal"
    assert fuzz_files.outcome(reader, home, path, None) == "other kind of error"
    right = fuzz_files.Reader("x", ("items.journal",), lambda home: 2, guarded=True)
    assert fuzz_files.outcome(right, home, path, 1) == "other data behind a checksum"
    assert fuzz_files.outcome(right, home, path, 2) == fuzz_files.SAME

    def unnamed(home: Path) -> None:
        raise ValueError("wrong")

    silent = fuzz_files.Reader("x", ("items.journal",), unnamed)
    assert fuzz_files.outcome(silent, home, path, 1).startswith("file not named")
