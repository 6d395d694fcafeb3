"""The split tables of a run: trained with its model, kept beside its checkpoints, made whole after.

A checkpoint of the model names the folder that its tables were saved to, ``tables-<step>``. A
folder that no checkpoint names any more is removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import HashStore  # type: ignore[attr-defined]

from twotower.training.processes import Place, connect
from twotower.training.sharded_checkpoint import load_tables, read_tables, save_tables
from twotower.training.sharded_tables import ShardedTable, shard_tables

# The key of a checkpoint under which it names its folder of tables.
TABLES = "tables"


class SplitTables:
    """The tables of a task, split over the processes; all processes call every method together.

    Args:
        task: The same in all processes, its tables whole; changed in place.
        device: Where this process trains.
        checkpoints: The files that may name a folder of tables; folders lie beside them.
    """

    def __init__(
        self, task: nn.Module, *, device: torch.device, checkpoints: Sequence[Path]
    ) -> None:
        if not dist.is_initialized():  # one process, of a run that several may go on with
            connect(Place.first_of(1), HashStore(), device)
        self.tables = shard_tables(task, device=device)
        self.checkpoints = tuple(checkpoints)
        self.folder = self.checkpoints[0].parent
        self._saved = ""

    def save(self, step: int) -> str:
        """Write the tables as they are after so many steps.

        Returns:
            Name of their folder.
        """
        name = f"{TABLES}-{step}"
        if name != self._saved:  # else another checkpoint of the same step has saved them
            self.clear()
            save_tables(self.tables, self.folder / name)
            self._saved = name
        return name

    def load(self, name: str) -> None:
        """Put the tables back."""
        load_tables(self.tables, self.folder / name)
        self._saved = name

    def clear(self) -> None:
        """Remove the folders that no checkpoint names."""
        if dist.get_rank() == 0:
            named = {name_of_tables(path) for path in self.checkpoints if path.is_file()}
            for folder in self.folder.glob(f"{TABLES}-*"):
                if folder.name not in named:
                    shutil.rmtree(folder)
        dist.barrier()

    def forget(self, last: Path) -> None:
        """Remove all folders, and the checkpoint that a finished run is not resumed from."""
        if dist.get_rank() == 0:
            last.unlink(missing_ok=True)
        self.clear()

    def make_whole(self, task: nn.Module, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Let the task have whole tables again, on the CPU.

        Args:
            task: The task; changed in place.
            checkpoint: Of its model; names the folder of its tables, or has them.

        Returns:
            A checkpoint that has them.
        """
        for table in self.tables.values():
            whole = nn.Embedding(
                table.num_embeddings, table.embedding_dim, padding_idx=table.padding_idx
            )
            whole.sparse = True
            _replace(task, table, whole)
        if TABLES not in checkpoint:
            return checkpoint
        read_tables(task, self.folder / checkpoint[TABLES])
        dist.barrier()  # so that no process removes what another one still reads
        state = {**task.state_dict(), **checkpoint["state_dict"]}
        return {**{k: v for k, v in checkpoint.items() if k != TABLES}, "state_dict": state}


def name_of_tables(path: Path) -> str:
    """Name of the folder of tables that a checkpoint asks for; empty when it has them itself."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    name: str = checkpoint.get(TABLES, "")
    return name


def _replace(task: nn.Module, table: ShardedTable, whole: nn.Embedding) -> None:
    for parent in list(task.modules()):
        for name, child in list(parent._modules.items()):
            if child is table:
                setattr(parent, name, whole)
