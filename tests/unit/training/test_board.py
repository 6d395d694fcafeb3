"""What the board writes can be read by TensorBoard, and says what it should."""

from __future__ import annotations

import re
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from twotower.metrics.calibration import ReliabilityTable
from twotower.training.board import Board, compare_runs


@pytest.fixture
def written(tmp_path):
    """Runs a function with a board and reads what it wrote."""

    def run(write):
        board = Board(tmp_path, "retrieval")
        write(board)
        board.close()
        return EventAccumulator(str(tmp_path / "tensorboard" / "retrieval")).Reload()

    return run


def text_of(events, tag):
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_config(written):
    text = text_of(written(lambda board: board.config("seed: 3\nname: x")), "config")
    assert text == "    seed: 3\n    name: x"


def test_figures(written):
    values = {"a": 0.5, "a/low": 0.4, "a/high": 0.6, "b": float("nan")}
    text = text_of(written(lambda board: board.metrics(values)), "retrieval/test/figures")
    assert text.splitlines()[2:] == ["| a | 0.5000 | 0.4000 .. 0.6000 |", "| b | nan |  |"]


def read_final(folder):
    """Settings and figures of a run, as the tab HPARAMS finds them."""
    events = EventAccumulator(str(folder / "tensorboard" / "final")).Reload()
    content = events.PluginTagToContent("hparams")
    begin = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    figures = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert "_hparams_/experiment" not in content
    return begin.session_start_info.hparams, figures


def test_settings_and_figures_of_a_run(tmp_path):
    compare_runs(tmp_path, {"rate": 0.25, "model": "gru"}, {"ndcg@10": 0.5})
    settings, figures = read_final(tmp_path)
    assert settings.keys() == {"rate", "model"}
    assert (settings["rate"].number_value, settings["model"].string_value) == (0.25, "gru")
    assert figures == {"final/ndcg@10": 0.5}


def test_what_is_shown_of_a_run_takes_the_place_of_what_was(tmp_path):
    compare_runs(tmp_path, {"rate": 0.25}, {"auc": 0.5})
    compare_runs(tmp_path, {"dim": 8.0}, {"recall@10": 0.75})
    settings, figures = read_final(tmp_path)
    assert settings.keys() == {"dim"}
    assert figures == {"final/recall@10": 0.75}


def test_runs_with_other_settings_stand_in_one_table(tmp_path):
    """TensorBoard joins the columns of all runs itself, so long as no run lists those of all."""
    compare_runs(tmp_path / "a", {"rate": 0.25, "dim": 8.0}, {"auc": 0.5})
    compare_runs(tmp_path / "b", {"rate": 0.5, "dim": 8.0, "loss": "bpr"}, {"recall@10": 0.25})
    plugins = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    flags = SimpleNamespace(generic_data="true")
    provider = MultiplexerDataProvider(plugins, str(tmp_path))
    table = Context(TBContext(multiplexer=plugins, data_provider=provider, flags=flags))
    runs = table.hparams_metadata(RequestContext(), "")
    columns = table.experiment_from_metadata(RequestContext(), "", True, runs, [])
    assert {i.name: i.differs for i in columns.hparam_infos} == {
        **{"rate": True, "dim": False, "loss": False}
    }
    assert {i.name.tag for i in columns.metric_infos} == {"final/auc", "final/recall@10"}
    assert {i.name.group for i in columns.metric_infos} == {""}


def test_layout_has_a_chart_for_every_curve(written):
    names = ["recall@5", "ndcg@5", "recall@50", "ndcg@50", "auc"]
    events = written(lambda board: board.layout(names))
    (event,) = events.Tensors("custom_scalars__config__")
    [category] = Layout.FromString(event.tensor_proto.string_val[0]).category
    assert category.title == "retrieval"
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert list(charts) == [
        *("loss in training", "recall by length of the list, on validation"),
        *("ndcg by length of the list, on validation", "auc, on validation"),
        *("learning rates", "examples per second"),
    ]
    [at_5, at_50] = charts["recall by length of the list, on validation"]
    assert re.match(at_5, "retrieval/validation/recall@5")
    assert not re.match(at_5, "retrieval/validation/recall@50")
    assert re.match(at_50, "retrieval/validation/recall@50")
    assert len(charts["learning rates"]) == 2


def test_plots(written):
    table = ReliabilityTable(
        counts=np.array([5, 5]), predicted=np.array([0.1, 0.4]), observed=np.array([0.2, 0.3])
    )

    def write(board):
        board.recall_by_popularity(np.array([0.1, np.nan] * 5), 10)
        board.reliability(table)

    events = written(write)
    tags = {"retrieval/test/recall_by_popularity", "retrieval/test/reliability"}
    assert set(events.Tags()["images"]) == tags
    for tag in tags:
        (event,) = events.Images(tag)
        pixels = image.imread(BytesIO(event.encoded_image_string), format="png")
        assert pixels.std() > 0.05
