"""The figures that people read are those that were kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_results_are_rendered_from_what_was_kept() -> None:
    spec = importlib.util.spec_from_file_location("render", BENCHMARKS / "render.py")
    assert spec is not None
    assert spec.loader is not None
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    assert (BENCHMARKS / "RESULTS.md").read_text() == render.document(), (
        "run python benchmarks/render.py"
    )
