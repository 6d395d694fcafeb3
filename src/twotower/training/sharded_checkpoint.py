"""Checkpoints of tables that are split over processes, by torch.distributed.checkpoint.

Every process writes its own rows; any number of processes reads them, each what it holds now, or
one process reads them into a model whose tables are whole, as an export needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from twotower.training.sharded_tables import ROWS, ShardedTable


def save_tables(tables: Mapping[str, ShardedTable], folder: Path) -> None:
    """Write rows and accumulators; all processes call it together.

    Args:
        tables: The tables by name.
        folder: On a file system that all processes see; must be new, as a checkpoint that is
            written over another one would be neither when the run is killed.

    Raises:
        ValueError: When the folder is there already.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already: each checkpoint of tables needs a new folder")
    dist.barrier()  # so that no process finds what another one has begun to write
    save(_state(tables), checkpoint_id=folder)


def load_tables(tables: Mapping[str, ShardedTable], folder: Path) -> None:
    """Put rows and accumulators back, on any number of processes; all call it together.

    Args:
        tables: The tables by name, as they were saved; changed in place.
        folder: What `save_tables` has written.

    Raises:
        ValueError: When names or sizes are not those that were saved.
    """
    state = _state(tables)
    sizes = {
        f"{name}.{part}": list(value.size())
        for name, parts in state.items()
        for part, value in parts.items()
    }
    _check_sizes(sizes, folder, all_of_it=True)
    load(state, checkpoint_id=folder)


def read_tables(model: nn.Module, folder: Path) -> None:
    """Put saved rows into a model whose tables are whole; needs neither processes nor TorchRec.

    Args:
        model: The model as it was before `shard_tables`; its tables are changed in place.
        folder: What `save_tables` has written.

    Raises:
        ValueError: When a table that was saved is not in the model, or is of another size.
    """
    known = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    }
    saved = {key.removesuffix(f".{ROWS}") for key in _saved_sizes(folder) if key.endswith(ROWS)}
    state = {name: {ROWS: known[name].weight.data} for name in sorted(saved & known.keys())}
    sizes = {f"{name}.{ROWS}": list(parts[ROWS].shape) for name, parts in state.items()}
    _check_sizes(sizes, folder, all_of_it=False)
    with warnings.catch_warnings():  # it says that it is one process, which is what was asked for
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(state, checkpoint_id=folder, no_dist=True)


def _state(tables: Mapping[str, ShardedTable]) -> dict[str, Any]:
    return {name: table.state() for name, table in tables.items()}


def _saved_sizes(folder: Path) -> dict[str, list[int]]:
    """Sizes of what a checkpoint holds, by key."""
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {key: list(getattr(value, "size", ())) for key, value in found.items()}


def _check_sizes(sizes: Mapping[str, list[int]], folder: Path, *, all_of_it: bool) -> None:
    """Refuse a checkpoint of other tables."""
    saved = _saved_sizes(folder)
    wanted = {key for key in saved if all_of_it or key.endswith(f".{ROWS}")}
    problems = [
        f"{key} is {saved.get(key, 'missing')} there and {sizes.get(key, 'missing')} in the model"
        for key in sorted(wanted | sizes.keys())
        if saved.get(key) != sizes.get(key)
    ]
    if problems:
        raise ValueError(f"{folder} holds other tables:\n" + "\n".join(problems))
