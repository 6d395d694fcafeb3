"""The ranker with its options switched on, from training to a list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.csv
import pytest

from tests.conftest import TINY_WORLD, export_tiny, train_tiny
from twotower.cli.recommend import recommend
from twotower.config import compose
from twotower.export.bundle import open_bundle


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


@pytest.mark.parametrize("option", ["dcn", "dcn_mmoe"])
def test_two_outcomes_from_a_table_to_the_exported_ranker(option: str, tmp_path: Path) -> None:
    """Clicks follow the site, purchases the price; each head finds its own."""
    rng = np.random.default_rng(0)
    site, price = rng.integers(0, 4, 3000), rng.normal(size=3000)
    click = rng.random(3000) < np.array([0.1, 0.2, 0.4, 0.7])[site]
    bought = rng.random(3000) < 1 / (1 + np.exp(-2 * price))
    table = {
        "site": [f"s{n}" for n in site],
        "price": price,
        "click": click.astype(np.int64),
        "paid": np.where(bought, 9.5, 0.0),
        "split": ["train"] * 2000 + ["validation"] * 500 + ["test"] * 500,
    }
    pa.csv.write_csv(pa.table(table), tmp_path / "clicks.csv")
    data = ["data=impressions", f"data.interactions={tmp_path}/clicks.csv"]
    data += ["data.label.column=click", "data.label.tasks={paid: 5}"]
    data += ["data.context=[site,price]", "split=given", "stages=[ranking]"]
    further = ["training.ranking.max_epochs=8", "training.ranking.batch_size=64"]
    run = train_tiny(tmp_path, data, f"models/ranking={option}", *further)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["ranking/test/auc"] > 0.68  # of the truth about 0.76
    assert metrics["ranking/test/paid/auc"] > 0.8  # of the truth about 0.87
    assert metrics["ranking/test/paid/calibration_error"] < 0.1
    bundle = open_bundle(export_tiny(tmp_path, run))  # the gate compares all outputs with torch
    session = onnxruntime.InferenceSession(bundle.ranker, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_outputs()] == ["logit", "probability", "task.paid"]
    number = (np.array([-1.0, 0.0, 1.0]) - price[:2000].mean()) / price[:2000].std()
    columns = {
        "site": np.array([1, 1, 1]),
        "price": np.stack([number, np.zeros(3)], axis=1).astype(np.float32),
    }
    paid = session.run(["task.paid"], columns)[0]
    assert (np.diff(paid) > 0).all()
