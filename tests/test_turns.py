"""Benchmarks that take turns, step by step."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"
STEPS = """
import json, os, sys
sys.path.append({speed!r})
from turns import end_step
with open({log!r} + "." + {name!r}, "w") as file:
    file.write(str(os.getpid()))
for step in range({steps}):
    with open({log!r}, "a") as log:
        log.write("{name}")
    end_step()
print("a line before")
print(json.dumps({{"name": {name!r}}}))
{then}
"""


@pytest.fixture
def turns():
    spec = importlib.util.spec_from_file_location("turns", SPEED / "turns.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(log: Path, name: str, steps: int, then: str = "") -> list[str]:
    script = STEPS.format(speed=str(SPEED), log=str(log), name=name, steps=steps, then=then)
    return [sys.executable, "-c", script]


def test_processes_take_a_step_in_turn(turns, tmp_path: Path) -> None:
    log = tmp_path / "log"
    steps = {"a": 3, "b": 5, "c": 2}

    found = turns.take_turns(
        {name: command(log, name, n) for name, n in steps.items()}, core=0, steps=1
    )

    assert found == {name: {"name": name} for name in steps}
    assert log.read_text() == "abcabcabbb"


def test_what_fails_says_why_and_leaves_no_process(turns, tmp_path: Path) -> None:
    log = tmp_path / "log"
    given = {"a": command(log, "a", 9), "b": command(log, "b", 2, then="raise OSError('broken')")}

    with pytest.raises(SystemExit, match="OSError: broken"):
        turns.take_turns(given, core=0, steps=1)

    assert log.read_text() == "ababa"
    for name in given:
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(f"{log}.{name}").read_text()), 0)


def test_what_takes_no_turns_is_told(turns) -> None:
    with pytest.raises(SystemExit, match="took no turns"):
        turns.take_turns({"a": [sys.executable, "-c", ""]}, core=0)
