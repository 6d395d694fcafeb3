"""One way to run every command: compose, check, run, exit status.

=====  ==============================================================
0      done
1      unexpected error, with a traceback
2      bad configuration or input, or a machine that is too small, with one message
3      a gate or an alert said no (`Refused`)
130    interrupted from the keyboard
=====  ==============================================================

Hydra runs the command (``--help``, ``--cfg job``, ``--multirun``), but only after the config has
been composed and checked here, so that a mistake leaves no run folder behind; neither does bad
input that shows before the work has begun. Nothing heavy is imported before that: ``--help``
answers at once.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override

from twotower.config import VERSION_BASE, ConfigError, Refused, check, compose, config_dir
from twotower.config_compose import first_values, with_params

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What is known only when a training run is put together: features, widths, and the folder.
TRAINING_NEEDS = (
    "inputs", "width", "input_width", "output_width", "num_tasks", "cross", "deep", "params", "lr",
    "output_dir",
)  # fmt: skip

DONE, UNEXPECTED, BAD_INPUT, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130

# Errors that came of another process that is gone. Their frames hold connections with it, whose
# threads may be waiting for Python's lock; to free those waits for the threads, under that lock.
# With such an error a command leaves at once and frees nothing.
never_freed: list[BaseException] = []

# Hydra's switch for complete tracebacks; where a user has set it, bad input shows one too.
FULL_ERROR = "HYDRA_FULL_ERROR"


@dataclass(frozen=True)
class Failed:
    """What a job of a sweep returns instead of its result.

    Args:
        reason: One line. Not the error itself, which would keep a model in memory.
    """

    reason: str


def run_command(
    config_name: str,
    function: Callable[[DictConfig], object],
    argv: Sequence[str] | None = None,
    *,
    needs: Collection[str] = (),
    prelude: Collection[str] = (),
    unused: Collection[str] = (),
    loads: Sequence[str] = (),
) -> int:
    """Run a command and say how it ended.

    Args:
        config_name: Name of the primary config.
        function: The command; called with the composed config, once for every job of a sweep.
        argv: Arguments without the program's name; those of the process by default.
        needs: Names of arguments that `function` passes to `build`, so that YAML need not.
        prelude: What `function` writes into the run folder before its work begins; bad input takes
            away a folder that holds no more than that.
        unused: Fields of the config that `function` builds nothing of; they are not checked, so
            that what they name need not be imported.
        loads: Modules that take long to import and that every call of the command needs. A
            terminal shows a bar meanwhile.

    Returns:
        The exit status; see the table of this module.
    """
    with_traceback = os.environ.get(FULL_ERROR) == "1"
    given = sys.argv[1:] if argv is None else argv
    # `quiet` is a field of every command; `+quiet=true` is how Hydra users write a switch.
    arguments = ["quiet=" + a[7:] if a.startswith("+quiet=") else a for a in given]
    outcomes = [DONE]
    own_argv = sys.argv

    # Hydra names the job and its log after the module of the function it finds under the wrapper.
    @functools.wraps(function)
    def job(cfg: DictConfig) -> object:
        sys.argv = own_argv  # The processes of other GPUs are started with these.
        try:
            return function(cfg)
        except Exception as error:
            from twotower.cli.failures import sentence

            outcomes.append(report(error, with_traceback=with_traceback))
            if outcomes[-1] == BAD_INPUT and cfg.get("resume") is None:
                _remove_unused_folder(prelude)
            message = sentence(error) or type(error).__name__
            return Failed(message if outcomes[-1] == BAD_INPUT else repr(error))

    try:
        options = _options(arguments)
        if options.help:
            from twotower.cli.help import help_text

            print(help_text(config_name, options.overrides, options.config_dir))
            return DONE
        _check_jobs(config_name, options, needs, unused, loads)
        flags = [a for a in arguments if a not in options.overrides]
        sys.argv = [own_argv[0], *options.overrides, *flags]  # Hydra wants the overrides together.
        with env_override({FULL_ERROR: "1"}):  # Hydra shall raise instead of reporting.
            hydra.main(str(config_dir()), config_name, VERSION_BASE)(job)()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        outcomes.append(report(error, with_traceback=with_traceback))
    finally:
        sys.argv = own_argv
    if never_freed:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(max(outcomes))
    return max(outcomes)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's own switches, and the overrides.

    Raises:
        ConfigError: When there is no such switch, or one lacks its value.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        options, unknown = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError([str(error)]) from error
    if unknown:
        raise ConfigError(
            [
                f"`{', '.join(unknown)}`: no such switch; settings have no dashes and are given as "
                "key=value, such as seed=3; --help shows them all"
            ]
        )
    return options


def _check_jobs(
    config_name: str,
    options: argparse.Namespace,
    needs: Collection[str],
    unused: Collection[str],
    loads: Sequence[str],
) -> None:
    """Compose and check every job, before Hydra makes a folder for the first."""
    if options.hydra_help or options.info or options.shell_completion:
        return
    if options.config_path or options.experimental_rerun:
        raise ConfigError(
            ["--config-path and --experimental-rerun are not supported; --config-dir adds a folder"]
        )
    name, jobs = options.config_name or config_name, [options.overrides]
    if options.multirun:
        first = next(first_values(options.overrides))
        cfg = compose(name, first, extra_dir=options.config_dir, with_hydra=True)
        jobs = [*first_values(with_params(cfg.hydra.sweeper.params or {}, options.overrides))]
    for number, overrides in enumerate(jobs):
        cfg = compose(name, overrides, extra_dir=options.config_dir, with_hydra=True)
        if not options.cfg:
            if loads and number == 0:
                from twotower.cli.loading import load

                load(config_name, loads, quiet=cfg.get("quiet", False))
            check(cfg, needs, unused=unused)


def _remove_unused_folder(prelude: Collection[str]) -> None:
    """Remove the folder of a job in which no work was done, and parents that are empty then."""
    hydra_cfg = HydraConfig.get()
    folder, here = Path(hydra_cfg.runtime.output_dir).resolve(), Path.cwd()
    if folder == here:  # The command has no run folder.
        return
    expected = {*prelude, hydra_cfg.output_subdir, f"{hydra_cfg.job.name}.log"}
    if {path.name for path in folder.iterdir()} <= expected:
        shutil.rmtree(folder)
        for parent in folder.parents:
            if here not in parent.parents or any(parent.iterdir()):
                break
            parent.rmdir()


def report(error: BaseException, *, with_traceback: bool = False) -> int:
    """Tell the user what went wrong and return the exit status that says so.

    Args:
        error: What was raised.
        with_traceback: Whether bad input has a traceback too.
    """
    if isinstance(error, SystemExit):
        # Lightning turns an interrupt into an exit.
        interrupted = isinstance(error.__context__, KeyboardInterrupt)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        return INTERRUPTED if interrupted else status
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    from twotower.cli.failures import sentence  # It loads Arrow, which help does without.

    message = sentence(error)
    if with_traceback or message is None:
        traceback.print_exception(error)
    if message is None:
        return UNEXPECTED
    print(f"{'refused' if isinstance(error, Refused) else 'error'}: {message}", file=sys.stderr)
    return REFUSED if isinstance(error, Refused) else BAD_INPUT
