"""Similar items against a sort of all cosines, and vectors through the tower as it was trained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twotower.cli.load_run import LoadedRun
from twotower.export.bundle import Bundle, open_bundle
from twotower.serving.recommender import Recommender
from twotower.serving.similar import read_vector, similar_to_item, similar_to_vector

WIDTH = 16  # of the image vectors of the built-in world


def nearest(bundle: Bundle, query: np.ndarray, without: int | None = None) -> list[tuple]:
    """Ids and cosines of all items, one at a time, most alike first."""
    length = np.linalg.norm(query)
    scored = [
        (float(query @ v / np.linalg.norm(v) / length), bundle.items.ids[row].as_py())
        for row, v in enumerate(np.asarray(bundle.item_vectors, np.float64))
        if row != without
    ]
    return [(item, score) for score, item in sorted(scored, reverse=True)]


def assert_answers(found: list, expected: list[tuple]) -> None:
    assert [item.item_id for item in found] == [item for item, _ in expected]
    scores = [item.retrieval_score for item in found]
    np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-5)
    assert [item.retrieval_rank for item in found] == list(range(1, len(expected) + 1))


@pytest.mark.parametrize("k", [1, 7, 79, 500])
def test_nearest_items_without_the_item_itself(
    recommender: Recommender, bundle: Bundle, k: int
) -> None:
    row = 11
    item, title = (bundle.items.table.column(n)[row].as_py() for n in ("item_id", "title"))
    found = similar_to_item(recommender, item, k=k)
    expected = nearest(bundle, np.asarray(bundle.item_vectors[row], np.float64), without=row)
    assert_answers(found, expected[:k])
    assert {answer.reason for answer in found} == {f"like {title}"}
    titles = dict(
        zip(*(bundle.items.table.column(n).to_pylist() for n in ("item_id", "title")), strict=True)
    )
    assert [answer.title for answer in found] == [titles[answer.item_id] for answer in found]


@torch.no_grad()
def test_a_vector_is_an_item_of_which_nothing_else_is_known(
    recommender: Recommender, bundle: Bundle, loaded: LoadedRun
) -> None:
    vector = np.random.default_rng(3).normal(size=WIDTH)
    unit = torch.from_numpy(vector / np.linalg.norm(vector)).float()
    width = loaded.pipeline.transforms["tags"].width
    new = {
        "item_id": torch.zeros(1, dtype=torch.long),
        "category": torch.zeros(1, dtype=torch.long),
        "tags": torch.zeros(1, width, dtype=torch.long),
        "price": torch.tensor([[0.0, 1.0]]),
        "image_vector": unit.unsqueeze(0),
    }
    query = loaded.two_tower.eval().embed_items(new)[0].double().numpy()
    expected = nearest(bundle, query)[:10]
    assert_answers(similar_to_vector(recommender, vector, k=10), expected)
    doubled = similar_to_vector(recommender, 2 * vector, k=10, feature="image_vector")
    assert_answers(doubled, expected)
    assert [item for item, _ in nearest(bundle, -query)[:10]] != [item for item, _ in expected]


def test_ids_of_numbers_and_text(csv_run) -> None:
    bundle = open_bundle(csv_run.bundle)
    recommender = Recommender(bundle)
    exponent, plain = (similar_to_item(recommender, i, k=100) for i in ("1e5", 100000))
    assert len(exponent) == len(plain) == len(bundle.items) - 1
    assert {item.item_id for item in exponent} ^ {item.item_id for item in plain} == {
        *("1e5", "100000")
    }


def test_unknown_item(recommender: Recommender, bundle: Bundle) -> None:
    some = ", ".join(bundle.items.ids[:3].to_pylist())
    message = f"unknown item 'nothing'; known are {len(bundle.items)} items such as {some}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        similar_to_item(recommender, "nothing", k=3)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (
            np.ones(3),
            "a vector of `image_vector` must be 16 floating point numbers, got float64 of",
        ),
        (np.ones((2, WIDTH)), "got float64 of shape (2, 16)"),
        (np.ones(WIDTH, int), "must be 16 floating point numbers, got int64"),
        (np.full(WIDTH, np.nan), "must be finite and not all zeros"),
        (np.zeros(WIDTH), "must be finite and not all zeros"),
    ],
)
def test_what_is_no_vector(recommender: Recommender, vector: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        similar_to_vector(recommender, vector, k=3)


def test_which_vector(recommender: Recommender, csv_run) -> None:
    vector = np.ones(WIDTH)
    message = "vector_feature: got picture; vector features of the items in this bundle: image_vec"
    with pytest.raises(ValueError, match=message):
        similar_to_vector(recommender, vector, k=3, feature="picture")
    without = Recommender(open_bundle(csv_run.bundle))
    with pytest.raises(ValueError, match=r"got null; .* none, it was trained without vectors"):
        similar_to_vector(without, vector, k=3)


@pytest.mark.parametrize("k", [0, -1])
def test_a_list_holds_at_least_one_item(recommender: Recommender, bundle: Bundle, k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        similar_to_item(recommender, bundle.items.ids[0].as_py(), k=k)
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        similar_to_vector(recommender, np.ones(WIDTH), k=k)


def test_items_without_a_title_are_named_by_their_id(bundle: Bundle) -> None:
    table = bundle.items.table.drop_columns(["title"])
    untitled = Recommender(replace(bundle, items=replace(bundle.items, table=table)))
    item = bundle.items.ids[4].as_py()
    assert {answer.reason for answer in similar_to_item(untitled, item, k=3)} == {f"like {item}"}


class TestReadVector:
    @pytest.mark.parametrize("shape", [(4,), (1, 4)])
    def test_one_vector(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        np.save(tmp_path / "v.npy", np.arange(4.0).reshape(shape))
        assert read_vector(tmp_path / "v.npy").tolist() == [0, 1, 2, 3]

    def test_several_vectors(self, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", np.ones((2, 4)))
        with pytest.raises(ValueError, match=r"v\.npy: must hold one vector, .* got \(2, 4\)"):
            read_vector(tmp_path / "v.npy")
        np.savez(tmp_path / "v.npz", np.ones(4))
        with pytest.raises(ValueError, match=r"v\.npz: must hold one vector, .* several arrays"):
            read_vector(tmp_path / "v.npz")

    @pytest.mark.parametrize("content", [b"1, 2, 3", b""])
    def test_another_format(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "v.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"v\.npy: no array of numbers in NumPy's format"):
            read_vector(tmp_path / "v.npy")

    def test_a_pickle_is_not_read(self, tmp_path: Path) -> None:
        np.save(tmp_path / "v.npy", np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match="no array of numbers"):
            read_vector(tmp_path / "v.npy")
