"""The ranker with its options switched on, from training to a list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import TINY_WORLD, export_tiny, train_tiny
from twotower.cli.recommend import recommend
from twotower.config import compose


def test_from_gates_and_target_attention_to_recommendations(tmp_path: Path) -> None:
    further = [
        "models/ranking=dcn_gated",
        "models/ranking/history=target_attention",
        "models.ranking.retrieval_rank=true",
    ]
    run = train_tiny(tmp_path, TINY_WORLD, *further)
    bundle = export_tiny(tmp_path, run)  # the gate compares ONNX with torch
    items = recommend(
        compose("recommend", [f"bundle={bundle}", "user=u000007", "k=5", "quiet=true"])
    )
    assert len({item.item_id for item in items}) == 5
    assert all(0 < item.probability < 1 for item in items)


def test_probabilities_mean_what_they_say_after_sampling_at_one_in_twenty(tmp_path: Path) -> None:
    """The test part is whole: without the undoing predictions would be near 3/4, not 1/8.

    Chance alone makes 20 groups of 100 rows differ from their rate by 0.026 on average.
    """
    further = [
        *("stages=[ranking]", "training/examples=impressions", "training/calibration=none"),
        *("data.num_users=600", "training.examples.negative_rate=0.05"),
        *("training.ranking.max_epochs=5", "training.ranking.batch_size=64"),
        "features.retrieval_only=[user_id,item_id]",
    ]
    run = train_tiny(tmp_path, TINY_WORLD, *further)
    metrics = json.loads((run / "metrics.json").read_text())
    state = json.loads((run / "ranker.json").read_text())
    assert state["calibration"]["negative_rate"] == pytest.approx(0.05, abs=0.001)
    assert metrics["ranking/test/positive_rate"] < 0.2
    assert metrics["ranking/test/calibration_error"] < 0.06
