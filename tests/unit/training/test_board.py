"""What the board writes can be read by TensorBoard, and says what it should."""

from __future__ import annotations

import csv
from io import BytesIO

import numpy as np
import pyarrow as pa
import pytest
import torch
from matplotlib import image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from twotower.metrics.calibration import ReliabilityTable
from twotower.training import board as module
from twotower.training.board import Board


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


def test_settings_and_figures_of_a_trial(written):
    settings, figures = {"rate": 0.25, "model": "gru"}, {"ndcg@10": 0.5, "seconds": 3.0}
    events = written(lambda board: board.hparams(settings, figures))
    content = events.PluginTagToContent("hparams")
    begin = HParamsPluginData.FromString(content["_hparams_/session_start_info"])
    shown = begin.session_start_info.hparams
    assert (shown["rate"].number_value, shown["model"].string_value) == (0.25, "gru")
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert [info.name for info in experiment.hparam_infos] == ["rate", "model"]
    tags = [info.name.tag for info in experiment.metric_infos]
    assert tags == ["trial/ndcg@10", "trial/seconds"]
    assert [[event.value for event in events.Scalars(tag)] for tag in tags] == [[0.5], [3.0]]


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


def items(num_items, titled):
    columns = {
        "item_id": [f"i{row}" for row in range(num_items)],
        "category": ["red" if row % 2 else "blue" for row in range(num_items)],
        "tags": [["x"]] * num_items,
    }
    if titled:
        columns["title"] = [f"The\t{row}\nth" for row in range(num_items)]
    return pa.table(columns)


def projected(tmp_path):
    folder = tmp_path / "tensorboard" / "retrieval" / "00000" / "items"
    with (folder / "metadata.tsv").open() as file:
        rows = list(csv.reader(file, delimiter="\t"))
    with (folder / "tensors.tsv").open() as file:
        vectors = [[float(x) for x in row] for row in csv.reader(file, delimiter="\t")]
    return rows, np.array(vectors)


def test_most_popular_items_are_projected(written, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROJECTOR_ITEMS", 3)
    table = items(5, titled=True)
    vectors, counts = torch.arange(10.0).reshape(5, 2), torch.tensor([4, 9, 0, 4, 1])
    written(
        lambda board: board.items(vectors, table.column("item_id").combine_chunks(), table, counts)
    )
    rows, shown = projected(tmp_path)
    assert rows == [
        ["title", "item_id", "events", "category"],
        ["The 1 th", "i1", "9", "red"],
        ["The 0 th", "i0", "4", "blue"],
        ["The 3 th", "i3", "4", "red"],
    ]
    assert shown.tolist() == [[2, 3], [0, 1], [6, 7]]


def test_items_without_titles_go_by_their_id(written, tmp_path):
    table = items(4, titled=False)
    ids = table.column("item_id").combine_chunks()
    written(lambda board: board.items(torch.ones(4, 2), ids, table, torch.tensor([4, 3, 2, 1])))
    rows, _ = projected(tmp_path)
    assert [row[0] for row in rows[1:]] == ["i0", "i1", "i2", "i3"]
