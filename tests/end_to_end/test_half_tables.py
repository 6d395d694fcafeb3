"""Tables in bfloat16 from the config to a list: as good as float32 ones, in half the memory."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from tests.conftest import TINY_WORLD, export_tiny, train_tiny
from twotower.cli.load_run import load_run
from twotower.cli.recommend import recommend
from twotower.config import compose
from twotower.export import manifest as names
from twotower.export.bundle import open_bundle
from twotower.models import embedding
from twotower.training.optimizers import split_parameters

LARGER = (
    *("data.num_users=400", "data.num_items=200", "data.slates_per_user=8"),
    *("models.retrieval.dim=64", "models.retrieval.embedding_dim=32"),
    *("training.retrieval.max_epochs=6", "training.retrieval.batch_size=256"),
)
HALF = "trainer.table_precision=bfloat16"
STAGES = ("retrieval", "ranking")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with each kind of tables, whose gradients are sparse, and one with dense gradients."""
    work = tmp_path_factory.mktemp("half")
    found = {"dense": train_tiny(work, TINY_WORLD, *LARGER, HALF)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "MIN_SPARSE_ROWS", 0)
        found["half"] = train_tiny(work, TINY_WORLD, *LARGER, HALF)
        found["whole"] = train_tiny(work, TINY_WORLD, *LARGER)
    return found


def metrics(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return found


@pytest.mark.parametrize("run", ["half", "dense"])
def test_they_are_as_good_as_float32_ones(runs: dict[str, Path], run: str) -> None:
    whole, half = metrics(runs["whole"]), metrics(runs[run])
    for figure in ("retrieval/test/recall@20", "retrieval/test/ndcg@20"):
        assert whole[f"{figure}/low"] < half[figure] < whole[f"{figure}/high"], figure
    assert half["retrieval/test/recall@20"] > half["popularity/test/recall@20"]
    assert half["ranking/test/auc"] == pytest.approx(whole["ranking/test/auc"], abs=0.01)
    best = [
        json.loads((runs[name] / "retrieval" / "finished.json").read_text())["best"]
        for name in (run, "whole")
    ]
    assert best[0] == pytest.approx(best[1], rel=0.05)
    assert half != whole


def test_checkpoints_hold_them_in_half_the_bytes(runs: dict[str, Path]) -> None:
    for stage in STAGES:
        sizes = {}
        for name in ("half", "whole"):
            path = runs[name] / stage / "best.ckpt"
            weights = torch.load(path, weights_only=True)["state_dict"]
            tables = [weight for key, weight in weights.items() if ".tables." in key]
            others = {w.dtype for key, w in weights.items() if ".tables." not in key}
            assert others <= {torch.float32, torch.int64}
            sizes[name] = sum(table.nbytes for table in tables)
        assert 2 * sizes["half"] == sizes["whole"] > 0


def test_a_run_read_back_has_them(runs: dict[str, Path]) -> None:
    for name, dtype in (("half", torch.bfloat16), ("whole", torch.float32)):
        run = load_run(runs[name])
        for model in (run.two_tower, run.ranker):
            assert model is not None
            assert {table.dtype for table in split_parameters(model)[0]} == {dtype}


def test_exported_models_keep_them_and_say_the_same(runs: dict[str, Path]) -> None:
    """The gate of the export compares ONNX with torch, to 1e-5.

    A ranker of 8-bit integers, which is made of the exported one, reads such tables too.
    """
    bundle = export_tiny(runs["half"].parents[2], runs["half"], "ranker_precision=int8")
    folder = open_bundle(bundle).folder
    for name in (names.QUERY_TOWER, names.ITEM_TOWER, names.RANKER):
        held = onnx.load(folder / name).graph.initializer
        tables = [each for each in held if ".tables." in each.name]
        assert tables
        assert {each.data_type for each in tables} == {onnx.TensorProto.BFLOAT16}
    items = recommend(
        compose("recommend", [f"bundle={bundle}", "user=u000007", "k=5", "quiet=true"])
    )
    assert len({item.item_id for item in items}) == 5
