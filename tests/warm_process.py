"""Commands in processes of their own, which start at once: forked from one that imported it all."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = [
    *(
        "torch",
        "pytorch_lightning",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "faiss",
        "pyarrow.parquet",
    ),
    *("lmdb", "tensorboard", "matplotlib.pyplot", "hydra"),
    *(
        f"twotower.cli.{name}"
        for name in ("main", "train", "export", "retrain", "batch", "prepare")
    ),
    *("twotower.cli.training_run", "twotower.cli.load_run", "twotower.cli.retraining"),
    *("twotower.export.build", "twotower.serving.batch", "twotower.serving.recommender"),
]
NOT_ALLOWED = 77
SECONDS = 120
TEXTS = ("out", "err", "files", "seconds")
PROCESS_CLOCK = 2  # of the ids that Linux gives to the clocks of processes


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        status: Its exit status; below 0 the signal that ended it.
        out: What it printed.
        err: What it said on the error stream.
        files: Names of the files below its folder, as the process itself saw them.
        seconds: Of the processor; 0 where it was ended.
    """

    status: int
    out: str
    err: str
    files: tuple[str, ...]
    seconds: float = 0.0


def warm() -> ForkServerContext:
    """Where processes come from."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # A pool of threads would not survive a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def call(
    words: Sequence[str],
    work: Path,
    around: Callable[[Path], None] | None,
    log: Path,
    *,
    deadly: float | None = None,
) -> Ended:
    """Run a command to its end, or kill it.

    Args:
        words: Its command line.
        work: The folder in which it is called.
        around: Called before, in its process.
        log: Folder, of another place, for what it says.
        deadly: Seconds of the processor after which it is killed with SIGKILL; None for never.
    """
    log.mkdir(exist_ok=True)
    process = warm().Process(target=_child, args=(list(words), str(work), around, str(log)))
    for name in TEXTS:
        (log / name).write_text("")
    process.start()
    if deadly is not None:
        _kill(process, deadly)
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    texts = {name: (log / name).read_text() for name in TEXTS}
    return Ended(
        status=int(process.exitcode or 0),
        out=texts["out"],
        err=texts["err"],
        files=tuple(texts["files"].splitlines()),
        seconds=float(texts["seconds"] or 0),
    )


def _kill(process: BaseProcess, deadly: float) -> None:
    """Send SIGKILL when the process has used so much of the processor, however busy that is."""
    clock = ((~int(process.pid or 0)) << 3) | PROCESS_CLOCK
    try:
        while process.is_alive() and time.clock_gettime(clock) < deadly:
            time.sleep(0.001)
    except OSError:  # It has ended.
        return
    process.kill()


def _child(
    words: Sequence[str], work: str, around: Callable[[Path], None] | None, log: str
) -> None:
    os.chdir(work)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{log}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    files, seconds = (os.open(f"{log}/{name}", os.O_WRONLY) for name in ("files", "seconds"))
    try:
        if around is not None:
            around(Path(work))
    except OSError as error:
        print(f"not allowed on this machine: {error}", file=sys.stderr, flush=True)
        os._exit(NOT_ALLOWED)
    from twotower.cli.main import main

    status = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    found = (path for path in sorted(Path(work).rglob("*")) if path.is_file())
    os.write(files, "\n".join(str(path.relative_to(work)) for path in found).encode())
    os.write(seconds, str(time.process_time()).encode())
    os._exit(status)
