"""RecBole's side of both its scripts: its text files, its configuration, its trainer."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Clock, Run
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed

CATEGORY, NUMBER = "token", "float"
UNSPLIT = {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "RO", "group_by": "none"}


def write(path: Path, table: dict[str, np.ndarray], kinds: dict[str, str]) -> None:
    """A file of RecBole's own format: names with kinds, then rows, all split by tabs."""
    columns = [
        np.char.mod("%d" if kinds[name] == CATEGORY else "%.6g", table[name]) for name in table
    ]
    with path.open("w") as file:
        file.write("\t".join(f"{name}:{kinds[name]}" for name in table) + "\n")
        file.writelines("\t".join(row) + "\n" for row in zip(*columns, strict=True))


def train(
    run: Run,
    clock: Clock,
    model_name: str,
    tables: dict[str, tuple[dict[str, np.ndarray], dict[str, str]]],
    settings: dict[str, Any],
) -> tuple[float, float]:
    """Write the tables (by suffix of their file), read them with RecBole, and train an epoch.

    Returns:
        The processor time when the data were ready, and the mean loss of a step.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "world").mkdir()
        for suffix, (table, kinds) in tables.items():
            write(Path(folder) / "world" / f"world.{suffix}", table, kinds)
        config = Config(
            model=model_name,
            dataset="world",
            config_dict={
                "data_path": folder,
                "checkpoint_dir": folder,
                "load_col": {suffix: list(kinds) for suffix, (_, kinds) in tables.items()},
                "use_gpu": False,
                "seed": 0,
                "state": "ERROR",
                "show_progress": False,
                **settings,
            },
        )
        init_seed(config["seed"], config["reproducibility"])
        logging.disable(logging.WARNING)
        dataset = create_dataset(config)
        loader, _, _ = data_preparation(config, dataset)
        ready = time.process_time()
        model = get_model(model_name)(config, loader.dataset)
        with contextlib.chdir(folder):  # it writes where it is called
            trainer = Trainer(config, model)
        total = trainer._train_epoch(Epoch(clock, loader), 0)
    return ready, total / len(clock.ended)


class Epoch:
    """RecBole's loader with the clock around its batches, for the length of the run."""

    def __init__(self, clock: Clock, loader: Any) -> None:
        self.clock, self.loader = clock, loader
        self.shuffle = False  # only looked at to seed the sampler of a distributed run

    def __iter__(self) -> Any:
        return self.clock.batches(self.loader)
