"""What the projector is given: as many lines as vectors, who each item is, what it looks like."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from twotower.training import projector as module
from twotower.training.projector import TILE, picture_paths, write_projector

BLANK = (208, 208, 208)


def items(num_items, **columns):
    ids = [f"i{row}" for row in range(num_items)]
    return pa.table({"item_id": ids, **columns})


def project(folder, table, counts, vectors=None):
    """Header, lines and vectors of what was written."""
    if vectors is None:
        vectors = torch.ones(table.num_rows, 2)
    ids = table.column("item_id").combine_chunks()
    write_projector(folder, vectors, ids, table, torch.tensor(counts))
    with (folder / "items" / "metadata.tsv").open(encoding="utf-8") as file:
        header, *lines = csv.reader(file, delimiter="\t")
    with (folder / "items" / "tensors.tsv").open() as file:
        shown = [[float(x) for x in row] for row in csv.reader(file, delimiter="\t")]
    assert len(lines) == len(shown)
    return header, lines, np.array(shown)


def test_most_popular_items_are_projected(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ITEMS", 3)
    titles = [f"The\t{row}\nth" for row in range(5)]
    table = items(5, title=titles, category=["red" if row % 2 else "blue" for row in range(5)])
    vectors = torch.arange(10.0).reshape(5, 2)
    header, lines, shown = project(tmp_path, table, [4, 9, 0, 4, 1], vectors)
    assert header == ["title", "item_id", "events", "popularity decile", "category"]
    assert lines == [
        ["The 1 th", "i1", "9", "9", "red"],
        ["The 0 th", "i0", "4", "5", "blue"],
        ["The 3 th", "i3", "4", "7", "red"],
    ]
    assert shown.tolist() == [[2, 3], [0, 1], [6, 7]]
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert 'tensor_path: "items/tensors.tsv"' in config
    assert 'metadata_path: "items/metadata.tsv"' in config
    assert "sprite" not in config


def test_genres_are_shown_whole_and_colour_by_the_first(tmp_path):
    genres = [["Drama", "War"], ["Comedy"], None, [], [None, "War"]]
    table = items(5, genres=pa.array(genres, pa.list_(pa.string())))
    header, lines, _ = project(tmp_path, table, [5, 4, 3, 2, 1])
    assert header[4:] == ["genres", "first of genres"]
    assert [line[4:] for line in lines] == [
        ["Drama, War", "Drama"],
        ["Comedy", "Comedy"],
        *[["", "none"]] * 2,
        ["War", "War"],
    ]


def test_a_column_with_too_many_values_is_no_group(tmp_path):
    many = [f"v{row}" for row in range(60)]
    table = items(60, story=many, tags=[[value] for value in many], one=["same"] * 60)
    header, lines, _ = project(tmp_path, table, list(range(60)))
    assert header == ["title", "item_id", "events", "popularity decile", "tags"]
    assert lines[0] == ["i59", "i59", "59", "10", "v59"]


@pytest.fixture
def pictures(tmp_path):
    """Paths of a red, a blue and a green picture, of other sizes than a tile."""
    paths = []
    for name, colour in (("a.png", (255, 0, 0)), ("b.PNG", (0, 0, 255)), ("c.bmp", (0, 255, 0))):
        Image.new("RGB", (90, 30), colour).save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


def test_pictures_lie_in_the_order_of_the_vectors(tmp_path, pictures):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    red, blue, green = pictures
    paths = [red, None, str(tmp_path / "broken.png"), blue, green]
    table = items(5, note=["x.png", "y", None, None, None], picture=paths)
    _, lines, _ = project(tmp_path, table, [1, 2, 3, 4, 5])
    assert [line[1] for line in lines] == ["i4", "i3", "i2", "i1", "i0"]
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert 'image_path: "items/sprite.png"' in config
    assert config.count(f"single_image_dim: {TILE}") == 2
    with Image.open(tmp_path / "items" / "sprite.png") as sprite:
        assert sprite.size == (3 * TILE, 3 * TILE)  # the square that holds five
        middles = [
            sprite.getpixel((place % 3 * TILE + TILE // 2, place // 3 * TILE + TILE // 2))
            for place in range(6)
        ]
    assert middles == [(0, 255, 0), (0, 0, 255), BLANK, BLANK, (255, 0, 0), BLANK]


def test_columns_that_hold_no_pictures(tmp_path, pictures):
    assert picture_paths(items(2, note=["a.png", "text"])) is None
    assert picture_paths(items(2, picture=[str(tmp_path / "gone.png"), None])) is None
    assert picture_paths(items(2, picture=pa.array([None, None], pa.string()))) is None
    assert picture_paths(items(2, picture=[pictures[0], None])) == [pictures[0], None]
