"""The table by hand, and what a profiled run writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import TINY_WORLD, train_tiny
from twotower.training.profile import PARTS, table


def shares_of(text: str) -> dict[str, float]:
    rows = [line.split() for line in text.splitlines()[1:-1]]
    return {name: float(share.removesuffix("%")) for name, _, share in rows}


def test_table_by_hand() -> None:
    """Two steps of 400 ms with 100 ms of waiting for data each; 50 ms of a step are of no part."""
    seconds = {"data": 0.2, "lookup": 0.1, "towers": 0.2, "loss": 0.1, "backward": 0.2}
    text = table(seconds | {"optimizer": 0.1, "step": 0.8}, 2)
    assert text.splitlines()[1].split() == ["data", "100.00", "20.0%"]
    assert text.splitlines()[-2].split() == ["other", "50.00", "10.0%"]
    assert text.splitlines()[-1].split() == ["whole", "500.00"]


def test_a_profiled_run_says_where_its_steps_go(tmp_path: Path) -> None:
    run = train_tiny(
        tmp_path,
        TINY_WORLD,
        "trainer.profile=true",
        "training.retrieval.batch_size=16",
        "training.ranking.batch_size=64",
        "trainer.max_steps=35",
    )
    for stage in ("retrieval", "ranking"):
        shares = shares_of((run / stage / "profile.txt").read_text())
        assert tuple(shares) == PARTS
        assert sum(shares.values()) == pytest.approx(100, abs=1)
        assert min(shares[part] for part in PARTS if part != "other") > 0
        events = json.loads((run / stage / "trace.json").read_text())["traceEvents"]
        assert any("mm" in str(event.get("name")) for event in events)
