"""The exported models say what the trained ones say, under the names of the features."""

from __future__ import annotations

import gc
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from twotower.export.build import ExportParts, ExportResult
from twotower.export.golden import Pairs
from twotower.export.onnx import export_item_tower, export_query_tower, export_ranker, parity
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import FeatureInput, ModelInputs
from twotower.losses.calibration import Calibration
from twotower.models.cross import mixture
from twotower.models.dcn import DCNv2, Parallel
from twotower.models.history import RecentAndMean
from twotower.models.mlp import MLP

# Not in alphabetical order, and with names that are hard to handle.
FEATURES = (
    FeatureInput(name="zone", side="context", kind="categorical", dim=0, num_rows=4, width=0),
    FeatureInput(name="type", side="item", kind="tags", dim=0, num_rows=6, width=2),
    FeatureInput(name="a.b", side="user", kind="numeric", dim=0, num_rows=0, width=2),
    FeatureInput(name="item id", side="item", kind="id", dim=3, num_rows=60_000, width=0),
    FeatureInput(name="image", side="item", kind="vector", dim=0, num_rows=0, width=13),
    FeatureInput(name="hour", side="context", kind="time", dim=0, num_rows=0, width=4),
)
INPUTS = ModelInputs(
    features=FEATURES, history_length=13, history_features=("item id", "type", "image")
)


def random_inputs(inputs: ModelInputs, num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    state = torch.Generator().manual_seed(seed)

    def column(feature: FeatureInput, *leading: int) -> Tensor:
        shape = (*leading, feature.width) if feature.width else leading
        if feature.num_rows:
            return torch.randint(feature.num_rows, shape, generator=state)
        return torch.randn(shape, generator=state)

    columns = {f.name: column(f, num_rows) for f in inputs.features}
    length = inputs.history_length
    columns |= {f"history.{f.name}": column(f, num_rows, length) for f in inputs.history()}
    first = torch.randint(length + 1, (num_rows, 1), generator=state)
    columns["history.mask"] = torch.arange(length) >= first
    columns["retrieval_score"] = torch.randn(num_rows, generator=state)
    columns["retrieval_rank"] = torch.randint(1, 200, (num_rows,), generator=state).float()
    return columns


def random_pairs(inputs: ModelInputs, num_queries: int, num_pairs: int, seed: int = 0) -> Pairs:
    """Queries with candidates; a query may have none, and their order is any."""
    of_items = {f.name for f in inputs.of("item")} | {"retrieval_score", "retrieval_rank"}
    queries = random_inputs(inputs, num_queries, seed)
    candidates = random_inputs(inputs, num_pairs, seed + 1)
    state = torch.Generator().manual_seed(seed)
    return Pairs(
        queries={name: column for name, column in queries.items() if name not in of_items},
        candidates={name: column for name, column in candidates.items() if name in of_items},
        owners=torch.randint(num_queries, (num_pairs,), generator=state),
    )


def run(path: Path, columns: dict[str, Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = {node.name for node in session.get_inputs()}
    return session.run(None, {k: v.numpy() for k, v in columns.items() if k in wanted})


def names_of(path: Path) -> tuple[dict[str, str], list[str]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {node.name: node.type for node in session.get_inputs()}
    return inputs, [node.name for node in session.get_outputs()]


@pytest.mark.parametrize("num_rows", [1, 7])
def test_exported_models_equal_the_trained_ones(
    exported: ExportResult, parts: ExportParts, num_rows: int
) -> None:
    assert parts.two_tower is not None
    assert parts.ranker is not None
    pipeline: FeaturePipeline = parts.pipeline
    towers = random_inputs(pipeline.inputs("retrieval"), num_rows)
    pairs = random_pairs(pipeline.inputs("ranking"), num_rows, 3 * num_rows)
    with torch.no_grad():
        queries = parts.two_tower.embed_queries(towers).numpy()
        items = parts.two_tower.embed_items(towers).numpy()
        logits = parts.ranker(pairs.one_by_one()).numpy()
    folder = exported.folder
    np.testing.assert_allclose(run(folder / "query_tower.onnx", towers)[0], queries, atol=1e-5)
    np.testing.assert_allclose(run(folder / "item_tower.onnx", towers)[0], items, atol=1e-5)
    found_logits, probabilities = run(folder / "ranker.onnx", pairs.by_owner())
    np.testing.assert_allclose(found_logits, logits, atol=1e-5)
    # A quarter of the negatives was kept: odds of the true rate are a quarter of the odds seen.
    # Then half the logit, plus 0.3.
    odds = np.sqrt(np.exp(logits.astype(np.float64)) * 0.25) * np.exp(0.3)
    np.testing.assert_allclose(probabilities, odds / (1 + odds), atol=1e-5)


def test_inputs_and_outputs_are_called_as_the_features(exported: ExportResult) -> None:
    query, outputs = names_of(exported.folder / "query_tower.onnx")
    assert query == {
        "user_id": "tensor(int64)",
        "interests": "tensor(int64)",
        "device": "tensor(int64)",
        "timestamp": "tensor(float)",
        "history.item_id": "tensor(int64)",
        "history.image_vector": "tensor(float)",
        "history.mask": "tensor(bool)",
    }
    assert outputs == ["vector"]
    item, outputs = names_of(exported.folder / "item_tower.onnx")
    assert item.keys() == {"item_id", "category", "tags", "price", "image_vector"}
    assert outputs == ["vector"]
    ranker, outputs = names_of(exported.folder / "ranker.onnx")
    assert ranker == {
        **query,
        **item,
        "position": "tensor(int64)",
        "retrieval_score": "tensor(float)",
        "retrieval_rank": "tensor(float)",
        "owner": "tensor(int64)",
    }
    assert outputs == ["logit", "probability"]


def test_a_ranker_with_everything(tmp_path: Path) -> None:
    """Hard names, sizes that equal each other, a mixture of experts, a ranker without a score."""
    torch.manual_seed(0)
    ranker = DCNv2(
        inputs=INPUTS,
        embedding_dim=13,
        structure=Parallel,
        cross=partial(mixture, num_layers=1, rank=2, num_experts=2),
        deep=partial(MLP, hidden=[8], dropout=0.5),
        history=partial(RecentAndMean, num_recent=2),
        retrieval_score=False,
    )
    path = tmp_path / "ranker.onnx"
    export_ranker(ranker, INPUTS, path, calibration=Calibration(negative_rate=1.0))
    assert not {"retrieval_score", "retrieval_rank"} & names_of(path)[0].keys()
    assert not ranker.training
    for num_queries, num_pairs in ((1, 1), (1, 13), (13, 1), (13, 13), (4, 30)):
        pairs = random_pairs(INPUTS, num_queries, num_pairs, seed=num_pairs)
        with torch.no_grad():
            logits = ranker(pairs.one_by_one()).numpy()
        found, probabilities = run(path, pairs.by_owner())
        np.testing.assert_allclose(found, logits, atol=1e-5)
        np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_an_export_is_silent_repeatable_and_one_file(
    exported: ExportResult,
    parts: ExportParts,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    assert parts.two_tower is not None
    path = tmp_path / "again.onnx"
    gc.collect()  # what earlier tests have left may warn when it goes
    recwarn.clear()
    export_item_tower(parts.two_tower, parts.pipeline.inputs("retrieval"), path)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert list(tmp_path.iterdir()) == [path]
    content = path.read_bytes()
    assert content == (exported.folder / "item_tower.onnx").read_bytes()
    assert b".py" not in content
    onnx.checker.check_model(path, full_check=True)


def test_a_model_too_large_for_a_file_is_refused(
    parts: ExportParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {
        name: SimpleNamespace(const_value=SimpleNamespace(nbytes=2**30)) for name in ("a", "b")
    }
    program = SimpleNamespace(model=SimpleNamespace(graph=SimpleNamespace(initializers=tables)))
    monkeypatch.setattr(torch.onnx, "export", lambda *given, **options: program)
    assert parts.two_tower is not None
    inputs = parts.pipeline.inputs("retrieval")
    with pytest.raises(ValueError, match=r"query\.onnx: 2,147,483,648 bytes of weights, an ONNX"):
        export_query_tower(parts.two_tower, inputs, tmp_path / "query.onnx")
    assert not list(tmp_path.iterdir())


def test_parity_is_the_largest_difference(exported: ExportResult, parts: ExportParts) -> None:
    path = exported.folder / "ranker.onnx"
    columns = random_pairs(parts.pipeline.inputs("ranking"), 2, 4).by_owner()
    logits, probabilities = run(path, columns)
    inputs = {name: column.numpy() for name, column in columns.items()}
    shifted = probabilities.copy()
    shifted[2] += 0.25
    assert parity(path, inputs, {"logit": logits}) == 0.0
    expected = {"logit": logits, "probability": shifted}
    assert parity(path, inputs, expected) == pytest.approx(0.25, abs=1e-6)
    # Above 1 the difference is relative: 100 instead of less than 1.
    large = np.full_like(logits, 100.0)
    assert parity(path, inputs, {"logit": large}) == pytest.approx(
        max(abs(100 - value) for value in logits) / 100, abs=1e-6
    )
    shifted[0] = np.nan
    assert parity(path, inputs, {"probability": shifted}) == math.inf
