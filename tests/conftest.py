"""Tiny runs and their bundles, made once a session by the real commands and shared by all tests.

Tests that change a file of them work on a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import settings

from twotower.cli.main import main

# How long an example takes says little on a machine that does other work.
settings.register_profile("any_time", deadline=None)
settings.load_profile("any_time")

TINY_WORLD = (
    "data.num_users=120",
    "data.num_items=80",
    "data.num_days=20",
    "data.slates_per_user=6",
    "data.slate_size=6",
)
TINY_MODELS = (
    "models.retrieval.dim=16",
    "models.retrieval.embedding_dim=8",
    "models.retrieval.hidden=[16]",
    "models.ranking.embedding_dim=4",
    "models.ranking.deep.hidden=[16]",
    "losses.retrieval.negatives.num_uniform=32",
    "training.retrieval.max_epochs=2",
    "training.retrieval.batch_size=128",
    "training.ranking.max_epochs=1",
    "training.ranking.batch_size=512",
    "evaluation.num_resamples=50",
    "trainer.accelerator=cpu",
    "quiet=true",
)
# Two epochs on a few users calibrate nothing, and no test is about that.
TINY_EXPORT = ("index=flat", "index.device=cpu", "gates.max_calibration_error=null", "quiet=true")


@dataclass(frozen=True, kw_only=True)
class TinyRun:
    """Where everything lies.

    Args:
        work: Folder in which the commands were called.
        run: Run folder.
        bundle: Folder of the published bundle, with all its versions.
    """

    work: Path
    run: Path
    bundle: Path


def train_tiny(work: Path, data: Sequence[str], *further: str) -> Path:
    """Train in a folder; the run folder.

    Args:
        work: Folder in which the command is called.
        data: Overrides that choose the data.
        further: Overrides that come last.
    """
    with chdir(work):
        assert main(["train", "name=tiny", *data, *TINY_MODELS, *further]) == 0
    return (work / "runs" / "tiny" / "latest").resolve()


def export_tiny(work: Path, run: Path, *further: str) -> Path:
    """Export a run; the folder of the bundle."""
    with chdir(work):
        assert main(["export", f"run={run}", *TINY_EXPORT, *further]) == 0
    return work / "bundles" / "tiny"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command sends the log to the error stream of its test, which is closed after that test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Both stages trained on a small synthetic world of impressions, and exported."""
    work = tmp_path_factory.mktemp("tiny")
    run = train_tiny(work, TINY_WORLD)
    return TinyRun(work=work, run=run, bundle=export_tiny(work, run))


NUM_CSV_USERS, NUM_CSV_ITEMS, EVENTS_OF_A_USER = 40, 30, 8
UNLISTED_ITEM = 3  # is in the log and not in the table of items

# Neighbours are the same number as float64.
BIG_USERS = [2**53 + 1 + row for row in range(NUM_CSV_USERS)]
# Every one could be taken for a number, and two of them for the same: 1e5 and 100000.
TEXT_ITEMS = [f"{row}e5" if row % 2 else f"{row // 2 + 1}00000" for row in range(NUM_CSV_ITEMS)]


def write_tables(folder: Path, users: Sequence[int], items: Sequence[str]) -> list[str]:
    """Interactions, users and items as CSV; the overrides that choose them."""
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(len(items))[:EVENTS_OF_A_USER] for _ in users]
    tables = {
        "interactions": {
            "visitor": [user for user in users for _ in range(EVENTS_OF_A_USER)],
            "item_id": [items[row] for rows in chosen for row in rows],
            "timestamp": [1_700_000_000 + 60 * n for n in range(len(users) * EVENTS_OF_A_USER)],
        },
        "users": {"user_id": list(users), "country": ["SE", "FR"] * (len(users) // 2)},
        "items": {
            "item_id": [item for row, item in enumerate(items) if row != UNLISTED_ITEM],
            "title": [f"Title {row}" for row in range(len(items)) if row != UNLISTED_ITEM],
            "genre": [f"g{row % 4}" for row in range(len(items)) if row != UNLISTED_ITEM],
        },
    }
    for name, columns in tables.items():
        pa.csv.write_csv(
            pa.table(columns),
            folder / f"{name}.csv",
            pa.csv.WriteOptions(quoting_style="none"),
        )
    paths = [f"data.{name}={folder / name}.csv" for name in tables]
    return ["data=tables", *paths, "data.columns.user_id=visitor", "split=leave_one_out"]


@pytest.fixture(scope="session")
def csv_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Retrieval alone, from CSV; ids are the largest integers and text that looks like numbers."""
    work = tmp_path_factory.mktemp("csv")
    data = write_tables(work, BIG_USERS, TEXT_ITEMS)
    run = train_tiny(work, data, "stages=[retrieval]")
    return TinyRun(work=work, run=run, bundle=export_tiny(work, run))


@pytest.fixture(scope="session")
def click_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Ranking alone, from a flat click table with a split and no users, items and times."""
    work = tmp_path_factory.mktemp("clicks")
    rng = np.random.default_rng(0)
    table = {
        "site": [f"s{n}" for n in rng.integers(0, 5, 400)],
        "price": rng.normal(size=400),
        "click": (rng.random(400) < 0.3).astype(np.int64),
        "split": ["train"] * 300 + ["validation"] * 50 + ["test"] * 50,
    }
    pa.csv.write_csv(pa.table(table), work / "clicks.csv")
    data = ["data=impressions", f"data.interactions={work}/clicks.csv", "data.label.column=click"]
    data += ["data.context=[site,price]", "split=given", "stages=[ranking]"]
    run = train_tiny(work, data)
    return TinyRun(work=work, run=run, bundle=export_tiny(work, run))
