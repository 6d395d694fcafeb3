"""What Hydra itself may be told by configs: nothing that runs code of somebody else's choice.

An experiment is a file that may come from anybody, and what it writes below ``hydra`` reaches
Hydra before any job begins: callbacks, launchers and sweepers are built from it, and Python's
logging calls whatever class or factory it names.
"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from twotower.config_check import as_plain
from twotower.config_types import TARGET, UNKNOWN

PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
BUILT, LOGGING = ("callbacks", "launcher", "sweeper"), ("hydra_logging", "job_logging")
LOGGING_CLASSES = (
    *("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter"),
    *("logging.handlers.RotatingFileHandler", "logging.handlers.TimedRotatingFileHandler"),
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
FILENAME = "filename"  # of a log: in the run folder, which is not known yet


def hydra_problems(hydra: DictConfig) -> list[str]:
    """What of Hydra's own part of a config is refused.

    Args:
        hydra: The part.

    Returns:
        One sentence each, beginning with the path of the key.
    """
    problems = []
    for part in (*BUILT, *LOGGING):
        plain = as_plain(hydra[part], "", [])
        for path, key, value in _leaves(plain, f"hydra.{part}", part):
            if problem := _problem(key, value, logs=part in LOGGING):
                problems.append(f"`{path}`: {problem}")
    problems += [f"`hydra.job.env_set.{k}`: set it in the environment" for k in hydra.job.env_set]
    return problems


def _problem(key: str, value: object, *, logs: bool) -> str | None:
    """What is wrong with a value."""
    if value is UNKNOWN:
        return None if logs and key == FILENAME else "must be written out"
    text = str(value)
    if key == TARGET and not text.startswith(PLUGINS):
        return f"must be a plugin of Hydra, {' or '.join(PLUGINS)}*, got {text}"
    if logs and key == "class" and text not in LOGGING_CLASSES:
        return f"must be one of {', '.join(LOGGING_CLASSES)}, got {text}"
    if logs and key == "()":
        return f"a factory may not be named, got {text}"
    if logs and text.startswith("ext://") and text not in STREAMS:
        return f"must be one of {', '.join(STREAMS)}, got {text}"
    return None


def _leaves(value: object, path: str, key: str) -> Iterator[tuple[str, str, object]]:
    """Path, last key and value of everything that is no list and no dict."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(child, f"{path}.{name}", str(name))
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(child, path, key)
    else:
        yield path, key, value
