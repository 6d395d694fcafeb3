"""The search for code that nobody calls finds what is planted, and leaves what a caller names."""

from __future__ import annotations

import pytest

pytest.importorskip("vulture", reason="needs the extra `dev`")

from tests import dead_code

SOURCE = """
class Tower:
    def depth(self):
        return 1

    def forgotten(self):
        return 2

    def on_start(self):
        return 3

def build():
    return Tower().depth()
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "towers.py"
    path.write_text(SOURCE)
    return path


def test_what_nobody_calls_is_found(source):
    found = dead_code.unused([source], [], [])
    assert [line.rpartition(": ")[2] for line in found] == [
        *("unused method 'forgotten'", "unused method 'on_start'", "unused function 'build'"),
    ]
    assert found[0].startswith(f"{source}:6: ")


def test_callers_and_exceptions_keep_it(source):
    found = dead_code.unused([source], ["towers.build()"], ["on_*"])
    assert [line.rpartition(": ")[2] for line in found] == ["unused method 'forgotten'"]


def test_configs_are_callers():
    names = set(dead_code.names_in_configs(dead_code.ROOT / "configs"))
    assert {"TwoTower", "full_rank", "SampledSoftmax", "SyntheticSource"} <= names
