"""Processes on one core that take turns of a few steps of training, so that noise falls on all.

A process ends its turn by stopping itself; the driver lets the next one run until it stops. What
else the machine does for some seconds or minutes is then within the steps of every process, where
runs one after the other would each have weather of its own. A turn begins with cold caches, and so
has more than a step.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import count
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

TAKE_TURNS = "TAKE_TURNS"  # how many steps a turn has; the first has one, until all have begun
STEPS = 5
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

Command = list[str]


_steps = count()


def end_step() -> None:
    """At the end of a step, after its clock was read: after the last of a turn wait for the next.

    Nothing happens in a process that no driver has started.
    """
    steps_of_turn = int(os.environ.get(TAKE_TURNS, 0))
    if steps_of_turn and next(_steps) % steps_of_turn == 0:
        os.kill(os.getpid(), signal.SIGSTOP)


class Runner(NamedTuple):
    """A process and the files that it prints to."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]
    errors: IO[bytes]

    def has_stopped(self) -> bool:
        """Wait until it has ended its turn; False where it has ended altogether."""
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode:
            sys.exit(f"{self.process.args} failed:\n{printed(self.errors)[-2000:]}")
        return False


def take_turns(
    commands: Mapping[str, Command], core: int, steps: int = STEPS
) -> dict[str, dict[str, Any]]:
    """Run all commands on a core, each in one thread, in turns of some steps.

    Args:
        commands: Command lines by name. Each calls `end_step` after every step and prints a line of
            JSON last.
        core: Which core.
        steps: How many a turn has.

    Returns:
        The JSON of each, by name.
    """
    runners: dict[str, Runner] = {}
    with ExitStack() as ends:
        for name, command in commands.items():
            output, errors = (ends.enter_context(TemporaryFile()) for _ in range(2))
            process = ends.enter_context(
                subprocess.Popen(
                    ["taskset", "-c", str(core), *command],
                    env=os.environ | ONE_THREAD | {TAKE_TURNS: str(steps)},
                    stdout=output,
                    stderr=errors,
                )
            )
            ends.callback(process.kill)
            runners[name] = Runner(process, output, errors)
            if not runners[name].has_stopped():
                sys.exit(f"{process.args} took no turns.")
        waiting = [*runners.values()]
        while waiting:
            for runner in [*waiting]:
                runner.process.send_signal(signal.SIGCONT)
                if not runner.has_stopped():
                    waiting.remove(runner)
        last_lines = {n: printed(r.output).strip().splitlines()[-1] for n, r in runners.items()}
    return {name: json.loads(line) for name, line in last_lines.items()}


def printed(file: IO[bytes]) -> str:
    """All that a process has printed to a file."""
    file.seek(0)
    return file.read().decode(errors="replace")
