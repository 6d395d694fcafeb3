"""Where a process stands among those that were started together, and how they find each other.

``torchrun`` says so in the environment (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR, MASTER_PORT), and so does the command when it starts the others itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning_fabric.plugins import ClusterEnvironment
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from twotower.training.distributed import DistributedRanks

# Others wait while the first one prepares data; that a process is gone is noticed anyway.
PATIENCE = timedelta(days=7)
ADDRESS = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A process among others.

    Args:
        rank: Its number, from 0.
        size: How many there are.
        local_rank: Its number on its machine.
        local_size: How many there are on each machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @staticmethod
    def of_environment() -> Place | None:
        """What the environment says; None when nothing was started together."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        if any(name not in os.environ for name in names):
            return None
        rank, size, local_rank, local_size, _ = (int(os.environ[name]) for name in names)
        return Place(rank=rank, size=size, local_rank=local_rank, local_size=local_size)

    @staticmethod
    def first_of(size: int) -> Place:
        """The first of some processes on this machine."""
        return Place(rank=0, size=size, local_rank=0, local_size=size)

    def environment(self, port: int) -> dict[str, str]:
        """What the environment of the process must say."""
        numbers = {
            **{"RANK": self.rank, "WORLD_SIZE": self.size},
            **{"LOCAL_RANK": self.local_rank, "LOCAL_WORLD_SIZE": self.local_size},
            "MASTER_PORT": port,
        }
        return {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": ADDRESS}


def store_of_environment(place: Place) -> Store:
    """The store through which processes find each other, and are told what to do."""
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ.get("MASTER_ADDR", ADDRESS),
        int(os.environ["MASTER_PORT"]),
        is_master=place.rank == 0 and not of_agent,
        wait_for_workers=False,
        timeout=PATIENCE,
    )
    # A restarted run must not read what was said to the one before it.
    return PrefixStore(f"twotower-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def own_store() -> tuple[Store, int]:
    """A store on a free port of this machine."""
    store = TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    return PrefixStore("twotower-0", store), store.port


def connect(place: Place, store: Store, device: torch.device) -> DistributedRanks:
    """Join the others, or stay with them.

    Args:
        place: Of this process.
        store: Of all of them.
        device: What this process trains on.
    """
    if dist.is_initialized():
        return DistributedRanks(local_size=place.local_size)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.size, timeout=PATIENCE
    )
    return DistributedRanks(local_size=place.local_size)


class StartedTogether(ClusterEnvironment):
    """What Lightning is told of processes that are connected already.

    Args:
        ranks: The processes.
    """

    creates_processes_externally = True
    main_address = ADDRESS
    main_port = 0

    def __init__(self, ranks: DistributedRanks) -> None:
        self.ranks = ranks

    @staticmethod
    def detect() -> bool:
        """Never: it is given."""
        return False

    def world_size(self) -> int:
        """How many processes there are."""
        return self.ranks.size

    def set_world_size(self, size: int) -> None:
        """It is known."""

    def global_rank(self) -> int:
        """Number of this process."""
        return self.ranks.rank

    def set_global_rank(self, rank: int) -> None:
        """It is known."""

    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self.ranks.rank % self.ranks.local_size

    def node_rank(self) -> int:
        """Number of its machine."""
        return self.ranks.rank // self.ranks.local_size
