"""Encoders of a few ONNX nodes each, so that every vector can be worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto
from PIL import Image

from tests.onnx_model import write_model
from twotower.data.schema import DataError
from twotower.serving import embed as embed_module
from twotower.serving.embed import embed_items, read_items, write_vectors
from twotower.serving.encoder import Encoder
from twotower.serving.encoder_inputs import ColumnInputs, ImageInputs

FLOAT, TEXT = TensorProto.FLOAT, TensorProto.STRING


@pytest.fixture
def text_model(tmp_path: Path) -> Path:
    """1 for texts that are `cat`, and its opposite."""
    nodes = [
        ("Equal", ["text", "cat"], ["same"], {}),
        ("Cast", ["same"], ["is"], {"to": FLOAT}),
        ("Sub", ["one", "is"], ["not"], {}),
        ("Unsqueeze", ["is", "axis"], ["left"], {}),
        ("Unsqueeze", ["not", "axis"], ["right"], {}),
        ("Concat", ["left", "right"], ["vector"], {"axis": 1}),
    ]
    constants = [
        ("cat", np.array("cat", dtype=object)),
        ("one", np.float32(1)),
        ("axis", np.array([1])),
    ]
    path = tmp_path / "text.onnx"
    return write_model(
        path, nodes, [("text", TEXT, ["n"])], [("vector", FLOAT, ["n", 2])], constants
    )


@pytest.fixture
def number_model(tmp_path: Path) -> Path:
    """Twice a vector of three plus a number."""
    nodes = [
        ("Mul", ["vector_in", "two"], ["doubled"], {}),
        ("Add", ["doubled", "price"], ["vector"], {}),
    ]
    inputs = [("vector_in", FLOAT, ["n", 3]), ("price", FLOAT, ["n", 1])]
    path = tmp_path / "numbers.onnx"
    return write_model(path, nodes, inputs, [("vector", FLOAT, ["n", 3])], [("two", np.float32(2))])


def picture_model(path: Path, shape: list, *, axes: tuple[int, int]) -> Path:
    """Mean of every colour."""
    nodes = [("ReduceMean", ["pixels", "axes"], ["vector"], {"keepdims": 0})]
    outputs = [("vector", FLOAT, [shape[0], 3])]
    return write_model(path, nodes, [("pixels", FLOAT, shape)], outputs, [("axes", np.array(axes))])


def embedded(items: pa.Table, model: Path, inputs, **settings) -> list:
    options = {"item_id": "item_id", "batch_size": 2, **settings}
    return embed_items(items, Encoder(model), inputs, **options).to_pylist()


TEXTS = pa.table(
    {"item_id": ["a", "b", "c", "d", "e"], "title": ["cat", "dog", None, "cat", "cats"]}
)


class TestColumns:
    @pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
    def test_text_in_batches_of_any_size(self, text_model: Path, batch_size: int) -> None:
        inputs = ColumnInputs(names={"text": "title"})
        found = embedded(TEXTS, text_model, inputs, batch_size=batch_size)
        assert found == [[1, 0], [0, 1], None, [1, 0], [0, 1]]

    def test_numbers_and_vectors_of_several_columns(self, number_model: Path) -> None:
        items = pa.table(
            {
                "item_id": [7, 8, 9],
                "price": pa.array([1, None, 3], pa.int32()),
                "image": pa.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], pa.list_(pa.float64(), 3)),
            }
        )
        inputs = ColumnInputs(names={"vector_in": "image"})
        assert embedded(items, number_model, inputs) == [[3, 5, 7], None, [17, 19, 21]]

    def test_a_model_of_one_row_at_a_time(self, tmp_path: Path) -> None:
        nodes = [("Identity", ["x"], ["vector"], {})]
        shapes = [("x", FLOAT, [1, 2])], [("vector", FLOAT, [1, 2])]
        model = write_model(tmp_path / "one.onnx", nodes, *shapes)
        items = pa.table({"item_id": [1, 2], "x": [[1.0, 2], [3, 4]]})
        assert embedded(items, model, ColumnInputs(), batch_size=32) == [[1, 2], [3, 4]]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"price": [1.0]}, "no column vector_in; available: item_id, price; the model takes"),
            (
                {"price": ["dear"], "vector_in": [[1.0, 2, 3]]},
                r"`price` \(B, 1\) float32 cannot be read from a string",
            ),
            (
                {"price": [1.0], "vector_in": [[1.0, 2]]},
                r"the model refuses `vector_in` \(1, 2\), `price` \(1, 1\): ",
            ),
            (
                {"price": [1.0, 2.0], "vector_in": [[1.0, 2], [1.0, 2, 3]]},
                r"`vector_in` \(B, 3\) float32 needs lists of one length, got lengths 2 to 3",
            ),
            ({"price": [None], "vector_in": [[1.0, 2, 3]]}, "every row lacks vector_in or price"),
            (
                {"price": [1.0, np.inf], "vector_in": [[1.0, 2, 3]] * 2},
                "NaN or infinity for items such as 1$",
            ),
        ],
    )
    def test_columns_that_do_not_fit(self, number_model: Path, columns: dict, message: str) -> None:
        items = pa.table({"item_id": list(range(len(columns["price"]))), **columns})
        with pytest.raises(ValueError, match=message):
            embedded(items, number_model, ColumnInputs())

    def test_an_input_that_is_none(self, text_model: Path) -> None:
        message = r"the model has no input txt; its inputs: `text` \(B\) text$"
        with pytest.raises(ValueError, match=message):
            embedded(TEXTS, text_model, ColumnInputs(names={"txt": "title"}))

    def test_batch_size(self, text_model: Path) -> None:
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            embedded(TEXTS, text_model, ColumnInputs(names={"text": "title"}), batch_size=0)


class TestImages:
    MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)

    @pytest.fixture
    def items(self, tmp_path: Path) -> pa.Table:
        """A red picture, a wide one that is green in the middle and blue outside, and none."""
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
        wide = np.zeros((8, 24, 3), np.uint8)
        wide[:, :, 2] = 255
        wide[:, 8:16] = (0, 255, 0)
        Image.fromarray(wide).save(tmp_path / "wide.png")
        return pa.table({"item_id": [1, 2, 3], "picture": ["red.png", "wide.png", None]})

    def inputs(self, tmp_path: Path, **settings) -> ImageInputs:
        return ImageInputs(
            column="picture", root=str(tmp_path), mean=self.MEAN, std=self.STD, **settings
        )

    @pytest.mark.parametrize(
        ("shape", "axes", "size"),
        [
            (["n", 3, 8, 8], (2, 3), None),
            (["n", 8, 8, 3], (1, 2), None),
            (["n", 3, "h", "w"], (2, 3), (8, 8)),
        ],
    )
    def test_normalised_by_hand(self, tmp_path: Path, items, shape, axes, size) -> None:
        """Red is (1 - 0.5) / 0.5 and none of it -1; green (1 - 0.25) / 0.25 and -1; blue 1, 0."""
        model = picture_model(tmp_path / "m.onnx", shape, axes=axes)
        red, wide, missing = embedded(items, model, self.inputs(tmp_path, size=size))
        assert red == pytest.approx([1, -1, 0])
        assert wide == pytest.approx([-1, 3, 0])  # cut to its middle
        assert missing is None

    def test_height_comes_before_width(self, tmp_path: Path, items) -> None:
        model = picture_model(tmp_path / "m.onnx", ["n", 3, 4, 12], axes=(2, 3))
        _, wide, _ = embedded(items, model, self.inputs(tmp_path))
        assert wide == pytest.approx([-1, 1 / 3, 2 / 3], abs=0.1)

    def test_grey_turned_and_transparent_pictures(self, tmp_path: Path) -> None:
        Image.new("L", (8, 8), 255).save(tmp_path / "grey.png")
        Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "clear.png")
        turned = Image.new("RGB", (2, 8), (255, 255, 255))
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(tmp_path / "turned.jpg", exif=exif)
        names = ["grey.png", "clear.png", "turned.jpg"]
        items = pa.table({"item_id": [1, 2, 3], "picture": names})
        model = picture_model(tmp_path / "m.onnx", ["n", 3, 8, 8], axes=(2, 3))
        for vector in embedded(items, model, self.inputs(tmp_path)):
            assert vector == pytest.approx([1, 3, 1], abs=0.05)

    def test_files_that_are_no_pictures_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("no picture")
        items = pa.table({"item_id": [1, 2], "picture": ["gone.png", "text.png"]})
        model = picture_model(tmp_path / "m.onnx", ["n", 3, 8, 8], axes=(2, 3))
        with pytest.raises(DataError) as caught:
            embedded(items, model, self.inputs(tmp_path))
        first, second = caught.value.problems
        assert first.endswith("gone.png: no such picture")
        assert "text.png: cannot be read as a picture: cannot identify" in second

    @pytest.mark.parametrize(
        ("shape", "size", "message"),
        [
            (["n", 3, "h", "w"], None, "encoder_input.size: got null; the model takes"),
            (["n", 3, 8, 8], (8, 9), r"encoder_input.size: got \[8, 9\]; the model takes"),
            (["n", 4, 8, 8], None, "the first or the last of its sizes must be 3"),
            (["n", 8, 3], None, r"pictures need a model with one input of shape \(B, 3, H"),
        ],
    )
    def test_models_that_take_no_such_pictures(
        self, tmp_path: Path, items, shape, size, message
    ) -> None:
        nodes = [("Flatten", ["pixels"], ["vector"], {})]
        shapes = [("pixels", FLOAT, shape)], [("vector", FLOAT, ["n", "d"])]
        model = write_model(tmp_path / "m.onnx", nodes, *shapes)
        with pytest.raises(ValueError, match=message):
            embedded(items, model, self.inputs(tmp_path, size=size))

    def test_all_wrong_settings_are_named(self) -> None:
        with pytest.raises(ValueError, match="`mean` must be 3 numbers") as caught:
            ImageInputs(column="x", mean=(1,), std=(0, 1, 1), size=(0, 4))
        assert str(caught.value).splitlines() == [
            "encoder_input: `mean` must be 3 numbers, got [1]",
            "encoder_input: `std` must be above 0, got [0, 1, 1]",
            "encoder_input: `size` must be height and width, got [0, 4]",
        ]


class TestEncoder:
    def two_outputs(self, path: Path) -> Path:
        nodes = [("Identity", ["x"], ["a"], {}), ("Neg", ["x"], ["b"], {})]
        shapes = [("x", FLOAT, ["n", 2])], [("a", FLOAT, ["n", 2]), ("b", FLOAT, ["n", 2])]
        return write_model(path, nodes, *shapes)

    def test_one_of_several_outputs(self, tmp_path: Path) -> None:
        path = self.two_outputs(tmp_path / "m.onnx")
        given = {"x": np.array([[1, -2]], np.float32)}
        assert Encoder(path, output="b")(given).tolist() == [[-1, 2]]
        for output, got in ((None, "null"), ("c", "c")):
            message = f"which output holds the vectors? Got tensor={got}; outputs: a ['n', 2], b"
            with pytest.raises(ValueError, match=re.escape(message)):
                Encoder(path, output=output)

    def test_an_output_that_is_no_vector(self, tmp_path: Path) -> None:
        nodes = [("ReduceMean", ["x", "axes"], ["mean"], {"keepdims": 0})]
        shapes = [("x", FLOAT, ["n", 2])], [("mean", FLOAT, ["n"])]
        path = write_model(tmp_path / "m.onnx", nodes, *shapes, [("axes", np.array([1]))])
        with pytest.raises(ValueError, match=r"one vector a row, \(1, D\), got \(1,\)"):
            Encoder(path, output="mean")({"x": np.ones((1, 2), np.float32)})

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"gone\.onnx: no such file"):
            Encoder(tmp_path / "gone.onnx")
        (tmp_path / "text.onnx").write_text("no model")
        with pytest.raises(ValueError, match=r"text\.onnx: cannot be read as an ONNX model: "):
            Encoder(tmp_path / "text.onnx")

    def test_inputs_that_tables_do_not_hold(self, tmp_path: Path) -> None:
        nodes = [("Cast", ["x"], ["vector"], {"to": FLOAT})]
        outputs = [("vector", FLOAT, ["n", 2])]
        path = write_model(tmp_path / "m.onnx", nodes, [("x", TensorProto.BOOL, ["n", 2])], outputs)
        with pytest.raises(ValueError, match=r"input `x` is tensor\(bool\); allowed: tensor\(stri"):
            Encoder(path)
        outputs = [("vector", FLOAT, [8, 2])]
        path = write_model(tmp_path / "m.onnx", nodes, [("x", FLOAT, [8, 2])], outputs)
        with pytest.raises(ValueError, match="takes 8 rows at a time; export the model with a fir"):
            Encoder(path)
        nodes = [("Identity", ["constant"], ["vector"], {})]
        path = write_model(path, nodes, [], outputs, [("constant", np.ones((8, 2), np.float32))])
        with pytest.raises(ValueError, match="the model takes no input; an encoder needs at least"):
            Encoder(path)


class TestFiles:
    def test_csv_is_typed_and_ids_stay_as_they_are(self, tmp_path: Path) -> None:
        (tmp_path / "items.csv").write_text("sku,title,price\n007,cat,1.5\n1e5,,2\n")
        items = read_items(str(tmp_path / "items.csv"), item_id="sku", vector="v")
        assert items.to_pydict() == {
            "sku": ["007", "1e5"],
            "title": ["cat", None],
            "price": [1.5, 2.0],
        }

    def test_everything_comes_out_and_the_vectors_with_it(self, tmp_path: Path) -> None:
        vectors = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.large_list(pa.float32()))
        items = TEXTS.slice(0, 3)
        written = write_vectors(items, vectors, vector="v", path=tmp_path / "new" / "o.parquet")
        assert (written.num_items, written.num_missing, written.width) == (3, 1, 2)
        read = pq.read_table(written.path)
        assert read.drop_columns(["v"]).equals(items)
        assert read.column("v").to_pylist() == [[1, 2], None, [3, 4]]
        assert [path.name for path in written.path.parent.iterdir()] == ["o.parquet"]

    def test_an_error_leaves_what_was_there(self, tmp_path: Path, monkeypatch) -> None:
        path = tmp_path / "o.parquet"
        path.write_text("before")

        def fails(table, where):
            Path(where).write_text("half")
            raise OSError("disk is full")

        monkeypatch.setattr(embed_module.pq, "write_table", fails)
        vectors = pa.array([[1.0]] * 5, pa.large_list(pa.float32()))
        with pytest.raises(OSError, match="disk is full"):
            write_vectors(TEXTS, vectors, vector="v", path=path)
        assert path.read_text() == "before"
        assert [found.name for found in tmp_path.iterdir()] == ["o.parquet"]

    def test_tables_that_cannot_be_used(self, tmp_path: Path) -> None:
        pq.write_table(TEXTS.slice(0, 0), tmp_path / "empty.parquet")
        with pytest.raises(DataError) as caught:
            read_items(str(tmp_path / "empty.parquet"), item_id="sku", vector="title")
        missing, twice, empty = caught.value.problems
        assert "column `sku` is missing; available: item_id, title; if it is one" in missing
        assert "there is a column `title` already; say vector=<name>" in twice
        assert "the table is empty" in empty
        pq.write_table(pa.table({"item_id": ["a", None]}), tmp_path / "null.parquet")
        with pytest.raises(DataError, match="column `item_id`: 1 row without an id, at data row"):
            read_items(str(tmp_path / "null.parquet"), item_id="item_id", vector="v")
