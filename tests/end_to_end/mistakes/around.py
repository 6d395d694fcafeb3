"""What is taken away from the process of a command: disk, rights, memory, packages, a GPU.

Everything here is called in a process of its own, which ends afterwards. Where the machine does not
allow it, `OSError` says so and the test is skipped.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

NEW_MOUNTS, PRIVATE, READ_ONLY = 0x00020000, (1 << 18) | 16384, 1
CAPABILITIES = 0x20080522  # version 3 of the interface
PASSES_OVER_RIGHTS = (1, 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
SYSTEM = ctypes.CDLL(None, use_errno=True)


def _done(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass(frozen=True)
class SmallDisk:
    """A disk of its own in a folder, seen by this process alone.

    Args:
        folder: Below the working folder.
        size: As `mount` takes it.
        read_only: Whether nothing may be written.
    """

    folder: str
    size: str = "1m"
    read_only: bool = False

    def __call__(self, work: Path) -> None:
        """Mount it."""
        target = work / self.folder
        target.mkdir(exist_ok=True)
        _done(SYSTEM.unshare(NEW_MOUNTS))
        _done(SYSTEM.mount(b"none", b"/", None, PRIVATE, None))
        flags, options = READ_ONLY * self.read_only, f"size={self.size}".encode()
        _done(SYSTEM.mount(b"tmpfs", str(target).encode(), b"tmpfs", flags, options))


@dataclass(frozen=True)
class ShortFiles:
    """No file may be longer; what the file system says is what it says of a full one."""

    num_bytes: int

    def __call__(self, work: Path) -> None:
        """Set the limit."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, self.num_bytes))


@dataclass(frozen=True)
class LittleMemory:
    """So much memory beside what the process has."""

    num_bytes: int

    def __call__(self, work: Path) -> None:
        """Set the limit."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + self.num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@dataclass(frozen=True)
class NoRights:
    """A folder in which this user may not write, also as root."""

    folder: str

    def __call__(self, work: Path) -> None:
        """Take the rights away, and from root that of passing over them."""
        (work / self.folder).mkdir(exist_ok=True)
        (work / self.folder).chmod(0o555)
        header = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)
        sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, low half then high half
        _done(SYSTEM.capget(header, sets))
        for capability in PASSES_OVER_RIGHTS:
            sets[0] &= ~(1 << capability)
        _done(SYSTEM.capset(header, sets))


@dataclass(frozen=True)
class Without:
    """Packages that are not installed."""

    names: tuple[str, ...]

    def __call__(self, work: Path) -> None:
        """Hide them from every finder, and forget what had imported them."""
        hidden: Any = [_Hiding(finder, self.names) for finder in sys.meta_path]
        sys.meta_path[:] = hidden
        _forget((*self.names, "twotower", "hydra_plugins"))


@dataclass(frozen=True)
class _Hiding:
    finder: Any
    names: tuple[str, ...]

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in self.names:
            return None
        found: ModuleSpec | None = self.finder.find_spec(name, path, target)
        return found

    def find_distributions(self, *context: Any) -> Any:
        return getattr(self.finder, "find_distributions", lambda *context: ())(*context)

    def invalidate_caches(self) -> None:
        getattr(self.finder, "invalidate_caches", lambda: None)()


@dataclass(frozen=True)
class FaissOfAnotherCuda:
    """A build of FAISS whose libraries are not there."""

    def __call__(self, work: Path) -> None:
        """Put a package in its place whose loading ends as that of the real one."""
        package = work / "site" / "faiss"
        package.mkdir(parents=True)
        text = "libcublas.so.12: cannot open shared object file: No such file or directory"
        (package / "__init__.py").write_text(f"raise ImportError({text!r}, name='_swigfaiss')\n")
        sys.path.insert(0, str(package.parent))
        _forget(("faiss", "twotower"))


@dataclass(frozen=True)
class FaissWithoutGpu:
    """A GPU build of FAISS on a machine without a GPU."""

    def __call__(self, work: Path) -> None:
        """Let it say that it could use one, and that there is none."""
        from twotower.index.faiss_library import faiss

        faiss.StandardGpuResources = SimpleNamespace
        faiss.get_num_gpus = lambda: 0


def _forget(names: Sequence[str]) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in names:
            del sys.modules[name]
