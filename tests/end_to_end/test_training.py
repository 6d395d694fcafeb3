"""Training on a small built-in world: quality, the run folder, and what TensorBoard shows."""

import csv
import json
import re

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from twotower.cli.train import train
from twotower.config import compose

EPOCHS = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Figures and folder of a run of both stages."""
    folder = tmp_path_factory.mktemp("training")
    cfg = compose(
        "train",
        [
            *("data.num_users=400", "data.num_items=200", "data.slates_per_user=8"),
            *("training.retrieval.batch_size=256", f"training.retrieval.max_epochs={EPOCHS}"),
            *("training.ranking.batch_size=512", "training.ranking.max_epochs=3"),
            *(f"output_dir={folder / 'run'}", f"prepared_dir={folder / 'prepared'}"),
            *("trainer.accelerator=cpu", "quiet=true"),
        ],
    )
    return train(cfg), folder / "run"


@pytest.fixture(scope="module")
def boards(trained):
    """What TensorBoard reads, by stage."""
    _, folder = trained
    return {
        stage: EventAccumulator(str(folder / "tensorboard" / stage)).Reload()
        for stage in ("retrieval", "ranking")
    }


def test_retrieval_beats_popularity_beyond_doubt(trained):
    metrics, _ = trained
    for metric in ("recall@10", "recall@20", "ndcg@20"):
        ours, theirs = (f"{name}/test/{metric}" for name in ("retrieval", "popularity"))
        assert metrics[f"{ours}/low"] > metrics[f"{theirs}/high"], metric


def test_ranker_tells_clicks_from_the_others(trained):
    metrics, _ = trained
    assert metrics["ranking/test/auc"] > 0.6
    assert metrics["ranking/test/grouped_auc"] > 0.55
    assert metrics["ranking/test/normalised_entropy"] < 1
    assert metrics["ranking/test/calibration_error"] < 0.05


def test_run_folder_is_complete(trained):
    metrics, folder = trained
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {
        *("config.yaml", "features.yaml", "prepared.json", "versions.json"),
        *("metrics.json", "ranker.json", "features/features.json"),
        *(f"{s}/{f}" for s in ("retrieval", "ranking") for f in ("best.ckpt", "finished.json")),
    }
    assert expected <= files
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    spec = OmegaConf.load(folder / "features.yaml")
    assert {"user_id", "item_id"} <= {feature.name for feature in spec.features}


class TestTensorBoard:
    @pytest.mark.parametrize(
        ("stage", "curves"),
        [
            ("retrieval", ("train/loss", "validation/recall@100", "validation/ndcg@10")),
            ("ranking", ("train/loss", "validation/auc", "validation/log_loss")),
        ],
    )
    def test_curves(self, stage, curves, boards):
        rates = ("learning_rate", "table_learning_rate", "examples_per_second")
        for name in (*curves, *(f"train/{rate}" for rate in rates)):
            events = boards[stage].Scalars(f"{stage}/{name}")
            steps = [event.step for event in events]
            assert len(events) >= 3, name
            assert steps == sorted(set(steps)), name

    def test_loss_goes_down(self, boards):
        for stage in ("retrieval", "ranking"):
            values = [event.value for event in boards[stage].Scalars(f"{stage}/train/loss")]
            assert min(values[1:]) < values[0]

    def test_metrics_of_every_epoch(self, trained, boards):
        _, folder = trained
        for stage, metric in (("retrieval", "recall@100"), ("ranking", "auc")):
            fitted = json.loads((folder / stage / "finished.json").read_text())
            events = boards[stage].Scalars(f"{stage}/validation/{metric}")
            assert len(events) == fitted["epochs"]
            assert max(event.value for event in events) == pytest.approx(fitted["best"])

    def test_images(self, boards):
        assert boards["retrieval"].Tags()["images"] == ["retrieval/test/recall_by_popularity"]
        assert boards["ranking"].Tags()["images"] == ["ranking/test/reliability"]

    def test_config_as_text(self, boards):
        for board in boards.values():
            (event,) = board.Tensors("config/text_summary")
            assert "num_users: 400" in event.tensor_proto.string_val[0].decode()

    def test_projector_shows_titles(self, trained):
        _, folder = trained
        board = folder / "tensorboard" / "retrieval"
        assert "metadata.tsv" in (board / "projector_config.pbtxt").read_text()
        path = board / "items" / "metadata.tsv"
        with path.open() as file:
            header, *rows = csv.reader(file, delimiter="\t")
        assert header[:2] == ["title", "item_id"]
        assert len(rows) == 200
        assert all(title.startswith("The ") and item.startswith("i") for title, item, *_ in rows)
        assert len((path.parent / "tensors.tsv").read_text().splitlines()) == 200
        assert header[2:] == ["events", "popularity decile", "category", "tags", "first of tags"]

    def test_every_chart_of_the_layout_finds_its_curves(self, boards):
        for stage, board in boards.items():
            (event,) = board.Tensors("custom_scalars__config__")
            [category] = Layout.FromString(event.tensor_proto.string_val[0]).category
            assert category.title == stage
            curves = board.Tags()["scalars"]
            for chart in category.chart:
                for tag in chart.multiline.tag:
                    assert any(re.match(tag, curve) for curve in curves), tag
            laid_out = [tag for chart in category.chart for tag in chart.multiline.tag]
            assert [c for c in curves if not any(re.match(t, c) for t in laid_out)] == ["epoch"]

    def test_hparams_hold_the_settings_and_the_final_figures(self, trained):
        metrics, folder = trained
        final = EventAccumulator(str(folder / "tensorboard" / "final")).Reload()
        content = final.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        settings = HParamsPluginData.FromString(content).session_start_info.hparams
        assert settings["training.retrieval.max_epochs"].number_value == EPOCHS
        assert settings["losses.retrieval.loss"].string_value == "SampledSoftmax"
        assert settings["data"].string_value == "SyntheticSource"
        assert not any("output_dir" in key or key.endswith("_target_") for key in settings)
        shown = {tag: final.Scalars(tag)[0].value for tag in final.Tags()["scalars"]}
        for name in ("retrieval/recall@100", "retrieval/ndcg@10", "ranking/auc"):
            stage, _, metric = name.partition("/")
            expected = metrics[f"{stage}/test/{metric}"]
            assert shown[f"final/{name}"] == pytest.approx(expected, abs=1e-6)
