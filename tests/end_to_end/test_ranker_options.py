"""The ranker with its options switched on, from training to a list."""

from __future__ import annotations

from pathlib import Path

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
