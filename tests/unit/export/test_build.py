"""A run to a published bundle: gates, publishing, ranking alone, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch

from tests.unit.export.conftest import make_ranker, skip_onnx
from twotower.data.prepare import prepare
from twotower.data.prepared import FEATURES_FOLDER, Prepared
from twotower.data.schema import Label, Tables
from twotower.data.split import GivenSplit
from twotower.export import build as module
from twotower.export import screen_stage
from twotower.export.build import ExportParts, ExportResult, export_bundle
from twotower.export.bundle import open_bundle
from twotower.export.gates import GateSettings
from twotower.export.manifest import BundleError
from twotower.features.infer import GivenSpec, PipelineFactory
from twotower.features.pipeline import FeaturePipeline
from twotower.features.spec import Feature, FeatureSpec, History
from twotower.index.base import NO_ITEM, SearchResult
from twotower.index.flat import Flat
from twotower.losses.calibration import Calibration
from twotower.models.cross import full_rank
from twotower.models.dcn import DCNv2, Stacked
from twotower.models.history import MeanPooling
from twotower.models.mlp import MLP

Export = Callable[..., ExportResult]
QUALITY = "retrieval/test/recall@100"


def entries(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()} - {".lock"}


def test_an_export_is_published(exported: ExportResult, parts: ExportParts) -> None:
    assert exported.published
    assert exported.previous is None
    assert [gate.name for gate in exported.gates] == [
        "index_recall", "onnx_parity", "calibration", "quality_drop",
    ]  # fmt: skip
    manifest = open_bundle(exported.folder.parent).manifest
    assert (manifest.name, manifest.version) == ("world", exported.folder.name)
    assert manifest.stages == ("retrieval", "ranking")
    assert (manifest.metric, manifest.dim, manifest.num_candidates) == ("cosine", 8, 20)
    assert manifest.calibration == {"negative_rate": 0.25, "scale": 0.5, "bias": 0.3}
    assert manifest.retrieval_score
    assert manifest.counts == {"items": 50, "users": 60, "events": manifest.counts["events"]}
    assert manifest.prepared["fingerprint"] == parts.prepared.manifest["fingerprint"]
    assert manifest.figures[QUALITY] == 0.8
    assert manifest.figures["ranking/test/log_loss"] is None
    assert manifest.figures["retrieval/index/recall"] == 1.0
    assert 0 <= manifest.figures["export/onnx/parity"] <= 1e-5
    assert [gate["name"] for gate in manifest.gates] == [gate.name for gate in exported.gates]
    assert manifest.index is not None
    assert manifest.index.startswith("flat")


def test_a_bundle_of_the_same_run_is_the_same(
    exported: ExportResult, parts: ExportParts, export: Export, tmp_path: Path
) -> None:
    again = open_bundle(export(parts, tmp_path).folder).manifest
    assert again.files == open_bundle(exported.folder).manifest.files


def test_the_next_version_takes_over(parts: ExportParts, export: Export, tmp_path: Path) -> None:
    first, second = export(parts, tmp_path), export(parts, tmp_path)
    assert second.published
    assert second.previous == first.folder.resolve()
    assert (tmp_path / "world" / "current").resolve() == second.folder.resolve()
    drop = {gate.name: gate for gate in second.gates}["quality_drop"]
    assert drop.bound == pytest.approx(0.8 * 0.98)


@pytest.mark.parametrize(
    ("name", "changes", "settings"),
    [
        ("quality_drop", {QUALITY: 0.78}, GateSettings()),
        ("quality_floor", {}, GateSettings(quality_floor=0.81)),
        ("calibration", {"ranking/test/calibration_error": 0.06}, GateSettings()),
        ("onnx_parity", {}, GateSettings(max_parity=0.0)),
    ],
)
def test_a_failed_gate_leaves_current_where_it_was(
    parts: ExportParts,
    export: Export,
    tmp_path: Path,
    name: str,
    changes: dict[str, float],
    settings: GateSettings,
) -> None:
    first = export(parts, tmp_path)
    worse = replace(parts, figures=dict(parts.figures) | changes)
    second = export(worse, tmp_path, settings)
    assert [gate.name for gate in second.gates if not gate.passed] == [name]
    assert not second.published
    assert second.previous == first.folder.resolve()
    assert (tmp_path / "world" / "current").resolve() == first.folder.resolve()
    refused = open_bundle(second.folder).manifest  # it stays, to be looked at
    assert [gate["name"] for gate in refused.gates if not gate["passed"]] == [name]


class LossyIndex:
    """Returns the best half of what is wanted."""

    description = "half of it"

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def search(self, queries: np.ndarray, k: int) -> SearchResult:
        scores = queries @ self.vectors.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows[:, k // 2 :] = NO_ITEM
        return SearchResult(rows=rows, scores=np.zeros(rows.shape, np.float32))

    def save(self, folder: Path) -> None:
        folder.mkdir()


@dataclass
class Lossy:
    """Builds it, and keeps the queries it was given."""

    queries: np.ndarray | None = None

    def build(self, vectors: np.ndarray, *, queries: np.ndarray | None = None) -> LossyIndex:
        self.queries = queries
        return LossyIndex(vectors)


def test_an_index_that_loses_half_is_not_published(
    parts: ExportParts, export: Export, tmp_path: Path
) -> None:
    builder = Lossy()
    result = export_bundle(
        parts=parts,
        root=tmp_path,
        name="world",
        index_builder=builder,
        gate_settings=GateSettings(),
        num_candidates=20,
    )
    gate = result.gates[0]
    assert (gate.name, gate.value, gate.passed) == ("index_recall", 0.5, False)
    assert not result.published
    assert entries(tmp_path / "world") == {result.folder.name}
    assert builder.queries is not None
    assert builder.queries.shape == (len(open_bundle(result.folder).golden().user_rows), 8)


def test_a_damaged_current_is_not_compared_with(
    parts: ExportParts, export: Export, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = export(parts, tmp_path)
    path = first.folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"0.8", b"0.9"))
    second = export(parts, tmp_path)
    assert second.published
    assert "no bundle is published" in second.gates[-1].note
    assert "The published bundle cannot be compared with" in caplog.text
    assert "changed since it was written" in caplog.text


def test_one_stage_alone(parts: ExportParts, export: Export, tmp_path: Path) -> None:
    alone = replace(parts, ranker=None, calibration=None)
    result = export(alone, tmp_path)
    assert result.published
    bundle = open_bundle(result.folder)
    assert bundle.manifest.stages == ("retrieval",)
    assert bundle.ranker is None
    assert bundle.golden().logits is None
    assert bundle.golden().candidates is not None


def test_models_in_training_mode_are_exported_without_dropout(
    exported: ExportResult, parts: ExportParts, export: Export, tmp_path: Path
) -> None:
    assert parts.two_tower is not None
    assert parts.ranker is not None
    parts.two_tower.train()
    parts.ranker.train()
    result = export(parts, tmp_path)
    assert open_bundle(result.folder).manifest.files == open_bundle(exported.folder).manifest.files


@dataclass(frozen=True)
class Clicks:
    """A flat click table: no users, no items, no time."""

    name: str = "clicks"

    def fingerprint(self) -> str:
        return "clicks"

    def read(self) -> Tables:
        rng = np.random.default_rng(0)
        columns = {
            "label": pa.array(rng.integers(0, 2, 300).astype(np.float32)),
            "split": pa.array(np.repeat([0, 1, 2], 100).astype(np.int8)),
            "site": pa.array(rng.choice(["a", "b", "c"], 300)),
            "price": pa.array(rng.random(300)),
        }
        return Tables(interactions=pa.table(columns), label=Label(), context=("site", "price"))


def clicks(root: Path) -> tuple[Prepared, ExportParts]:
    spec = FeatureSpec(
        features=(
            Feature(name="site", side="context", kind="categorical"),
            Feature(name="price", side="context", kind="numeric"),
        ),
        history=History(length=0),
    )
    prepared = prepare(
        source=Clicks(),
        splitter=GivenSplit(),
        encoders=PipelineFactory(provider=GivenSpec(given=spec)),
        root=root,
    )
    pipeline = FeaturePipeline.load(prepared.folder / FEATURES_FOLDER)
    ranker = DCNv2(
        inputs=pipeline.inputs("ranking"),
        embedding_dim=4,
        structure=Stacked,
        cross=lambda width: full_rank(width, num_layers=1),
        deep=lambda input_width: MLP(input_width=input_width, hidden=[8]),
        history=MeanPooling,
        retrieval_score=False,
    )
    parts = ExportParts(
        prepared=prepared,
        pipeline=pipeline,
        two_tower=None,
        ranker=ranker,
        calibration=Calibration(negative_rate=0.5),
        remove_seen=False,
        figures={"ranking/test/calibration_error": 0.01},
    )
    return prepared, parts


def test_a_flat_click_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, parts = clicks(tmp_path / "prepared")
    result = export_bundle(
        parts=parts,
        root=tmp_path,
        name="clicks",
        index_builder=Flat(device="cpu"),
        gate_settings=GateSettings(),
        num_candidates=20,
    )
    assert result.published
    assert [gate.name for gate in result.gates] == ["onnx_parity", "calibration"]
    bundle = open_bundle(result.folder)
    facts = bundle.manifest
    assert (facts.stages, facts.tower_hash, facts.num_candidates) == (("ranking",), None, None)
    assert facts.counts == {"items": None, "users": None, "events": None}
    assert (bundle.items, bundle.users, bundle.offsets, bundle.popular) == (None,) * 4
    golden = bundle.golden()
    assert (golden.user_rows, golden.history_ends, golden.candidates) == (None,) * 3
    assert golden.logits.shape == (64, 1)
    session = onnxruntime.InferenceSession(bundle.ranker, providers=["CPUExecutionProvider"])
    site = golden.context["site"].astype(np.int64)
    logits, _ = session.run(None, {"site": site, "price": golden.context["price"]})
    np.testing.assert_allclose(golden.logits[:, 0], logits, atol=1e-5)


def test_ranking_alone_where_there_are_users_and_items(
    parts: ExportParts, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter itself is left out: its parity is what the stub says."""
    ranker = DCNv2(
        inputs=parts.pipeline.inputs("ranking"),
        embedding_dim=4,
        structure=Stacked,
        cross=lambda width: full_rank(width, num_layers=1),
        deep=lambda input_width: MLP(input_width=input_width, hidden=[8]),
        history=MeanPooling,
        retrieval_score=False,
    )
    monkeypatch.setattr("twotower.export.stages.parity", lambda *given: 0.0)
    alone = replace(parts, two_tower=None, ranker=ranker)
    result = export(alone, tmp_path)
    bundle = open_bundle(result.folder)
    golden = bundle.golden()
    log = parts.prepared.interactions
    assert golden.candidates.shape == golden.logits.shape == (64, 1)
    assert bundle.manifest.stages == ("ranking",)
    assert bundle.item_vectors is None
    assert bundle.items is not None
    assert np.isin(golden.candidates[:, 0], log.item_rows[log.split == 2]).all()


def test_a_second_ranker_of_8_bit_integers(
    exported: ExportResult, parts: ExportParts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    skip_onnx(monkeypatch, exported.folder)
    options = {
        "parts": parts,
        "root": tmp_path,
        "name": "world",
        "index_builder": Flat(device="cpu"),
        "gate_settings": GateSettings(),
        "num_candidates": 40,
    }
    result = export_bundle(**options, ranker_precision="int8")
    assert [gate.name for gate in result.gates][3] == "int8"
    bundle = open_bundle(result.folder)
    assert bundle.manifest.ranker_precision == "int8"
    assert bundle.screen == result.folder / "ranker_int8.onnx"
    figures = bundle.manifest.figures
    assert 0.9 <= figures["export/int8/same_top_10"] <= 1
    assert figures["export/int8/same_top_10_alone"] <= figures["export/int8/same_top_10"]
    # An estimate that says nothing passes the wrong ones.
    monkeypatch.setattr(screen_stage, "quantised", upside_down)
    result = export_bundle(**options, ranker_precision="int8")
    assert not result.published
    assert [gate.name for gate in result.gates if not gate.passed] == ["int8"]


def upside_down(model: onnx.ModelProto, batches: object) -> onnx.ModelProto:
    """A ranker whose probabilities are 1 minus what they should be."""
    nodes = model.graph.node
    last = next(node for node in nodes if "probability" in node.output)
    last.output[0] = "right"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    nodes.append(onnx.helper.make_node("Sub", ["one", "right"], ["probability"]))
    return model


@pytest.mark.parametrize("precision", ["fp8", "INT8", ""])
def test_a_precision_that_is_unknown_is_refused(
    parts: ExportParts, tmp_path: Path, precision: str
) -> None:
    with pytest.raises(ValueError, match=f"must be one of float32, int8, got '{precision}'"):
        export_bundle(
            parts=parts,
            root=tmp_path,
            name="world",
            index_builder=Flat(device="cpu"),
            gate_settings=GateSettings(),
            num_candidates=5,
            ranker_precision=precision,
        )
    assert not list(tmp_path.iterdir())


def test_screening_takes_both_stages(parts: ExportParts, tmp_path: Path) -> None:
    alone = replace(
        parts, two_tower=None, ranker=make_ranker(parts.pipeline, retrieval_score=False)
    )
    with pytest.raises(ValueError, match="int8 screens the candidates of a retrieval for a ranker"):
        export_bundle(
            parts=alone,
            root=tmp_path,
            name="world",
            index_builder=Flat(device="cpu"),
            gate_settings=GateSettings(),
            num_candidates=5,
            ranker_precision="int8",
        )


def test_parts_that_do_not_fit_are_refused_all_at_once(parts: ExportParts) -> None:
    with pytest.raises(ValueError, match="neither towers nor a ranker"):
        replace(parts, two_tower=None, ranker=None)
    with pytest.raises(ValueError, match="a ranker needs its `calibration`") as caught:
        replace(parts, two_tower=None, calibration=None)
    assert "takes the score of the towers, but there are none" in str(caught.value)


def test_features_of_another_run_are_refused(
    parts: ExportParts, export: Export, tmp_path: Path
) -> None:
    other, _ = clicks(tmp_path / "prepared")
    pipeline = FeaturePipeline.load(other.folder / FEATURES_FOLDER)
    with pytest.raises(BundleError, match=r"digest of the features .*the run was trained with"):
        export(replace(parts, pipeline=pipeline), tmp_path)
    assert not (tmp_path / "world").exists()


def test_nothing_is_left_behind_by_an_error(
    parts: ExportParts, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export(parts, tmp_path)

    def fails(*given: object) -> None:
        raise ValueError("no more room")

    monkeypatch.setattr(module, "check_gates", fails)
    with pytest.raises(ValueError, match="no more room"):
        export(parts, tmp_path)
    assert entries(tmp_path / "world") == {first.folder.name, "current", ".published"}
