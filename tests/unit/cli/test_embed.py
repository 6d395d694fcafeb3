"""`twotower embed`: from a table of items to one with vectors, and on to items that are alike."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto

from tests.conftest import export_tiny, train_tiny, write_tables
from tests.onnx_model import write_model
from twotower.cli.main import main
from twotower.cli.recommend import recommend
from twotower.config import compose
from twotower.export.bundle import open_bundle

NUM_ITEMS = 20
GENRES = ("g0", "g1", "g2", "g3")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with tables and an encoder of genres: a 1 where the genre stands, else 0."""
    write_tables(tmp_path, range(1, 31), [f"i{row}" for row in range(NUM_ITEMS)])
    nodes = [
        ("Unsqueeze", ["genre", "axis"], ["column"], {}),
        ("Equal", ["column", "genres"], ["same"], {}),
        ("Cast", ["same"], ["vector"], {"to": TensorProto.FLOAT}),
    ]
    inputs = [("genre", TensorProto.STRING, ["n"])]
    outputs = [("vector", TensorProto.FLOAT, ["n", 4])]
    constants = [("axis", np.array([1])), ("genres", np.array([GENRES], dtype=object))]
    write_model(tmp_path / "genres.onnx", nodes, inputs, outputs, constants)
    return tmp_path


def embed(work: Path, *overrides: str) -> int:
    with chdir(work):
        return main(["embed", "model=genres.onnx", "items=items.csv", *overrides])


def test_a_table_with_vectors(work: Path, capsys) -> None:
    assert embed(work, "output=out/items.parquet", "batch_size=7", "vector=genre_vector") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == [
        "written: out/items.parquet",
        "19 items, vectors of width 4 in column genre_vector, 0 without one",
    ]
    assert "3/3" in printed.err  # the bar
    rows = pq.read_table(work / "out" / "items.parquet").to_pylist()
    assert [row["item_id"] for row in rows] == [f"i{n}" for n in range(NUM_ITEMS) if n != 3]
    for row in rows:
        assert row["genre_vector"] == [float(row["genre"] == genre) for genre in GENRES]
        assert row["title"] == f"Title {row['item_id'][1:]}"


def test_quiet(work: Path, capsys) -> None:
    assert embed(work, "+quiet=true") == 0
    assert capsys.readouterr() == ("", "")
    assert (work / "item_vectors.parquet").is_file()


def test_from_vectors_to_items_that_are_alike(work: Path) -> None:
    """Vectors are all that is known of the items but their ids; a vector finds its genre."""
    assert embed(work, "output=vectors.parquet", "quiet=true") == 0
    data = ["data=tables", "data.interactions=interactions.csv", "data.items=vectors.parquet"]
    data += ["data.columns.user_id=visitor", "split=leave_one_out", "features.exclude=[genre]"]
    further = ["stages=[retrieval]", "models.retrieval.id_dropout=0.5", "catalogue=interacted"]
    # Who takes what is random here: what tables would learn of single items is noise.
    further += ["training.retrieval.optimizer.table_learning_rate=1e-6"]
    run = train_tiny(work, data, *further, "losses.retrieval.mask_cold=true")
    bundle = export_tiny(work, run)
    np.save(work / "g2.npy", np.array([0, 0, 1, 0], np.float32))
    given = [f"bundle={bundle}", f"similar_to_vector={work / 'g2.npy'}", "k=4", "quiet=true"]
    found = recommend(compose("recommend", given))
    genres = dict(
        zip(
            *(open_bundle(bundle).items.table[n].to_pylist() for n in ("item_id", "genre")),
            strict=True,
        )
    )
    assert [genres[item.item_id] for item in found[:2]] == ["g2", "g2"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=gone.onnx"], "error: gone.onnx: no such file\n"),
        (["items=gone.csv"], "error: gone.csv: no such file or folder; "),
        (["output=vectors.csv"], "error: output: must be a file called <name>.parquet, got vec"),
        (["vector=title"], "error: items.csv: there is a column `title` already; say vector=<n"),
        (["tensor=x"], "error: genres.onnx: which output holds the vectors? Got tensor=x; outp"),
        (
            ["encoder_input.names={genre: topic}"],
            "error: no column topic; available: item_id, title, genre; the model takes `genre` (B) "
            "text from `topic`\n",
        ),
        (
            ["encoder_input=images", "encoder_input.column=title"],
            "error: pictures need a model with one input of shape (B, 3, H, W) or (B, H, W, 3) ",
        ),
    ],
)
def test_what_cannot_be_done(work: Path, overrides: list[str], message: str, capsys) -> None:
    before = sorted(work.rglob("*"))
    assert embed(work, *overrides) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.out == ""
    assert sorted(work.rglob("*")) == before
